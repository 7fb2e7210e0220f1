// Fused dynamic convolution on the CPU in fp32. Free of PyTorch.
//
//   c[b] = conv2d(input[b], sum_k routing[b,k] weight[k]) + sum_k routing[b,k] bias[k]
//   output = residual + residual_scale * act(pixel_shuffle(c, upscale_factor))
//
// Legal: every size >= 0, kernels, strides and dilations >= 1, paddings >= 0, any memory strides,
// upscale_factor >= 1 whose square divides out_channels, and a padded input that the dilated kernel
// fits into (conv_supported tells). Groups that pixel shuffle does not mix. Results do not
// depend on the number of threads. The only exception thrown is std::bad_alloc.
#pragma once

#include <cstdint>

namespace dasr {
namespace cpu {

// How the caller's threads are reached. parallel_for splits [begin, end) into ranges of at least
// `grain`, calls fn(range begin, range end, ctx) for each, and returns when all have returned;
// fn does not throw. A null parallel_for means one thread.
struct ThreadPool {
  int num_threads = 1;
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain,
                       void (*fn)(int64_t begin, int64_t end, void* ctx), void* ctx) = nullptr;
};

// Dense layouts of what the kernels write.
enum class Layout { kNCHW, kNHWC };

enum class Activation { kNone, kLeakyRelu };

// One dimension of a convolution.
struct ConvAxis {
  int64_t size = 0;  // of the input
  int64_t kernel = 3;
  int64_t stride = 1;
  int64_t dilation = 1;
  int64_t pad_before = 0;
  int64_t pad_after = 0;

  // Always inlined: isa.h says why.
  __attribute__((always_inline)) int64_t reach() const { return dilation * (kernel - 1) + 1; }
  __attribute__((always_inline)) int64_t output() const {
    return (size + pad_before + pad_after - reach()) / stride + 1;
  }
};

// B batch, I input channels, O output channels of the convolution, K experts, r upscale factor,
// H' x W' its output, C = O / (r * r), g groups. Memory strides are in elements and in the order
// batch, channel, row, column.
struct ConvParams {
  int64_t batch = 0;
  int64_t in_channels = 0;
  int64_t out_channels = 0;
  ConvAxis y, x;
  int64_t groups = 1;   // g: must divide I and C
  int64_t experts = 0;  // 0: weight and bias already hold one kernel per sample, no routing
  int64_t upscale_factor = 1;
  Activation activation = Activation::kNone;
  float negative_slope = 0.0f;  // of kLeakyRelu; 0 is ReLU
  float residual_scale = 1.0f;  // applies without a residual too
  bool precise = false;         // as exact as a direct convolution: F(2x2,3x3), not F(4x4,3x3)
                                // or F(2x2,5x5)
  Layout output_layout = Layout::kNCHW;

  // inputs
  const float* input = nullptr;  // [B, I, H, W]; a channel or column stride of 1 is fast
  int64_t input_strides[4] = {};
  const float* weight = nullptr;    // [K, O, I/g, kh, kw], or [B, O, I/g, kh, kw] without experts
  const float* routing = nullptr;   // [B, K]; experts of weight exactly 0 are not read
  const float* bias = nullptr;      // [K, O], or [B, O] without experts; null: none
  const float* residual = nullptr;  // [B, C, H'r, W'r]; null: none
  int64_t residual_strides[4] = {};

  // outputs
  float* output = nullptr;       // [B, C, H'r, W'r], dense in output_layout
  uint8_t* sign_mask = nullptr;  // [ceil(numel(output) / 8)]; null: not wanted. Bit i % 8 of byte
                                 // i / 8: the value before the activation of the i-th element
                                 // of output, in memory order, is > 0

  // O == I groups of one channel each.
  __attribute__((always_inline)) bool depthwise() const {
    return groups > 1 && groups == in_channels && groups == out_channels && upscale_factor == 1;
  }
};

// output, residual and sign_mask of the base are not used. With an activation, its derivative
// comes from saved_output (legal without residual, residual_scale > 0 and slope >= 0) or from
// saved_sign_mask; one of the two is required. output_layout is the layout of these two.
// Each result is computed only if its pointer is not null.
struct ConvBackwardParams : ConvParams {
  // inputs
  const float* grad_output = nullptr;  // [B, C, H'r, W'r]; fast in the strides of the output
  int64_t grad_output_strides[4] = {};
  const float* saved_output = nullptr;       // [B, C, H'r, W'r], dense in output_layout
  const uint8_t* saved_sign_mask = nullptr;  // as written by the forward

  // outputs
  float* grad_input = nullptr;  // [B, I, H, W], dense in grad_input_layout
  Layout grad_input_layout = Layout::kNCHW;
  float* grad_weight = nullptr;   // shape of weight
  float* grad_routing = nullptr;  // [B, K]; includes the bias term if bias is not null
  float* grad_bias = nullptr;     // shape of bias
};

bool conv_supported(const ConvParams& params);

void conv_forward(const ConvParams& params, const ThreadPool& pool);

void conv_backward(const ConvBackwardParams& params, const ThreadPool& pool);

}  // namespace cpu
}  // namespace dasr
