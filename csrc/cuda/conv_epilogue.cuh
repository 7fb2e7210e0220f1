// What follows a convolution, on the way from its sums to memory.
#pragma once

#include "conv.h"
#include "convert.cuh"

namespace dasr {

// Sum over experts for output channel o of sample b. Experts of routing weight 0 are not read.
template <class acc_t>
__device__ __forceinline__ acc_t mixed_bias(const ConvBias& p, int out_channels, int64_t b, int o) {
  if (p.bias == nullptr) return acc_t(0);
  if (p.routing == nullptr) {
    return load_element<acc_t>(p.bias, p.bias_type, b * out_channels + o);
  }
  acc_t sum = 0;
  for (int64_t k = 0; k < p.experts; ++k) {
    const acc_t a = load_element<acc_t>(p.routing, p.routing_type, b * p.experts + k);
    if (a == 0) continue;
    sum = fma(a, load_element<acc_t>(p.bias, p.bias_type, k * out_channels + o), sum);
  }
  return sum;
}

// max(c, 0) that lets NaN through.
template <class acc_t>
__device__ __forceinline__ acc_t activate(const ConvEpilogue& p, acc_t c) {
  if (!p.activation || c > 0 || c != c) return c;
  // Not slope * c for ReLU: 0 * -inf is not a number.
  return p.negative_slope == 0 ? acc_t(0) : static_cast<acc_t>(p.negative_slope) * c;
}

// Where channel o of pixel (y, x) lies behind the pixel shuffle.
struct OutputPlace {
  int c, y, x;

  __device__ OutputPlace(int upscale, int o, int y_, int x_) : c(o), y(y_), x(x_) {
    if (upscale == 1) return;
    const int sub = o % (upscale * upscale);
    c = o / (upscale * upscale);
    y = y * upscale + sub / upscale;
    x = x * upscale + sub % upscale;
  }
  __device__ int64_t offset(int64_t b, const int64_t (&stride)[4]) const {
    return b * stride[0] + c * stride[1] + y * stride[2] + x * stride[3];
  }
};

// Sets the bit of the element at `offset` of a dense output.
__device__ __forceinline__ void mark_positive(uint32_t* mask, int64_t offset) {
  atomicOr(&mask[offset / 32], 1u << (offset % 32));
}

// One element: c is the convolution's sum with its bias.
template <class T, class acc_t>
__device__ __forceinline__ void store_output(const ConvEpilogue& p, T* data,
                                             const int64_t (&stride)[4], int64_t b, int o, int y,
                                             int x, acc_t c) {
  const OutputPlace place(p.upscale, o, y, x);
  const int64_t offset = place.offset(b, stride);
  if (p.mask != nullptr && c > 0) mark_positive(p.mask, offset);
  c = activate(p, c);
  if (p.residual.data != nullptr) {
    const acc_t r =
        load_element<acc_t>(p.residual.data, p.residual.type, place.offset(b, p.residual.stride));
    c = fma(static_cast<acc_t>(p.residual_scale), c, r);
  }
  data[offset] = Narrow<T>::from(c);
}

}  // namespace dasr
