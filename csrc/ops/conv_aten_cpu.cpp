#include "ops/conv_aten_cpu.h"

#include "cpu/epilogue.h"
#include "cpu/kernels/huge_pages.h"
#include "cpu/relayout.h"
#include "ops/aggregate_experts_cpu.h"

namespace dasr {
namespace {

using Ints = std::vector<int64_t>;

// Whether the convolution pads by itself: evenly, and images that are not empty.
bool pads_itself(const Tensor& input, const ConvOptions& options) {
  const Ints& p = options.padding;
  return p[0] == p[1] && p[2] == p[3] && input.size(2) > 0 && input.size(3) > 0;
}

Ints padding_of(const Tensor& input, const ConvOptions& options) {
  return pads_itself(input, options) ? Ints{options.padding[0], options.padding[2]} : Ints{0, 0};
}

Tensor padded(const Tensor& input, const ConvOptions& options) {
  if (pads_itself(input, options)) return input;
  const Ints& p = options.padding;
  return torch::stable::pad(input, Ints{p[2], p[3], p[0], p[1]}, "constant", 0.0);
}

Tensor fold_kernels(const Tensor& weight) {
  return reshaped(to_contiguous(weight), {weight.size(0) * weight.size(1), weight.size(2),
                                          weight.size(3), weight.size(4)});
}

bool is_dense_nhwc(const Tensor& t) {
  return t.stride(1) == 1 && t.stride(3) == t.size(1) && t.stride(2) == t.size(3) * t.stride(3) &&
         (t.size(0) == 1 || t.stride(0) == t.size(2) * t.stride(2));
}

Tensor to_nchw(const Tensor& t) {
  if (t.is_contiguous() || t.scalar_type() != ScalarType::Float || !is_dense_nhwc(t)) {
    return to_contiguous(t);
  }
  const Tensor result = empty_like_device(t, size_vector(t), ScalarType::Float);
  cpu::advise_huge_pages(result.mutable_data_ptr(), 4 * result.numel());
  cpu::nhwc_to_nchw(t.const_data_ptr<float>(), t.size(0), t.size(1), t.size(2) * t.size(3),
                    result.mutable_data_ptr<float>());
  return result;
}

// [B, C, H, W] -> [1, B * C, H, W]. A single image keeps its memory format.
Tensor fold_batch(const Tensor& t) {
  if (t.size(0) == 1) return t;
  return reshaped(to_nchw(t), {1, t.size(0) * t.size(1), t.size(2), t.size(3)});
}

// Of a tensor in NCHW.
Tensor to_format(const Tensor& t, bool channels_last) {
  if (!channels_last) return t;
  if (t.scalar_type() != ScalarType::Float) {
    return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  }
  const Tensor result = empty_like_device(t, size_vector(t), ScalarType::Float, true);
  cpu::advise_huge_pages(result.mutable_data_ptr(), 4 * result.numel());
  cpu::nchw_to_nhwc(t.const_data_ptr<float>(), t.size(0), t.size(1), t.size(2) * t.size(3),
                    result.mutable_data_ptr<float>());
  return result;
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
    const Tensor mixed_bias = to_contiguous(mixed(*kernels.bias, kernels.routing, type));
    bias = reshaped(mixed_bias, {mixed_bias.numel()});
  }
  const auto [c] =
      call_aten<Tensor>("aten::convolution", "", fold_batch(padded(cast(input, type), options)),
                        fold_kernels(weight), bias, options.stride, padding_of(input, options),
                        options.dilation, false, Ints{0, 0}, batch * options.groups);

  const bool channels_last = is_channels_last(input);
  const auto params = epilogue_params(input, weight, options, channels_last);
  std::array<int64_t, 4> strides = {params.channels * c.stride(1), c.stride(1), c.stride(2),
                                    c.stride(3)};
  Tensor from = c;
  std::optional<Tensor> output;
  if (options.upscale_factor == 1 && batch != 1 && c.is_contiguous()) {
    from = to_format(reshaped(c, output_size(input, weight, options)), channels_last);
    std::copy_n(from.strides().begin(), 4, strides.begin());
  }
  if (options.upscale_factor == 1 && is_dense(strides, params)) {
    // What follows may take the place of the sums.
    if (!options.negative_slope && !residual && !mask) return from;
    output = from;
  } else {
    output = empty_like_device(input, output_size(input, weight, options), type, channels_last);
  }
  dispatch_float_or_double(type, [&](auto zero) {
    using T = decltype(zero);
    cpu::epilogue_forward(params, from.const_data_ptr<T>(), strides.data(),
                          residual ? residual->const_data_ptr<T>() : nullptr,
                          residual ? residual->strides().data() : nullptr,
                          output->mutable_data_ptr<T>(), mask);
  });
  return *output;
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

  const bool shuffles = options.upscale_factor != 1;
  const auto params =
      epilogue_params(input, weight, options, channels_last && (batch == 1 || !shuffles));
  Tensor grad_c = grad;
  if (options.negative_slope || shuffles || options.residual_scale != 1) {
    grad_c = empty_like_device(input, {batch, channels, params.height, params.width}, type,
                               params.channels_last);
    dispatch_float_or_double(type, [&](auto zero) {
      using T = decltype(zero);
      cpu::epilogue_backward(params, grad.const_data_ptr<T>(), grad.strides().data(),
                             output ? output->const_data_ptr<T>() : nullptr,
                             saved.mask ? saved.mask->const_data_ptr<uint8_t>() : nullptr,
                             channels_last, grad_c.mutable_data_ptr<T>());
    });
  } else if (batch == 1) {
    grad_c = torch::stable::contiguous(grad, memory_format(channels_last));
  }

  const bool kernel_gradient = wanted.weight || wanted.routing;
  const bool bias_gradient = kernels.bias && (wanted.bias || wanted.routing);
  const bool output_mask[3] = {wanted.input, kernel_gradient, bias_gradient};
  const Tensor padded_input = padded(cast(input, type), options);
  auto [grad_input, grad_weight, grad_bias] = call_aten<Tensor, Tensor, Tensor>(
      "aten::convolution_backward", "", fold_batch(grad_c), fold_batch(padded_input),
      fold_kernels(weight), std::optional<Ints>(Ints{batch * channels}), options.stride,
      padding_of(input, options), options.dilation, false, Ints{0, 0}, batch * options.groups,
      torch::headeronly::HeaderOnlyArrayRef<bool>(output_mask, 3));

  Gradients grads;
  if (wanted.input) {
    if (batch != 1) {
      grad_input = reshaped(to_contiguous(grad_input), size_vector(padded_input));
    }
    if (!pads_itself(input, options)) {
      grad_input = torch::stable::narrow(grad_input, 2, options.padding[0], input.size(2));
      grad_input = torch::stable::narrow(grad_input, 3, options.padding[2], input.size(3));
    }
    grads.input = grad_input.is_contiguous() && batch != 1
                      ? to_format(grad_input, channels_last)
                      : torch::stable::contiguous(grad_input, memory_format(channels_last));
  }
  if (kernel_gradient) {
    grad_weight = reshaped(to_contiguous(grad_weight), size_vector(weight));
  }
  if (bias_gradient) grad_bias = reshaped(to_contiguous(grad_bias), {batch, channels});
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
