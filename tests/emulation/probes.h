// Small kernels that exercise one primitive each, some of them broken on purpose.
#pragma once

#include <string>
#include <vector>

#include "../../csrc/cuda/runtime_api.h"

struct Probe {
  const void* in = nullptr;
  void* out = nullptr;
  int a = 0, b = 0, c = 0;
};

struct Launch {
  unsigned grid[3] = {1, 1, 1};
  unsigned block[3] = {32, 1, 1};
  size_t shared = 0;
  int shared_attribute = -1;  // cudaFuncSetAttribute first, unless negative
};

std::vector<std::string> probe_names();
cudaError_t run_probe(const std::string& name, const Probe& probe, const Launch& launch);
#ifdef DASR_EMULATION
dasr::emulation::Settings& emulation_settings();
dasr::emulation::Statistics emulation_statistics();
#endif
