// What the launchers of convolution kernels share: sizes, tensors and what is fused behind them.
//
// For all of them: the calls are asynchronous on `stream`, allocate nothing and never synchronise,
// so they can be captured in a CUDA graph. The caller makes the tensors' device current and checks
// shapes; a launcher returns the error of its own launches. Outputs overlap nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "runtime_api.h"

namespace dasr {

// Sizes of one convolution of each sample with its own kernel. The rest of the padding, bottom and
// right, follows from the extents.
struct ConvShape {
  int64_t batch = 0;
  int groups = 1;
  int in_channels = 0, in_height = 0, in_width = 0;
  int out_channels = 0, out_height = 0, out_width = 0;  // before any pixel shuffle
  int kernel_h = 1, kernel_w = 1;
  int stride_h = 1, stride_w = 1;
  int pad_top = 0, pad_left = 0;
  int dilation_h = 1, dilation_w = 1;

  DASR_HOST_DEVICE int group_in() const { return in_channels / groups; }
  DASR_HOST_DEVICE int group_out() const { return out_channels / groups; }
  DASR_HOST_DEVICE int taps() const { return kernel_h * kernel_w; }
};

// [B, C, H, W] anywhere in memory; strides in elements, any sign, also 0.
struct ConvTensor {
  const void* data = nullptr;
  DType type = DType::kFloat32;
  int64_t stride[4] = {};
};

// Kernels as matrices, one for each sample and tap: element (b, tap, n, k) lies at
// b * batch_stride + tap * tap_stride + n * row_stride + k. Rows start at multiples of 16 bytes and
// are zero from the last k to the next such multiple. In a forward convolution n is the output
// channel (over all groups) and k the input channel within its group; for the input's gradient n is
// the input channel and k the output channel within the group.
struct PackedKernels {
  const void* data = nullptr;
  DType type = DType::kFloat32;
  int64_t batch_stride = 0, tap_stride = 0, row_stride = 0;
};

// bias [K, O] mixed by routing [B, K]; without routing [B, O]. Dense. No bias: null.
struct ConvBias {
  const void* bias = nullptr;
  const void* routing = nullptr;
  DType bias_type = DType::kFloat32;
  DType routing_type = DType::kFloat32;
  int64_t experts = 0;
};

// y = act(pixel_shuffle(c, upscale)); with a residual: y = residual + residual_scale * y.
struct ConvEpilogue {
  ConvBias bias;
  int upscale = 1;
  bool activation = false;
  double negative_slope = 0;  // 0: ReLU
  ConvTensor residual;        // [B, O / r^2, H' * r, W' * r]; data is null without one
  double residual_scale = 1;
  // One bit per element of a dense output, in memory order: whether the activation's argument was
  // positive. Zeros before the launch, a multiple of 4 bytes. Null: not wanted.
  uint32_t* mask = nullptr;
};

}  // namespace dasr
