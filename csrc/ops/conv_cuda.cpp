// dynamic_conv2d and per_sample_conv2d for CUDA tensors.

#include "cuda/conv_epilogue_backward.h"
#include "ops/aggregate_experts_cuda.h"
#include "ops/conv_kernels_cuda.h"
#include "ops/conv_operators.h"
#include "ops/cuda_tensors.h"

namespace dasr {
namespace {

// Kernels sum in float32 unless the input is float64: what is wider than that is rounded first.
std::optional<Tensor> not_wider(const std::optional<Tensor>& tensor, ScalarType input) {
  if (!tensor || tensor->scalar_type() != ScalarType::Double || input == ScalarType::Double) {
    return tensor;
  }
  return cast(tensor, ScalarType::Float);
}

// A bias in the form that kernels read, and the memory it lives in.
struct Bias {
  std::optional<Tensor> bias, routing;
  ConvBias params;
};

Bias conv_bias(const Kernels& kernels, ScalarType input) {
  Bias result;
  if (!kernels.bias) return result;
  result.bias = to_contiguous(*not_wider(kernels.bias, input));
  result.params.bias = result.bias->const_data_ptr();
  result.params.bias_type = dtype_of(*result.bias);
  if (kernels.routing) {
    result.routing = to_contiguous(*not_wider(kernels.routing, input));
    result.params.routing = result.routing->const_data_ptr();
    result.params.routing_type = dtype_of(*result.routing);
    result.params.experts = result.routing->size(1);
  }
  return result;
}

Output forward(const Tensor& input, const Kernels& kernels, const std::optional<Tensor>& residual_,
               const ConvOptions& options, bool save_mask, const Switches& switches) {
  const DeviceGuard guard(input);
  const ScalarType type = input.scalar_type();
  const Tensor output = empty_like_device(input, output_size(input, kernels.weight, options), type,
                                          is_channels_last(input));
  std::optional<Tensor> mask, words;
  if (save_mask) {
    // Bits are set one word at a time: the last one is whole.
    const int64_t mask_bytes = (output.numel() + 7) / 8;
    words = zeros_like_device(input, {(mask_bytes + 3) / 4 * 4}, ScalarType::Byte);
    mask = mask_bytes % 4 == 0 ? words : torch::stable::narrow(*words, 0, 0, mask_bytes);
  }
  if (output.numel() == 0) return {output, mask};

  const Bias bias = conv_bias(kernels, type);
  const std::optional<Tensor> residual = not_wider(residual_, type);
  ConvEpilogue epilogue;
  epilogue.bias = bias.params;
  epilogue.upscale = static_cast<int>(options.upscale_factor);
  epilogue.activation = options.negative_slope.has_value();
  epilogue.negative_slope = options.negative_slope.value_or(0);
  if (residual) epilogue.residual = conv_tensor(*residual);
  epilogue.residual_scale = options.residual_scale;
  epilogue.mask = save_mask ? static_cast<uint32_t*>(words->mutable_data_ptr()) : nullptr;
  convolve(input, kernels, conv_shape(input, kernels.weight, options), false, epilogue,
           switches.fast_fp32, output);
  return {output, mask};
}

// Whether something stands between the gradient of the output and that of the sums.
bool has_epilogue(const ConvOptions& options) {
  return options.negative_slope || options.upscale_factor != 1 || options.residual_scale != 1;
}

struct SumGradients {
  Tensor grad;                 // [B, O, H', W'], of the convolution's sums; any strides
  std::optional<Tensor> bias;  // [B, O], in the type that sums are formed in
};

SumGradients undo_epilogue(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                           const Saved& saved, const ConvOptions& options, bool wants_sums,
                           bool wants_bias) {
  const ConvShape shape = conv_shape(input, kernels.weight, options);
  SumGradients result{grad_output, std::nullopt};
  ConvEpilogueBackwardParams params;
  params.batch = shape.batch;
  params.channels = shape.out_channels;
  params.height = shape.out_height;
  params.width = shape.out_width;
  params.upscale = static_cast<int>(options.upscale_factor);
  params.residual_scale = options.residual_scale;
  params.grad_output = conv_tensor(grad_output);
  params.activation = options.negative_slope.has_value();
  params.negative_slope = options.negative_slope.value_or(0);
  if (saved.output) params.output = conv_tensor(*saved.output);
  if (saved.mask) {
    // Only the order of the dense output matters.
    const auto size = output_size(input, kernels.weight, options);
    const bool channels_last = is_channels_last(input);
    const int64_t c = size[1], h = size[2], w = size[3];
    const int64_t stride[4] = {c * h * w, channels_last ? 1 : h * w, channels_last ? w * c : w,
                               channels_last ? c : 1};
    std::copy(stride, stride + 4, params.output.stride);
    params.mask = static_cast<const uint8_t*>(saved.mask->const_data_ptr());
  }
  params.grad_type = dtype_of(input);
  if (wants_sums && has_epilogue(options)) {
    result.grad = empty_like_device(
        input, {shape.batch, shape.out_channels, shape.out_height, shape.out_width},
        input.scalar_type(), /*channels_last=*/true);
    params.grad = result.grad.mutable_data_ptr();
  }
  if (wants_bias) {
    result.bias = empty_like_device(input, {shape.batch, shape.out_channels}, compute_type(input));
    params.grad_bias = result.bias->mutable_data_ptr();
  }
  if (params.grad == nullptr && params.grad_bias == nullptr) return result;
  const Tensor workspace = empty_like_device(
      input, {static_cast<int64_t>(conv_epilogue_backward_workspace_size(params))},
      ScalarType::Byte);
  if (workspace.numel() > 0) params.workspace = workspace.mutable_data_ptr();
  check(conv_epilogue_backward(params, current_stream(input)));
  return result;
}

// The stable ABI has no addition.
Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1); }

// [B, O, I/g, kh, kw] in the kernels' type, or that of sums where that is narrower.
Tensor per_sample_gradient(const Tensor& grad, const Tensor& input, const Kernels& kernels,
                           const ConvShape& shape, const Switches& switches) {
  const ScalarType type = kernels.weight.scalar_type() == ScalarType::Double
                              ? compute_type(input)
                              : kernels.weight.scalar_type();
  const Tensor result = empty_like_device(input, size_vector(kernels.weight), type);
  const int64_t sample_bytes = int64_t{shape.out_channels} * shape.group_in() * shape.taps() *
                               static_cast<int64_t>(size_of(dtype_of(type)));
  const int64_t at_once = weight_gradient_samples(shape, compute_type(input));
  for (int64_t first = 0; first < shape.batch; first += at_once) {
    const int64_t count = std::min(at_once, shape.batch - first);
    const WeightGradients parts =
        weight_gradients(grad, input, kernels.weight, shape, first, count, switches.fast_fp32);
    if (parts.size(0) == 1 && count == shape.batch && parts.scalar_type() == type) {
      return torch::stable::view(parts, size_vector(kernels.weight));
    }
    sum_splits(parts, static_cast<char*>(result.mutable_data_ptr()) + first * sample_bytes, type);
  }
  return result;
}

struct ExpertGradients {
  std::optional<Tensor> weight;   // [K, O, I/g, kh, kw]
  std::optional<Tensor> routing;  // [B, K], in routing's type
};

// routing: dense, in the type that sums over experts are formed in.
ExpertGradients expert_gradients(const Tensor& grad, const Tensor& input, const Tensor& experts,
                                 Tensor routing, const ConvShape& shape, const Wanted& wanted,
                                 const Switches& switches) {
  const int64_t at_once = weight_gradient_samples(shape, compute_type(input));
  // What is added up in several steps is rounded after the last.
  const bool in_turns = at_once < shape.batch;
  const Tensor weight =
      contiguous(experts, in_turns ? accumulate_type({experts.scalar_type(), routing.scalar_type()})
                                   : experts.scalar_type());
  ExpertGradients result;
  if (wanted.routing) {
    result.routing = empty_like_device(routing, size_vector(routing), routing.scalar_type());
  }
  const int64_t row_bytes =
      routing.size(1) * static_cast<int64_t>(size_of(dtype_of(routing.scalar_type())));
  for (int64_t first = 0; first < shape.batch; first += at_once) {
    const int64_t count = std::min(at_once, shape.batch - first);
    const WeightGradients parts =
        weight_gradients(grad, input, experts, shape, first, count, switches.fast_fp32);
    std::optional<Tensor> sum;
    if (wanted.weight) sum = empty_like_device(weight, size_vector(weight), weight.scalar_type());
    aggregate_experts_gradients_cuda(
        parts, parts.size(0), weight, torch::stable::narrow(routing, 0, first, count),
        sum ? sum->mutable_data_ptr() : nullptr,
        wanted.routing ? static_cast<char*>(result.routing->mutable_data_ptr()) + first * row_bytes
                       : nullptr);
    if (sum) result.weight = result.weight ? add(*result.weight, *sum) : *sum;
  }
  return result;
}

Gradients backward(const Tensor& grad_output_, const Tensor& input, const Kernels& kernels,
                   const Saved& saved, const ConvOptions& options, const Wanted& wanted,
                   const Switches& switches) {
  const DeviceGuard guard(input);
  const Tensor grad_output = cast(grad_output_, input.scalar_type());
  const ConvShape shape = conv_shape(input, kernels.weight, options);
  const bool wants_kernel = wanted.weight || wanted.routing;
  const bool wants_bias = kernels.bias && (wanted.bias || wanted.routing);
  const SumGradients sums = undo_epilogue(grad_output, input, kernels, saved, options,
                                          wanted.input || wants_kernel, wants_bias);
  Gradients grads;
  if (wanted.input) {
    grads.input =
        empty_like_device(input, size_vector(input), input.scalar_type(), is_channels_last(input));
    convolve(sums.grad, kernels, shape, true, {}, switches.fast_fp32, *grads.input);
  }
  if (!kernels.routing) {
    if (wants_kernel)
      grads.weight = per_sample_gradient(sums.grad, input, kernels, shape, switches);
    if (wants_bias) grads.bias = sums.bias;
    return grads;
  }
  // Both parts of the routing gradient are rounded once, after they are added.
  const Tensor routing = contiguous(
      *kernels.routing, accumulate_type({kernels.routing->scalar_type(), compute_type(input)}));
  std::optional<Tensor> from_kernel, from_bias;
  if (wants_kernel) {
    const ExpertGradients experts =
        expert_gradients(sums.grad, input, kernels.weight, routing, shape, wanted, switches);
    grads.weight = experts.weight;
    from_kernel = experts.routing;
  }
  if (wants_bias) {
    const auto [b, a] = aggregate_experts_backward_cuda(*sums.bias, *kernels.bias, routing,
                                                        {wanted.bias, wanted.routing});
    if (wanted.bias) grads.bias = b;
    if (wanted.routing) from_bias = a;
  }
  if (wanted.routing) grads.routing = from_bias ? add(*from_kernel, *from_bias) : *from_kernel;
  return grads;
}

using Operators = ConvOperators<forward, backward>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DASR_CUDA_NAMESPACE, DASR_CUDA_KEY, m) {
  m.impl("conv2d_inference", TORCH_BOX(&Operators::conv2d_inference));
  m.impl("dynamic_conv2d", TORCH_BOX(&Operators::dynamic_conv2d));
  m.impl("dynamic_conv2d_backward", TORCH_BOX(&Operators::dynamic_conv2d_backward));
  m.impl("per_sample_conv2d", TORCH_BOX(&Operators::per_sample_conv2d));
  m.impl("per_sample_conv2d_backward", TORCH_BOX(&Operators::per_sample_conv2d_backward));
}

}  // namespace dasr
