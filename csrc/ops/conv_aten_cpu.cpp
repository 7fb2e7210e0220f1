#include "ops/conv_aten_cpu.h"

#include "cpu/epilogue.h"
#include "ops/aggregate_experts_cpu.h"

namespace dasr {
namespace {

using Ints = std::vector<int64_t>;

bool pads_evenly(const ConvOptions& options) {
  return options.padding[0] == options.padding[1] && options.padding[2] == options.padding[3];
}

Ints symmetric_padding(const ConvOptions& options) {
  return pads_evenly(options) ? Ints{options.padding[0], options.padding[2]} : Ints{0, 0};
}

Tensor padded(const Tensor& input, const ConvOptions& options) {
  if (pads_evenly(options)) return input;
  const Ints& p = options.padding;
  return torch::stable::pad(input, Ints{p[2], p[3], p[0], p[1]}, "constant", 0.0);
}

// [B, C, H, W] -> [1, B * C, H, W]. A single image keeps its memory format.
Tensor fold_batch(const Tensor& tensor) {
  if (tensor.size(0) == 1) return tensor;
  return torch::stable::view(to_contiguous(tensor), Ints{1, tensor.size(0) * tensor.size(1),
                                                         tensor.size(2), tensor.size(3)});
}

Tensor fold_kernels(const Tensor& weight) {
  return torch::stable::view(
      to_contiguous(weight),
      Ints{weight.size(0) * weight.size(1), weight.size(2), weight.size(3), weight.size(4)});
}

Tensor mixed(const Tensor& tensor, const std::optional<Tensor>& routing, ScalarType type) {
  return routing ? aggregate_experts_cpu(tensor, *routing, type) : cast(tensor, type);
}

cpu::EpilogueParams epilogue_params(const Tensor& input, const Tensor& weight,
                                    const ConvOptions& options, bool channels_last) {
  return {input.size(0),
          weight.size(1),
          conv_extent(input, weight, options, 0),
          conv_extent(input, weight, options, 1),
          options.upscale_factor,
          options.negative_slope,
          options.residual_scale,
          channels_last};
}

// Of two dense tensors of one shape, in the wider of their types.
Tensor sum(const Tensor& x, const Tensor& y) {
  const ScalarType type = accumulate_type({x.scalar_type(), y.scalar_type()});
  const Tensor result = torch::stable::clone(cast(x, type));
  const Tensor other = cast(y, type);
  dispatch_float_or_double(type, [&](auto zero) {
    using T = decltype(zero);
    T* to = result.mutable_data_ptr<T>();
    for (int64_t i = 0; i < result.numel(); ++i) to[i] += other.const_data_ptr<T>()[i];
  });
  return result;
}

// Whether an [B, C, H, W] tensor of these strides is dense in a memory format.
bool is_dense(const std::array<int64_t, 4>& strides, const cpu::EpilogueParams& p) {
  if (p.channels_last) {
    return strides == std::array<int64_t, 4>{p.height * p.width * p.channels, 1,
                                             p.width * p.channels, p.channels};
  }
  return strides ==
         std::array<int64_t, 4>{p.channels * p.height * p.width, p.height * p.width, p.width, 1};
}

}  // namespace

Tensor conv_aten_forward(const Tensor& input, const Kernels& kernels,
                         const std::optional<Tensor>& residual, const ConvOptions& options,
                         uint8_t* mask) {
  const ScalarType type = compute_type(input);
  const int64_t batch = input.size(0);
  const Tensor weight = mixed(kernels.weight, kernels.routing, type);
  std::optional<Tensor> bias;
  if (kernels.bias) {
    bias =
        torch::stable::view(to_contiguous(mixed(*kernels.bias, kernels.routing, type)), Ints{-1});
  }
  const auto [c] =
      call_aten<Tensor>("aten::convolution", "", fold_batch(padded(cast(input, type), options)),
                        fold_kernels(weight), bias, options.stride, symmetric_padding(options),
                        options.dilation, false, Ints{0, 0}, batch * options.groups);

  const bool channels_last = is_channels_last(input);
  const auto params = epilogue_params(input, weight, options, channels_last);
  const std::array<int64_t, 4> strides = {params.channels * c.stride(1), c.stride(1), c.stride(2),
                                          c.stride(3)};
  const bool nothing_follows =
      !options.negative_slope && !residual && options.upscale_factor == 1 && !mask;
  if (nothing_follows && is_dense(strides, params)) {
    return batch == 1 ? c : torch::stable::view(c, output_size(input, weight, options));
  }
  const Tensor output =
      empty_like_device(input, output_size(input, weight, options), type, channels_last);
  dispatch_float_or_double(type, [&](auto zero) {
    using T = decltype(zero);
    cpu::epilogue_forward(params, c.const_data_ptr<T>(), strides.data(),
                          residual ? residual->const_data_ptr<T>() : nullptr,
                          residual ? residual->strides().data() : nullptr,
                          output.mutable_data_ptr<T>(), mask);
  });
  return output;
}

Gradients conv_aten_backward(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                             const Saved& saved, const ConvOptions& options, const Wanted& wanted) {
  const ScalarType type = compute_type(input);
  const int64_t batch = input.size(0);
  const int64_t channels = kernels.weight.size(1);
  const bool channels_last = is_channels_last(input);
  const Tensor weight = mixed(kernels.weight, kernels.routing, type);
  const Tensor grad = cast(grad_output, type);
  const std::optional<Tensor> output = cast(saved.output, type);

  const auto params = epilogue_params(input, weight, options, batch == 1 && channels_last);
  const Tensor grad_c = empty_like_device(input, {batch, channels, params.height, params.width},
                                          type, params.channels_last);
  dispatch_float_or_double(type, [&](auto zero) {
    using T = decltype(zero);
    cpu::epilogue_backward(params, grad.const_data_ptr<T>(), grad.strides().data(),
                           output ? output->const_data_ptr<T>() : nullptr,
                           saved.mask ? saved.mask->const_data_ptr<uint8_t>() : nullptr,
                           channels_last, grad_c.mutable_data_ptr<T>());
  });

  const bool kernel_gradient = wanted.weight || wanted.routing;
  const bool bias_gradient = kernels.bias && (wanted.bias || wanted.routing);
  const bool output_mask[3] = {wanted.input, kernel_gradient, bias_gradient};
  const Tensor padded_input = padded(cast(input, type), options);
  auto [grad_input, grad_weight, grad_bias] = call_aten<Tensor, Tensor, Tensor>(
      "aten::convolution_backward", "", fold_batch(grad_c), fold_batch(padded_input),
      fold_kernels(weight), std::optional<Ints>(Ints{batch * channels}), options.stride,
      symmetric_padding(options), options.dilation, false, Ints{0, 0}, batch * options.groups,
      torch::headeronly::HeaderOnlyArrayRef<bool>(output_mask, 3));

  Gradients grads;
  if (wanted.input) {
    if (batch != 1) grad_input = torch::stable::view(grad_input, size_vector(padded_input));
    if (!pads_evenly(options)) {
      grad_input = torch::stable::narrow(grad_input, 2, options.padding[0], input.size(2));
      grad_input = torch::stable::narrow(grad_input, 3, options.padding[2], input.size(3));
    }
    grads.input = torch::stable::contiguous(grad_input, memory_format(channels_last));
  }
  if (kernel_gradient) {
    grad_weight = torch::stable::view(to_contiguous(grad_weight), size_vector(weight));
  }
  if (bias_gradient) grad_bias = torch::stable::view(grad_bias, Ints{batch, channels});
  if (!kernels.routing) {
    if (wanted.weight) grads.weight = grad_weight;
    if (bias_gradient && wanted.bias) grads.bias = grad_bias;
    return grads;
  }
  if (kernel_gradient) {
    const auto [w, a] = aggregate_experts_gradients(grad_weight, kernels.weight, *kernels.routing,
                                                    wanted.weight, wanted.routing);
    if (wanted.weight) grads.weight = w;
    if (wanted.routing) grads.routing = a;
  }
  if (bias_gradient) {
    const auto [b, a] = aggregate_experts_gradients(grad_bias, *kernels.bias, *kernels.routing,
                                                    wanted.bias, wanted.routing);
    if (wanted.bias) grads.bias = b;
    if (wanted.routing) grads.routing = sum(*grads.routing, a);
  }
  return grads;
}

}  // namespace dasr
