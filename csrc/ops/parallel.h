#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

#include "ops/status.h"

namespace dasr {

// f(begin, end) over [0, count) on PyTorch's threads, at least `grain` items each. (The C shim
// alone, because torch/csrc/stable/ops.h takes longer to compile than what is parallel here.)
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  void* context = const_cast<void*>(static_cast<const void*>(&f));
  check_status(torch_parallel_for(0, count, grain, call, context), "torch_parallel_for");
}

}  // namespace dasr
