// dynamic_conv2d and per_sample_conv2d for CUDA tensors: choice of kernels, memory and launches.

#include "ops/conv.h"

#include "cuda/aggregate_experts.h"
#include "cuda/conv_epilogue_backward.h"
#include "cuda/conv_gemm.h"
#include "cuda/pack_experts.h"
#include "ops/aggregate_experts_cuda.h"
#include "ops/cuda_tensors.h"

namespace dasr {
namespace {

// Samples are taken in turns where their aggregated kernels would need more than this.
constexpr int64_t kMaxKernelBytes = int64_t{256} << 20;

// Kernels sum in float32 unless the input is float64: what is wider than that is rounded first.
std::optional<Tensor> not_wider(const std::optional<Tensor>& tensor, ScalarType input) {
  if (!tensor || tensor->scalar_type() != ScalarType::Double || input == ScalarType::Double) {
    return tensor;
  }
  return cast(tensor, ScalarType::Float);
}

ConvTensor conv_tensor(const Tensor& tensor) {
  ConvTensor result;
  result.data = tensor.const_data_ptr();
  result.type = dtype_of(tensor);
  for (int d = 0; d < 4; ++d) result.stride[d] = tensor.stride(d);
  return result;
}

ConvShape conv_shape(const Tensor& input, const Tensor& weight, const ConvOptions& options) {
  ConvShape s;
  s.batch = input.size(0);
  s.groups = static_cast<int>(options.groups);
  s.in_channels = static_cast<int>(input.size(1));
  s.in_height = static_cast<int>(input.size(2));
  s.in_width = static_cast<int>(input.size(3));
  s.out_channels = static_cast<int>(weight.size(1));
  s.out_height = static_cast<int>(conv_extent(input, weight, options, 0));
  s.out_width = static_cast<int>(conv_extent(input, weight, options, 1));
  s.kernel_h = static_cast<int>(weight.size(3));
  s.kernel_w = static_cast<int>(weight.size(4));
  s.stride_h = static_cast<int>(options.stride[0]);
  s.stride_w = static_cast<int>(options.stride[1]);
  s.pad_top = static_cast<int>(options.padding[0]);
  s.pad_left = static_cast<int>(options.padding[2]);
  s.dilation_h = static_cast<int>(options.dilation[0]);
  s.dilation_w = static_cast<int>(options.dilation[1]);
  return s;
}

Tensor rows(Tensor tensor, int64_t first, int64_t count) {
  return tensor.size(0) == count ? tensor : torch::stable::narrow(tensor, 0, first, count);
}

// Kernels of samples in the form that a convolution reads, and the memory they live in.
struct Aggregated {
  Tensor memory;
  PackedKernels kernels;
};

PackedKernels packed_kernels(const Tensor& memory, int64_t batch_stride, int64_t tap_stride,
                             int64_t row_stride) {
  return {memory.const_data_ptr(), dtype_of(memory), batch_stride, tap_stride, row_stride};
}

// [B, O, I/g, kh, kw] in its own memory, samples [first, first + count).
Aggregated dense_kernels(const Kernels& kernels, ScalarType type, int64_t first, int64_t count) {
  int64_t numel = 1;
  for (int d = 1; d < 5; ++d) numel *= kernels.weight.size(d);
  if (!kernels.routing) {
    const Tensor weight = contiguous(rows(kernels.weight, first, count), type);
    return {weight, packed_kernels(weight, numel, 0, 0)};
  }
  const Tensor routing = rows(*kernels.routing, first, count);
  const Tensor mixed = aggregate_experts_cuda(kernels.weight, routing, type);
  return {mixed, packed_kernels(mixed, numel, 0, 0)};
}

// Per-sample kernels that lie in memory as packed ones would.
std::optional<PackedKernels> already_packed(const Kernels& kernels, ScalarType type) {
  const Tensor& w = kernels.weight;
  const int64_t vector = 16 / static_cast<int64_t>(size_of(dtype_of(w)));
  if (kernels.routing || w.scalar_type() != type || w.stride(2) != 1 || w.size(2) % vector != 0 ||
      reinterpret_cast<uintptr_t>(w.const_data_ptr()) % 16 != 0) {
    return std::nullopt;
  }
  const int64_t kh = w.size(3), kw = w.size(4);
  if (kh > 1 && kw > 1 && w.stride(3) != kw * w.stride(4)) return std::nullopt;
  const int64_t tap_stride = kw > 1 ? w.stride(4) : w.stride(3);
  const auto whole = [&](int64_t size, int64_t stride) {
    return size <= 1 || stride % vector == 0;
  };
  if (!whole(w.size(0), w.stride(0)) || !whole(w.size(1), w.stride(1)) ||
      !whole(kh * kw, tap_stride)) {
    return std::nullopt;
  }
  return packed_kernels(w, w.stride(0), kh * kw > 1 ? tap_stride : 0, w.stride(1));
}

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

Aggregated aggregated_kernels(const Kernels& kernels, const ConvShape& shape, ScalarType type,
                              bool transposed, int64_t first, int64_t count) {
  const Tensor& w = kernels.weight;
  if (conv_gemm_is_flat(shape, transposed, dtype_of(type))) {
    return dense_kernels(kernels, type, first, count);
  }
  if (!transposed) {
    if (auto packed = already_packed(kernels, type)) {
      packed->data = static_cast<const char*>(packed->data) +
                     first * packed->batch_stride * static_cast<int64_t>(size_of(packed->type));
      return {w, *packed};
    }
  }
  const int64_t n_rows = transposed ? shape.in_channels : shape.out_channels;
  const int64_t columns = transposed ? shape.group_out() : shape.group_in();
  const int64_t row_stride = round_up(columns, 16 / static_cast<int64_t>(size_of(dtype_of(type))));
  const Tensor memory = empty_like_device(w, {count, shape.taps(), n_rows, row_stride}, type);
  Tensor weight = torch::stable::contiguous(w);
  if (!kernels.routing) weight = rows(weight, first, count);
  PackExpertsLayer layer;
  layer.weight = weight.const_data_ptr();
  layer.weight_type = dtype_of(weight);
  layer.out = memory.mutable_data_ptr();
  layer.batch_stride = shape.taps() * n_rows * row_stride;
  layer.tap_stride = n_rows * row_stride;
  layer.row_stride = row_stride;
  layer.out_channels = shape.out_channels;
  layer.group_in = shape.group_in();
  layer.groups = shape.groups;
  layer.taps = shape.taps();
  PackExpertsParams params;
  params.layers = &layer;
  params.n_layers = 1;
  std::optional<Tensor> routing;
  if (kernels.routing) {
    routing = torch::stable::contiguous(rows(*kernels.routing, first, count));
    params.routing = routing->const_data_ptr();
    params.routing_type = dtype_of(*routing);
    params.experts = w.size(0);
  }
  params.batch = count;
  params.out_type = dtype_of(type);
  params.transposed = transposed;
  check(pack_experts(params, current_stream(w)));
  return {memory, packed_kernels(memory, layer.batch_stride, layer.tap_stride, row_stride)};
}

int64_t samples_at_once(const ConvShape& shape, ScalarType type) {
  const int64_t bytes = static_cast<int64_t>(size_of(dtype_of(type))) * shape.taps() *
                        std::max(shape.out_channels, shape.in_channels) *
                        round_up(std::max(shape.group_in(), shape.group_out()), 8);
  return std::max<int64_t>(kMaxKernelBytes / std::max<int64_t>(bytes, 1), 1);
}

// Forward with its epilogue, or the gradient of the input, by tensor cores.
void convolve(const Tensor& source, const Kernels& kernels, const ConvShape& shape, bool transposed,
              const ConvEpilogue& epilogue, bool allow_tf32, const Tensor& out) {
  const int64_t at_once = samples_at_once(shape, source.scalar_type());
  for (int64_t first = 0; first < shape.batch; first += at_once) {
    const int64_t count = std::min(at_once, shape.batch - first);
    const Aggregated aggregated =
        aggregated_kernels(kernels, shape, source.scalar_type(), transposed, first, count);
    ConvGemmParams params;
    params.shape = shape;
    params.shape.batch = count;
    params.first_sample = first;
    params.transposed = transposed;
    params.allow_tf32 = allow_tf32;
    params.source = conv_tensor(source);
    params.kernels = aggregated.kernels;
    params.epilogue = epilogue;
    params.out = out.mutable_data_ptr();
    for (int d = 0; d < 4; ++d) params.out_stride[d] = out.stride(d);
    params.multiprocessors = multiprocessors(source);
    check(conv_gemm(params, current_stream(source)));
  }
}

// A bias in the form that kernels read, and the memory it lives in.
struct Bias {
  std::optional<Tensor> bias, routing;
  ConvBias params;
};

Bias conv_bias(const Kernels& kernels, ScalarType input) {
  Bias result;
  if (!kernels.bias) return result;
  result.bias = torch::stable::contiguous(*not_wider(kernels.bias, input));
  result.params.bias = result.bias->const_data_ptr();
  result.params.bias_type = dtype_of(*result.bias);
  if (kernels.routing) {
    result.routing = torch::stable::contiguous(*not_wider(kernels.routing, input));
    result.params.routing = result.routing->const_data_ptr();
    result.params.routing_type = dtype_of(*result.routing);
    result.params.experts = result.routing->size(1);
  }
  return result;
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Kernels& kernels,
                                   const std::optional<Tensor>& residual_,
                                   const ConvOptions& options, bool save_mask, bool allow_tf32) {
  const DeviceGuard guard(input);
  const ScalarType type = input.scalar_type();
  const Tensor output = empty_like_device(input, output_size(input, kernels.weight, options), type,
                                          is_channels_last(input));
  // Bits are set one word at a time: the last one is whole.
  const int64_t mask_bytes = save_mask ? (output.numel() + 7) / 8 : 0;
  Tensor mask = empty_like_device(input, {(mask_bytes + 3) / 4 * 4}, ScalarType::Byte);
  if (save_mask) torch::stable::zero_(mask);
  const Tensor words = mask;
  if (mask_bytes % 4 != 0) mask = rows(mask, 0, mask_bytes);
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
  epilogue.mask = save_mask ? static_cast<uint32_t*>(words.mutable_data_ptr()) : nullptr;
  convolve(input, kernels, conv_shape(input, kernels.weight, options), false, epilogue, allow_tf32,
           output);
  return {output, mask};
}

// Whether something stands between the gradient of the output and that of the sums.
bool has_epilogue(const ConvOptions& options) {
  return options.negative_slope || options.upscale_factor != 1 || options.residual_scale != 1;
}

struct SumGradients {
  Tensor grad;                // [B, O, H', W'], of the convolution's sums; any strides
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
    params.mask = static_cast<const uint32_t*>(saved.mask->const_data_ptr());
  }
  params.grad_type = dtype_of(input);
  if (wants_sums && has_epilogue(options)) {
    result.grad = empty_like_device(
        input, {shape.batch, shape.out_channels, shape.out_height, shape.out_width},
        input.scalar_type(), /*channels_last=*/true);
    params.grad = result.grad.mutable_data_ptr();
  }
  if (wants_bias) {
    result.bias =
        empty_like_device(input, {shape.batch, shape.out_channels}, compute_type(input));
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

}  // namespace

std::tuple<Tensor, Tensor> dynamic_conv2d_cuda(
    const Tensor& input, const Tensor& weight, const Tensor& routing_weights,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
    int64_t groups, std::optional<double> negative_slope, double residual_scale,
    int64_t upscale_factor, bool save_mask, bool /*deterministic*/, bool allow_tf32) {
  return forward(
      input, {weight, routing_weights, bias}, residual,
      {stride, padding, dilation, groups, negative_slope, residual_scale, upscale_factor},
      save_mask, allow_tf32);
}

std::tuple<Tensor, Tensor> per_sample_conv2d_cuda(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
    std::optional<double> negative_slope, double residual_scale, int64_t upscale_factor,
    bool save_mask, bool /*deterministic*/, bool allow_tf32) {
  return forward(
      input, {weight, std::nullopt, bias}, residual,
      {stride, padding, dilation, groups, negative_slope, residual_scale, upscale_factor},
      save_mask, allow_tf32);
}

STABLE_TORCH_LIBRARY_IMPL(DASR_CUDA_NAMESPACE, DASR_CUDA_KEY, m) {
  m.impl("dynamic_conv2d", TORCH_BOX(&dynamic_conv2d_cuda));
  m.impl("per_sample_conv2d", TORCH_BOX(&per_sample_conv2d_cuda));
}

}  // namespace dasr
