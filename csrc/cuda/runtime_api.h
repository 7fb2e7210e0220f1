// cudaStream_t and cudaError_t for headers that both g++ and nvcc read.
#pragma once

#ifdef DASR_EMULATION
#include "../emulation/runtime_api.h"
#else
#include <cuda_runtime_api.h>
#endif

// For functions of structs that kernels take.
#ifdef __CUDACC__
#define DASR_HOST_DEVICE __host__ __device__
#else
#define DASR_HOST_DEVICE
#endif
