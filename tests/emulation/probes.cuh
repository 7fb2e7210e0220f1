// How probes are declared: small kernels that exercise one primitive each.
#pragma once

#include <map>
#include <string>

#include "../../csrc/cuda/ptx.cuh"
#include "probes.h"

using ProbeKernel = void (*)(Probe);

inline std::map<std::string, ProbeKernel>& probe_registry() {
  static std::map<std::string, ProbeKernel> kernels;
  return kernels;
}

#define PROBE(name)                                                       \
  __global__ void name(Probe p);                                          \
  const bool name##_registered = (probe_registry()[#name] = &name, true); \
  __global__ void name([[maybe_unused]] Probe p)

template <class T>
__device__ const T* in(const Probe& p) {
  return static_cast<const T*>(p.in);
}
template <class T>
__device__ T* out(const Probe& p) {
  return static_cast<T*>(p.out);
}

template <class T>
struct alignas(128) Aligned {
  T values;
};
