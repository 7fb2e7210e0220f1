// What kernels share: launches, shared memory, and the choice between nvcc and the emulation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef DASR_EMULATION
#include "../emulation/emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace dasr {

template <class T>
using shared_t = T;

// DASR_SHARED(tile, float[4][32]); declares a static array in shared memory,
// DASR_DYNAMIC_SHARED(memory); names the dynamic part, an array of bytes aligned to 128.
#ifdef DASR_EMULATION
#define DASR_SHARED(name, ...) auto& name = ::dasr::emulation::static_shared<__VA_ARGS__>([] {})
#define DASR_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::dasr::emulation::machine.shared.dynamic()
#else
#define DASR_SHARED(name, ...) __shared__::dasr::shared_t<__VA_ARGS__> name
#define DASR_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

// kN elements that one instruction loads or stores (two for 32 bytes); the address must be aligned.
template <class T, int kN>
struct alignas(sizeof(T) * kN < 16 ? sizeof(T) * kN : 16) Pack {
  T values[kN];
};

template <class T, int kN>
__device__ __forceinline__ Pack<T, kN> load_pack(const T* address) {
#ifdef DASR_EMULATION
  emulation::check_aligned(address, alignof(Pack<T, kN>), "vector load");
#endif
  return *reinterpret_cast<const Pack<T, kN>*>(address);
}

// nvcc splits the copy of an aggregate into stores of its elements: hence the instruction itself.
template <class T, int kN>
__device__ __forceinline__ void store_pack(T* address, const Pack<T, kN>& pack) {
#ifdef DASR_EMULATION
  emulation::check_aligned(address, alignof(Pack<T, kN>), "vector store");
  *reinterpret_cast<Pack<T, kN>*>(address) = pack;
#else
  constexpr int kWords = sizeof(pack) / 4;
  static_assert(kWords == 2 || kWords % 4 == 0);
  uint32_t words[kWords];
  memcpy(words, &pack, sizeof(pack));
  if constexpr (kWords == 2) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(words[0]), "r"(words[1])
                 : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(
                       reinterpret_cast<char*>(address) + 4 * i),
                   "r"(words[i]), "r"(words[i + 1]), "r"(words[i + 2]), "r"(words[i + 3])
                   : "memory");
    }
  }
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launch_with([[maybe_unused]] bool dependent, void (*kernel)(Parameters...), dim3 grid,
                        dim3 block, size_t shared_bytes, [[maybe_unused]] cudaStream_t stream,
                        Arguments&&... arguments) {
#ifdef DASR_EMULATION
  return emulation::launch(kernel, grid, block, shared_bytes,
                           std::forward<Arguments>(arguments)...);
#else
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  if (dependent) {
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
#endif
}

// Starts kernel(arguments...) and returns the error of the launch itself.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  return launch_with(false, kernel, grid, block, shared_bytes, stream,
                     std::forward<Arguments>(arguments)...);
}

// The same for a kernel that may start while the one before it on the stream still runs, if that
// calls allow_dependents: before wait_for_previous it reads nothing of what that kernel writes, and
// writes nothing that it reads. (Programmatic dependent launch: sm_90 and up.)
template <class... Parameters, class... Arguments>
cudaError_t launch_dependent(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                             size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  return launch_with(true, kernel, grid, block, shared_bytes, stream,
                     std::forward<Arguments>(arguments)...);
}

__device__ __forceinline__ void allow_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until the previous kernel has ended and what it wrote can be read; at once if it has.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace dasr
