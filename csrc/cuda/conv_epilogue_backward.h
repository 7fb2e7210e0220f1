// The backward of what is fused behind a convolution (ConvEpilogue of conv.h): from the gradient of
// the output to that of the convolution's sums and of the biases.
#pragma once

#include "conv.h"

namespace dasr {

// With g = residual_scale * grad_output at the place behind the pixel shuffle, the gradient of a
// sum is g where the activation's argument was positive and negative_slope * g elsewhere (also for
// a slope of 0, so that NaN and 0 * Inf show). It is formed in fp32, in fp64 if one of the types is
// float64, and rounded once.
struct ConvEpilogueBackwardParams {
  // of the convolution's sums, before any pixel shuffle
  int64_t batch = 0;
  int channels = 0, height = 0, width = 0;
  int upscale = 1;
  double residual_scale = 1;  // 1 without a residual

  ConvTensor grad_output;  // [B, O / r^2, H' * r, W' * r]

  // The sign comes from the output (positive: > 0) or, where mask is not null, from the mask that
  // the forward wrote: output.stride then says how the output lay in memory. Without an activation
  // neither is read.
  bool activation = false;
  double negative_slope = 0;
  ConvTensor output;              // [B, O / r^2, H' * r, W' * r], dense
  const uint8_t* mask = nullptr;  // one bit per element

  // Every element is written; null: not wanted.
  void* grad = nullptr;  // [B, H', W', O], dense
  DType grad_type = DType::kFloat32;
  // [B, O], dense, float32 or (if one of the types is float64) float64: sums over pixels of the
  // gradient before it is rounded, in an order that depends on the sizes and on whether vectors can
  // be loaded, so that results are bit-equal from run to run.
  void* grad_bias = nullptr;
  // conv_epilogue_backward_workspace_size() bytes, 16-byte aligned, uninitialised; null if 0
  void* workspace = nullptr;
};

// Depends on sizes, types and on whether grad_bias is null; 0 when that is null.
size_t conv_epilogue_backward_workspace_size(const ConvEpilogueBackwardParams& params);

cudaError_t conv_epilogue_backward(const ConvEpilogueBackwardParams& params, cudaStream_t stream);

}  // namespace dasr
