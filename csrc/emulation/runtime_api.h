// Stand-ins for the few CUDA runtime types that launchers and their callers name, and the switches
// of the emulation. Light enough for a binding; kernels include emulation.h.
#pragma once

#include <cstddef>
#include <cstdint>

using cudaStream_t = struct CUstream_st*;

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unrecognized error code";
}

namespace dasr::emulation {

enum class Order { kForward, kReverse, kShuffled };

struct Settings {
  // Shared memory per block, static and dynamic together: 99, 163 or 227 KB (sm_86/89/120, 80, 90).
  size_t shared_limit = 227 * 1024;
  // The order in which the threads of a block run between two synchronisations.
  Order order = Order::kForward;
  uint32_t seed = 0;
};

struct Statistics {
  uint64_t launches = 0;
  uint64_t blocks = 0;
  uint64_t switches = 0;
};

inline Settings settings;
inline Statistics statistics;

}  // namespace dasr::emulation
