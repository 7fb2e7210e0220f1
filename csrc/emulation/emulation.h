// Compiles CUDA kernels with g++ and runs them on the CPU. See README.md.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "numeric.h"
#include "race.h"
#include "runtime_api.h"
#include "tensor.h"
#include "warp.h"
#include "warpgroup.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
// __shared__ is left undefined: such arrays are declared with DASR_SHARED (device.cuh), so that
// they can be poisoned, bounded and watched.

#define threadIdx (::dasr::emulation::machine.current->index)
#define blockIdx (::dasr::emulation::machine.block_index)
#define blockDim (::dasr::emulation::machine.block)
#define gridDim (::dasr::emulation::machine.grid)
inline constexpr int warpSize = 32;

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline float __int_as_float(int bits) { return dasr::emulation::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return dasr::emulation::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return dasr::emulation::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return dasr::emulation::bit_cast<unsigned>(value); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
using std::fma;

struct alignas(4) ushort2 {
  uint16_t x, y;
};
struct alignas(8) ushort4 {
  uint16_t x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace dasr::emulation {

inline std::map<const void*, size_t> dynamic_limits;  // kernels allowed more than 48 KB

inline size_t dynamic_limit(const void* kernel) {
  const auto found = dynamic_limits.find(kernel);
  return found == dynamic_limits.end() ? SharedMemory::kStaticLimit : found->second;
}

// The tag is a closure type, so that each declaration in each instantiation has its own array.
template <class T, class Tag>
T& static_shared(Tag) {
  static T* array = nullptr;
  static uint64_t launch = 0;
  if (launch != machine.shared.launch()) {
    launch = machine.shared.launch();
    array = static_cast<T*>(
        machine.shared.allocate_static(sizeof(T), alignof(T), settings.shared_limit));
  }
  return *array;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_bytes,
                   Arguments&&... arguments) {
  const auto beyond = [](dim3 size, unsigned x, unsigned y, unsigned z) {
    return size.x == 0 || size.y == 0 || size.z == 0 || size.x > x || size.y > y || size.z > z;
  };
  if (beyond(grid, 0x7FFFFFFF, 65535, 65535) || beyond(block, 1024, 1024, 64) ||
      static_cast<uint64_t>(block.x) * block.y * block.z > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  const size_t limit = dynamic_limit(reinterpret_cast<const void*>(kernel));
  if (dynamic_bytes > limit || dynamic_bytes > settings.shared_limit) return cudaErrorInvalidValue;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::decay_t<Parameters>...> arguments;
  } call = {kernel, {std::forward<Arguments>(arguments)...}};
  machine.run_grid(
      grid, block, dynamic_bytes,
      [](void* pointer) {
        auto* call = static_cast<Call*>(pointer);
        std::apply(call->kernel, call->arguments);
      },
      &call);
  return cudaSuccess;
}

}  // namespace dasr::emulation

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  using namespace dasr::emulation;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > settings.shared_limit) {
    return cudaErrorInvalidValue;
  }
  dynamic_limits[reinterpret_cast<const void*>(kernel)] = value;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
