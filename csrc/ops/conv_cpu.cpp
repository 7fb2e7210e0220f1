// dynamic_conv2d and per_sample_conv2d for CPU tensors: entry points and choice of implementation.

#include "ops/conv3x3_cpu.h"
#include "ops/conv_aten_cpu.h"

namespace dasr {
namespace {

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Kernels& kernels,
                                   const std::optional<Tensor>& residual_,
                                   const ConvOptions& options, bool save_mask) {
  const ScalarType type = compute_type(input);
  const std::vector<int64_t> size = output_size(input, kernels.weight, options);
  const int64_t numel = size[0] * size[1] * size[2] * size[3];
  const Tensor mask = empty_like_device(input, {save_mask ? (numel + 7) / 8 : 0}, ScalarType::Byte);
  uint8_t* bits = save_mask ? mask.mutable_data_ptr<uint8_t>() : nullptr;
  const std::optional<Tensor> residual = cast(residual_, type);
  if (numel == 0 || conv3x3_applies(input, kernels, options)) {
    const Tensor output = empty_like_device(input, size, type, is_channels_last(input));
    if (numel > 0) conv3x3_forward(input, kernels, residual, options, output, bits);
    return {cast(output, input.scalar_type()), mask};
  }
  const Tensor output = conv_aten_forward(input, kernels, residual, options, bits);
  return {cast(output, input.scalar_type()), mask};
}

Gradients backward(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                   const Saved& saved, const ConvOptions& options, const Wanted& wanted) {
  if (grad_output.numel() == 0) {
    const auto zeros = [](bool want, const Tensor& like) -> std::optional<Tensor> {
      if (!want) return std::nullopt;
      return zeros_like_device(like, size_vector(like), ScalarType::Float);
    };
    Gradients grads;
    grads.input = zeros(wanted.input, input);
    grads.weight = zeros(wanted.weight, kernels.weight);
    if (kernels.routing) grads.routing = zeros(wanted.routing, *kernels.routing);
    if (kernels.bias) grads.bias = zeros(wanted.bias, *kernels.bias);
    return grads;
  }
  if (conv3x3_applies(input, kernels, options)) {
    return conv3x3_backward(grad_output, input, kernels, saved, options, wanted);
  }
  return conv_aten_backward(grad_output, input, kernels, saved, options, wanted);
}

// In the type of the argument it is the gradient of; empty where there is none.
Tensor finish(const std::optional<Tensor>& grad, const Tensor& like) {
  return grad ? cast(*grad, like.scalar_type()) : empty_like_device(like, {0}, like.scalar_type());
}

}  // namespace

std::tuple<Tensor, Tensor> dynamic_conv2d_cpu(
    const Tensor& input, const Tensor& weight, const Tensor& routing_weights,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    int64_t groups, std::optional<double> negative_slope, double residual_scale,
    int64_t upscale_factor, bool save_mask, bool /*deterministic*/, bool /*allow_tf32*/) {
  return forward(input, {weight, routing_weights, bias}, residual,
                 {stride, padding, dilation, groups, negative_slope,
                  residual ? residual_scale : 1.0, upscale_factor},
                 save_mask);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dynamic_conv2d_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight,
    const Tensor& routing_weights, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& output, const std::optional<Tensor>& mask,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    int64_t groups, std::optional<double> negative_slope, double residual_scale,
    int64_t upscale_factor, std::vector<bool> output_mask, bool /*deterministic*/,
    bool /*allow_tf32*/) {
  const Gradients grads =
      backward(grad_output, input, {weight, routing_weights, bias}, {output, mask},
               {stride, padding, dilation, groups, negative_slope, residual_scale, upscale_factor},
               {output_mask[0], output_mask[1], output_mask[2], output_mask[3]});
  return {finish(grads.input, input), finish(grads.weight, weight),
          finish(grads.routing, routing_weights), finish(grads.bias, bias ? *bias : weight)};
}

std::tuple<Tensor, Tensor> per_sample_conv2d_cpu(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
    std::optional<double> negative_slope, double residual_scale, int64_t upscale_factor,
    bool save_mask, bool /*deterministic*/, bool /*allow_tf32*/) {
  return forward(input, {weight, std::nullopt, bias}, residual,
                 {stride, padding, dilation, groups, negative_slope,
                  residual ? residual_scale : 1.0, upscale_factor},
                 save_mask);
}

std::tuple<Tensor, Tensor, Tensor> per_sample_conv2d_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& output,
    const std::optional<Tensor>& mask, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, int64_t groups, std::optional<double> negative_slope,
    double residual_scale, int64_t upscale_factor, std::vector<bool> output_mask,
    bool /*deterministic*/, bool /*allow_tf32*/) {
  const Gradients grads =
      backward(grad_output, input, {weight, std::nullopt, bias}, {output, mask},
               {stride, padding, dilation, groups, negative_slope, residual_scale, upscale_factor},
               {output_mask[0], output_mask[1], false, output_mask[2]});
  return {finish(grads.input, input), finish(grads.weight, weight),
          finish(grads.bias, bias ? *bias : weight)};
}

STABLE_TORCH_LIBRARY_IMPL(dasr_ops, CPU, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&dynamic_conv2d_cpu));
  m.impl("dynamic_conv2d_backward", TORCH_BOX(&dynamic_conv2d_backward_cpu));
  m.impl("per_sample_conv2d", TORCH_BOX(&per_sample_conv2d_cpu));
  m.impl("per_sample_conv2d_backward", TORCH_BOX(&per_sample_conv2d_backward_cpu));
}

}  // namespace dasr
