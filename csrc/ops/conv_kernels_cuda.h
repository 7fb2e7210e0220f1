// Launches of the CUDA convolutions that the forward and the backward pass share.
#pragma once

#include "cuda/conv.h"
#include "ops/conv.h"

namespace dasr {

ConvTensor conv_tensor(const Tensor& tensor);
ConvShape conv_shape(const Tensor& input, const Tensor& weight, const ConvOptions& options);

// The convolution with what is fused behind it or, transposed, the gradient of the input (`source`
// being that of the sums), with kernels aggregated on the way.
void convolve(const Tensor& source, const Kernels& kernels, const ConvShape& shape, bool transposed,
              const ConvEpilogue& epilogue, bool allow_tf32, const Tensor& out);

}  // namespace dasr
