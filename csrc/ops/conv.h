// What the implementations of dynamic_conv2d and per_sample_conv2d share.
#pragma once

#include "ops/tensors.h"

namespace dasr {

struct ConvOptions {
  std::vector<int64_t> stride, padding, dilation;  // padding: top, bottom, left, right
  int64_t groups;
  std::optional<double> negative_slope;  // none: no activation; 0: ReLU
  double residual_scale;
  int64_t upscale_factor;
};

// Experts with routing weights or, without routing weights, one kernel for each sample.
struct Kernels {
  Tensor weight;                  // [K, O, I/g, kh, kw], or [B, O, I/g, kh, kw]
  std::optional<Tensor> routing;  // [B, K]
  std::optional<Tensor> bias;     // [K, O], or [B, O]
};

// Which gradients are asked for; the others stay undefined.
struct Wanted {
  bool input, weight, routing, bias;
};

struct Gradients {
  std::optional<Tensor> input, weight, routing, bias;
};

struct Switches {
  bool deterministic;  // all results are, run to run, in any case
  // Products of fp32 operands may be formed less exactly: in tf32 on CUDA, in larger Winograd tiles
  // on the CPU.
  bool fast_fp32;
};

struct Output {
  Tensor output;
  std::optional<Tensor> mask;  // bits of the activation's signs, if they are to be saved
};

// What the backward pass keeps of the forward pass to tell the activation's sign: one of the two.
struct Saved {
  std::optional<Tensor> output, mask;
};

inline int64_t conv_extent(const Tensor& input, const Tensor& weight, const ConvOptions& options,
                           int d) {
  const int64_t padded = input.size(2 + d) + options.padding[2 * d] + options.padding[2 * d + 1];
  const int64_t kernel = options.dilation[d] * (weight.size(3 + d) - 1) + 1;
  return (padded - kernel) / options.stride[d] + 1;
}

// [B, O/r^2, H'*r, W'*r]
inline std::vector<int64_t> output_size(const Tensor& input, const Tensor& weight,
                                        const ConvOptions& options) {
  const int64_t r = options.upscale_factor;
  return {input.size(0), weight.size(1) / (r * r), conv_extent(input, weight, options, 0) * r,
          conv_extent(input, weight, options, 1) * r};
}

// Convolutions are computed in float32, whatever narrower type they come in.
inline ScalarType compute_type(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace dasr
