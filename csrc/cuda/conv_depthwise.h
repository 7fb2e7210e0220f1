// Convolutions with one input channel per group, each sample with its own kernel: forward, the
// gradient of the input, and that of the kernels. Direct sums without tensor cores: these are bound
// by memory. Any multiplier O / I, kernel, stride, dilation and padding.
#pragma once

#include "conv.h"

namespace dasr {

// Whether these kernels are meant for a shape: one input channel per group, and few output channels
// for each (with more, a matrix product on tensor cores wins), of a size that they address.
bool conv_is_depthwise(const ConvShape& shape);

// Sums run in fp32 (fp64 for float64) over input channel's multiplier, columns and rows of the
// kernel, in this order, and are rounded once.
struct ConvDepthwiseParams {
  ConvShape shape;          // groups == in_channels
  bool transposed = false;  // the gradient of the input

  ConvTensor source;                    // input [B, I, H, W] or, transposed, grad [B, O, H', W']
  const void* weight = nullptr;         // [B, O, kh, kw], dense
  DType weight_type = DType::kFloat32;  // float32 or that of source

  ConvEpilogue epilogue;  // not for a transposed one

  // [B, O / r^2, H' * r, W' * r] or, transposed, [B, I, H, W], of the source's type: every element
  // is written.
  void* out = nullptr;
  int64_t out_stride[4] = {};
};

cudaError_t conv_depthwise(const ConvDepthwiseParams& params, cudaStream_t stream);

struct ConvDepthwiseWeightParams {
  ConvShape shape;
  ConvTensor input;  // [B, I, H, W]
  ConvTensor grad;   // [B, O, H', W'], of the input's type
  // [B, O, kh, kw], dense, float32 (float64 for float64): sums in an order that depends on sizes
  // and on whether channels of grad are neighbours; every element is written.
  void* grad_weight = nullptr;
  // conv_depthwise_weight_workspace_size() bytes, 16-byte aligned, uninitialised; null if 0
  void* workspace = nullptr;
};

// Depends on the shape and on the strides and type of grad.
size_t conv_depthwise_weight_workspace_size(const ConvDepthwiseWeightParams& params);

cudaError_t conv_depthwise_weight(const ConvDepthwiseWeightParams& params, cudaStream_t stream);

}  // namespace dasr
