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

// [n, O, I/g, kh, kw], of samples [first, first + n), in the type that sums are formed in; `grad`
// is the gradient of the sums.
Tensor weight_gradient(const Tensor& grad, const Tensor& input, const Tensor& weight,
                       const ConvShape& shape, int64_t first, int64_t count, bool allow_tf32);

// The sum over the first dimension of a dense tensor in float32 or float64.
Tensor sum_splits(const Tensor& partial, ScalarType type);

}  // namespace dasr
