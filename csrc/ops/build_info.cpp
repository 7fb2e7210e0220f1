// What dasr_ops/_extension.py asks of the library: what it was built from and with.
#ifdef DASR_OPS_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "cpu/kernels/isa.h"

#define DASR_EXPORT extern "C" __attribute__((visibility("default")))

// Found by searching the file, so that a stale library need not be loaded to be recognised.
extern "C" __attribute__((used)) const char dasr_ops_source_hash[] =
    "dasr_ops-source-hash:" DASR_OPS_SOURCE_HASH;

DASR_EXPORT const char* dasr_ops_build_info() {
  return "{\"torch\": \"" DASR_OPS_TORCH_VERSION "\", \"cuda\": \"" DASR_OPS_CUDA_VERSION
         "\", \"cuda_archs\": \"" DASR_OPS_CUDA_ARCHS "\"}";
}

// The instruction set that the CPU kernels run in.
DASR_EXPORT const char* dasr_ops_cpu_isa() {
  return dasr::cpu::isa_name(dasr::cpu::isa_choice().isa);
}

// 13000 for CUDA 13.0; 0 without a driver, or in a build without CUDA.
DASR_EXPORT int dasr_ops_cuda_driver_version() {
  int version = 0;
#ifdef DASR_OPS_WITH_CUDA
  if (cudaDriverGetVersion(&version) != cudaSuccess) version = 0;
#endif
  return version;
}
