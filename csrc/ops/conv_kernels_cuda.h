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

// Gradients of the kernels of some samples, to be added up over the first dimension:
// [splits, n, O, I/g, kh, kw], dense, in the type that sums are formed in.
using WeightGradients = Tensor;

// Of samples [first, first + count); `grad` is the gradient of the sums.
WeightGradients weight_gradients(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                 const ConvShape& shape, int64_t first, int64_t count,
                                 bool allow_tf32);

// How many samples are to be taken at once so that their gradients stay small.
int64_t weight_gradient_samples(const ConvShape& shape, ScalarType type);

// Writes the sums over splits to out, [n, O, I/g, kh, kw] in any floating-point type.
void sum_splits(const WeightGradients& gradients, void* out, ScalarType type);

}  // namespace dasr
