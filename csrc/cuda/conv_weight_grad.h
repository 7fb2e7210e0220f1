// Gradient of the kernels of a per-sample convolution:
//   dW[b, o, i, ty, tx] = sum over pixels (y, x) of grad[b, o, y, x]
//                         * input[b, i, y * stride_h + ty * dilation_h - pad_top, ...]
// as a matrix product whose reduction runs over pixels, split over blocks.
#pragma once

#include "conv.h"

namespace dasr {

struct ConvWeightGradParams {
  ConvShape shape;          // of the forward convolution
  bool allow_tf32 = false;  // fp32 operands may be rounded to tf32

  // Of one type, any strides.
  ConvTensor grad;   // [B, O, H', W'], of the convolution's sums
  ConvTensor input;  // [B, I, H, W]

  // [splits, n, O, I/g, kh, kw] for the n = shape.batch samples computed, in fp32 (fp64 for fp64),
  // to be added up over splits; every element is written.
  void* partial = nullptr;
  int64_t splits = 1;  // conv_weight_grad_splits
  // shape.batch samples are computed, from this one of the tensors on.
  int64_t first_sample = 0;
};

// Of the pixels of a sample. Depends on the shape and the type alone: the order of sums does.
int64_t conv_weight_grad_splits(const ConvShape& shape, DType type, bool allow_tf32);

cudaError_t conv_weight_grad(const ConvWeightGradParams& params, cudaStream_t stream);

}  // namespace dasr
