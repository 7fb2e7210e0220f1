// cudaStream_t and cudaError_t for headers that both g++ and nvcc read.
#pragma once

#ifdef DASR_EMULATION
#include "../emulation/runtime_api.h"
#else
#include <cuda_runtime_api.h>
#endif
