#include "ops/conv_kernels_cuda.h"

#include <cstdlib>
#include <string_view>

#include "cuda/conv_depthwise.h"
#include "cuda/conv_gemm.h"
#include "cuda/conv_weight_grad.h"
#include "cuda/conv_wgmma.h"
#include "cuda/pack_experts.h"
#include "cuda/reduce_splits.h"
#include "ops/aggregate_experts_cuda.h"
#include "ops/cuda_tensors.h"

namespace dasr {
namespace {

// Samples are taken in turns where their aggregated kernels, or the gradients of these, would need
// more than this.
#ifdef DASR_EMULATION
constexpr int64_t kMaxKernelBytes = int64_t{1} << 20;  // little, so that tests see it happen
#else
constexpr int64_t kMaxKernelBytes = int64_t{256} << 20;
#endif

Tensor rows(Tensor tensor, int64_t first, int64_t count) {
  return tensor.size(0) == count ? tensor : torch::stable::narrow(tensor, 0, first, count);
}

// Kernels of samples in the form that a convolution reads, and the memory they live in.
struct Aggregated {
  Tensor memory;
  PackedKernels kernels;
  bool just_packed = false;  // by the latest launch on the stream
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
  const Tensor weight = to_contiguous(kernels.routing ? w : rows(w, first, count));
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
    routing = to_contiguous(rows(*kernels.routing, first, count));
    params.routing = routing->const_data_ptr();
    params.routing_type = dtype_of(*routing);
    params.experts = w.size(0);
  }
  params.batch = count;
  params.out_type = dtype_of(type);
  params.transposed = transposed;
  check(pack_experts(params, current_stream(w)));
  return {memory, packed_kernels(memory, layer.batch_stride, layer.tap_stride, row_stride), true};
}

// Whether a convolution starts while its kernels are still being packed. No report of a device has
// shown it right and faster yet: DASR_OPS_CUDA_CHAIN=1 tries it.
bool chains_launches(const Tensor& tensor) {
  const char* const wanted = std::getenv("DASR_OPS_CUDA_CHAIN");
  return wanted != nullptr && std::string_view(wanted) == "1" && compute_capability(tensor) >= 90;
}

// Where wgmma is taken unasked: forward and for the input's gradient. Nowhere, until a report of a
// GPU in benches/results says that it pays.
constexpr bool kPrefersWgmma[2] = {false, false};

// DASR_OPS_CUDA_CONV chooses for all: "wgmma" wherever it serves, or "mma" alone.
bool takes_wgmma(const ConvGemmParams& params) {
  const char* value = std::getenv("DASR_OPS_CUDA_CONV");
  const std::string_view choice(value == nullptr ? "" : value);
  STD_TORCH_CHECK(choice.empty() || choice == "wgmma" || choice == "mma",
                  "dasr_ops: DASR_OPS_CUDA_CONV must be wgmma or mma");
  const bool wanted = choice.empty() ? kPrefersWgmma[params.transposed] : choice == "wgmma";
  return wanted && conv_wgmma_serves(params);
}

int64_t samples_at_once(const ConvShape& shape, ScalarType type) {
  const int64_t bytes = static_cast<int64_t>(size_of(dtype_of(type))) * shape.taps() *
                        std::max(shape.out_channels, shape.in_channels) *
                        round_up(std::max(shape.group_in(), shape.group_out()), 8);
  return std::max<int64_t>(kMaxKernelBytes / std::max<int64_t>(bytes, 1), 1);
}

}  // namespace

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

void convolve(const Tensor& source, const Kernels& kernels, const ConvShape& shape, bool transposed,
              const ConvEpilogue& epilogue, bool allow_tf32, const Tensor& out) {
  if (conv_is_depthwise(shape)) {
    // Multiplied in the type of sums, so the mixed kernel need not be rounded to the operands'.
    const ScalarType given = kernels.weight.scalar_type();
    const bool as_given = !kernels.routing && given == source.scalar_type();
    const Aggregated aggregated =
        dense_kernels(kernels, as_given ? given : compute_type(source), 0, shape.batch);
    ConvDepthwiseParams params;
    params.shape = shape;
    params.transposed = transposed;
    params.source = conv_tensor(source);
    params.weight = aggregated.kernels.data;
    params.weight_type = aggregated.kernels.type;
    params.epilogue = epilogue;
    params.out = out.mutable_data_ptr();
    for (int d = 0; d < 4; ++d) params.out_stride[d] = out.stride(d);
    check(conv_depthwise(params, current_stream(source)));
    return;
  }
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
    params.chained = aggregated.just_packed && chains_launches(source);
    const auto launcher = takes_wgmma(params) ? &conv_wgmma : &conv_gemm;
    check(launcher(params, current_stream(source)));
  }
}

int64_t weight_gradient_samples(const ConvShape& shape, ScalarType type) {
  const int64_t bytes = int64_t{shape.out_channels} * shape.group_in() * shape.taps() *
                        (type == ScalarType::Double ? 8 : 4);
  return std::max<int64_t>(kMaxKernelBytes / std::max<int64_t>(bytes, 1), 1);
}

WeightGradients weight_gradients(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                 const ConvShape& shape_, int64_t first, int64_t count,
                                 bool allow_tf32) {
  ConvShape shape = shape_;
  shape.batch = count;
  std::vector<int64_t> size = size_vector(weight);
  size[0] = count;
  size.insert(size.begin(), 1);
  if (conv_is_depthwise(shape)) {
    ConvDepthwiseWeightParams params;
    params.shape = shape;
    params.grad = conv_tensor(rows(grad, first, count));
    params.input = conv_tensor(rows(input, first, count));
    const Tensor result = empty_like_device(input, size, compute_type(input));
    params.grad_weight = result.mutable_data_ptr();
    const Tensor workspace = empty_like_device(
        input, {static_cast<int64_t>(conv_depthwise_weight_workspace_size(params))},
        ScalarType::Byte);
    if (workspace.numel() > 0) params.workspace = workspace.mutable_data_ptr();
    check(conv_depthwise_weight(params, current_stream(input)));
    return result;
  }
  ConvWeightGradParams params;
  params.shape = shape;
  params.first_sample = first;
  params.allow_tf32 = allow_tf32;
  params.grad = conv_tensor(grad);
  params.input = conv_tensor(input);
  params.splits = conv_weight_grad_splits(shape, params.input.type, allow_tf32);
  size[0] = params.splits;
  const Tensor result = empty_like_device(input, size, compute_type(input));
  params.partial = result.mutable_data_ptr();
  check(conv_weight_grad(params, current_stream(input)));
  return result;
}

void sum_splits(const WeightGradients& gradients, void* out, ScalarType type) {
  ReduceSplitsParams params;
  params.partial = gradients.const_data_ptr();
  params.partial_type = dtype_of(gradients);
  params.splits = gradients.size(0);
  params.numel = gradients.numel() / params.splits;
  params.out = out;
  params.out_type = dtype_of(type);
  check(reduce_splits(params, current_stream(gradients)));
}

}  // namespace dasr
