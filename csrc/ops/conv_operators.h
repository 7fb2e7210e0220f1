// The five convolution operators over one pair of implementations.
#pragma once

#include "ops/conv.h"

namespace dasr {

using ConvForward = Output (*)(const Tensor& input, const Kernels& kernels,
                               const std::optional<Tensor>& residual, const ConvOptions& options,
                               bool save_mask, const Switches& switches);
// grad_output has elements; only what is wanted and exists is formed, in any floating-point type.
using ConvBackward = Gradients (*)(const Tensor& grad_output, const Tensor& input,
                                   const Kernels& kernels, const Saved& saved,
                                   const ConvOptions& options, const Wanted& wanted,
                                   const Switches& switches);

template <ConvForward kForward, ConvBackward kBackward>
struct ConvOperators {
  using Ints = std::vector<int64_t>;
  using Optional = std::optional<Tensor>;

  static std::tuple<Tensor, Tensor> dynamic_conv2d(
      const Tensor& input, const Tensor& weight, const Tensor& routing_weights,
      const Optional& bias, const Optional& residual, Ints stride, Ints padding, Ints dilation,
      int64_t groups, std::optional<double> negative_slope, double residual_scale,
      int64_t upscale_factor, bool save_mask, bool deterministic, bool fast_fp32) {
    return finish(kForward(input, {weight, routing_weights, bias}, residual,
                           {stride, padding, dilation, groups, negative_slope,
                            residual ? residual_scale : 1.0, upscale_factor},
                           save_mask, {deterministic, fast_fp32}));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> dynamic_conv2d_backward(
      const Tensor& grad_output, const Tensor& input, const Tensor& weight,
      const Tensor& routing_weights, const Optional& bias, const Optional& output,
      const Optional& mask, Ints stride, Ints padding, Ints dilation, int64_t groups,
      std::optional<double> negative_slope, double residual_scale, int64_t upscale_factor,
      std::vector<bool> output_mask, bool deterministic, bool fast_fp32) {
    const Gradients grads = backward(
        grad_output, input, {weight, routing_weights, bias}, {output, mask},
        {stride, padding, dilation, groups, negative_slope, residual_scale, upscale_factor},
        {output_mask[0], output_mask[1], output_mask[2], output_mask[3]},
        {deterministic, fast_fp32});
    return {finish(grads.input, input), finish(grads.weight, weight),
            finish(grads.routing, routing_weights), finish(grads.bias, bias ? *bias : weight)};
  }

  static std::tuple<Tensor, Tensor> per_sample_conv2d(
      const Tensor& input, const Tensor& weight, const Optional& bias, const Optional& residual,
      Ints stride, Ints padding, Ints dilation, int64_t groups,
      std::optional<double> negative_slope, double residual_scale, int64_t upscale_factor,
      bool save_mask, bool deterministic, bool fast_fp32) {
    return finish(kForward(input, {weight, std::nullopt, bias}, residual,
                           {stride, padding, dilation, groups, negative_slope,
                            residual ? residual_scale : 1.0, upscale_factor},
                           save_mask, {deterministic, fast_fp32}));
  }

  static std::tuple<Tensor, Tensor, Tensor> per_sample_conv2d_backward(
      const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Optional& bias,
      const Optional& output, const Optional& mask, Ints stride, Ints padding, Ints dilation,
      int64_t groups, std::optional<double> negative_slope, double residual_scale,
      int64_t upscale_factor, std::vector<bool> output_mask, bool deterministic, bool fast_fp32) {
    const Gradients grads = backward(
        grad_output, input, {weight, std::nullopt, bias}, {output, mask},
        {stride, padding, dilation, groups, negative_slope, residual_scale, upscale_factor},
        {output_mask[0], output_mask[1], false, output_mask[2]}, {deterministic, fast_fp32});
    return {finish(grads.input, input), finish(grads.weight, weight),
            finish(grads.bias, bias ? *bias : weight)};
  }

  // Either of them without anything to differentiate. `geometry`: see the schema.
  static Tensor conv2d_inference(const Tensor& input, const Tensor& weight,
                                 const Optional& routing_weights, const Optional& bias,
                                 const Optional& residual, Ints geometry,
                                 std::optional<double> negative_slope, double residual_scale) {
    STD_TORCH_CHECK(geometry.size() == 12, "dasr_ops: geometry: expected 12 integers, got ",
                    geometry.size());
    const int64_t* g = geometry.data();
    return kForward(input, {weight, routing_weights, bias}, residual,
                    {{g, g + 2},
                     {g + 2, g + 6},
                     {g + 6, g + 8},
                     g[8],
                     negative_slope,
                     residual ? residual_scale : 1.0,
                     g[9]},
                    false, {g[10] != 0, g[11] != 0})
        .output;
  }

 private:
  static std::tuple<Tensor, Tensor> finish(const Output& result) {
    return {result.output,
            result.mask ? *result.mask : empty_like_device(result.output, {0}, ScalarType::Byte)};
  }

  static Gradients backward(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                            const Saved& saved, const ConvOptions& options, const Wanted& wanted,
                            const Switches& switches) {
    if (grad_output.numel() > 0) {
      return kBackward(grad_output, input, kernels, saved, options, wanted, switches);
    }
    const auto zeros = [](bool want, const Tensor& like) -> Optional {
      if (!want) return std::nullopt;
      return zeros_like_device(like, size_vector(like), like.scalar_type());
    };
    Gradients grads;
    if (wanted.input) {
      grads.input = zeros_like_device(input, size_vector(input), input.scalar_type(),
                                      is_channels_last(input));
    }
    grads.weight = zeros(wanted.weight, kernels.weight);
    if (kernels.routing) grads.routing = zeros(wanted.routing, *kernels.routing);
    if (kernels.bias) grads.bias = zeros(wanted.bias, *kernels.bias);
    return grads;
  }

  // In the type of the argument it is the gradient of; empty where there is none.
  static Tensor finish(const Optional& grad, const Tensor& like) {
    return grad ? cast(*grad, like.scalar_type())
                : empty_like_device(like, {0}, like.scalar_type());
  }
};

}  // namespace dasr
