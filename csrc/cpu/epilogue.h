// What follows a convolution in the same operator: pixel shuffle, activation, scaled residual.
//
//   y = residual + residual_scale * act(pixel_shuffle(c, r))
//
// Channel o * r * r + dy * r + dx of c goes to channel o, row h * r + dy, column w * r + dx of y.
#pragma once

#include <cstdint>
#include <optional>

namespace dasr::cpu {

struct EpilogueParams {
  int64_t batch, channels, height, width;  // of c; y is [B, O / r^2, H * r, W * r]
  int64_t upscale_factor;                  // r
  std::optional<double> negative_slope;    // none: no activation; 0: ReLU
  double residual_scale;
  bool channels_last;  // memory order of what is written: dense NHWC, else dense NCHW
};

// `mask`, if not null, receives one bit for each element of y in memory order: act's argument > 0.
// y may be c itself, if they have the same strides.
template <typename T>
void epilogue_forward(const EpilogueParams& params,
                      const T* c,                       // [B, O, H, W]
                      const int64_t* c_strides,         // [4]
                      const T* residual,                // like y, or null
                      const int64_t* residual_strides,  // [4]
                      T* y, uint8_t* mask);

// grad_c from grad_y; the activation's sign comes from the bits of `mask` or, where that is null,
// from the saved `y`. Both are in the memory order that `output_channels_last` tells, grad_c in
// that of params.channels_last.
template <typename T>
void epilogue_backward(const EpilogueParams& params,
                       const T* grad_y,                // [B, O / r^2, H * r, W * r]
                       const int64_t* grad_y_strides,  // [4]
                       const T* y, const uint8_t* mask, bool output_channels_last, T* grad_c);

}  // namespace dasr::cpu
