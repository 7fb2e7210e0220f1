// The convolutions of conv_gemm.h on Hopper's own tensor-core instruction (wgmma), where the
// kernels of 64 output channels and halos of pixels fit into shared memory together: stride 1,
// vectors of channels in fp16 or bf16. Sums run in an order that depends on nothing but the shape.
#pragma once

#include "conv_gemm.h"

namespace dasr {

// Whether this device and this build of the library take the convolution.
bool conv_wgmma_serves(const ConvGemmParams& params);

// cudaErrorInvalidValue for what is not served.
cudaError_t conv_wgmma(const ConvGemmParams& params, cudaStream_t stream);

}  // namespace dasr
