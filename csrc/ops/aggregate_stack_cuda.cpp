// aggregate_experts_stack for CUDA tensors: the layers of a network in one launch.

#include "cuda/pack_experts.h"
#include "ops/aggregate_experts_cuda.h"
#include "ops/cuda_tensors.h"

namespace dasr {
namespace {

Tensor empty_strided(const Tensor& like, const std::vector<int64_t>& size,
                     const std::vector<int64_t>& stride, ScalarType type) {
  int32_t device_type = 0;
  check_status(aoti_torch_get_device_type(like.get(), &device_type), "aoti_torch_get_device_type");
  AtenTensorHandle handle = nullptr;
  check_status(aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(),
                                        stride.data(), static_cast<int32_t>(type), device_type,
                                        like.get_device_index(), &handle),
               "aoti_torch_empty_strided");
  return Tensor(handle);
}

// The result for weight [K, ...], and how the kernel is to fill it: kernels whose rows of input
// channels are multiples of 16 bytes lie in memory as [B, kh, kw, O, I/g], so that convolutions
// read them as they are; everything else is contiguous. (The fake kernel says the same.)
Tensor allocate(const Tensor& weight, int64_t batch, ScalarType type, PackExpertsLayer& layer) {
  std::vector<int64_t> size = size_vector(weight);
  size[0] = batch;
  layer.weight = weight.const_data_ptr();
  layer.weight_type = dtype_of(weight);
  const auto bytes = static_cast<int64_t>(size_of(dtype_of(type)));
  if (size.size() == 5 && size[2] * bytes % 16 == 0) {
    const int64_t matrix = size[1] * size[2];
    layer.out_channels = size[1];
    layer.group_in = size[2];
    layer.taps = static_cast<int>(size[3] * size[4]);
    layer.row_stride = size[2];
    layer.tap_stride = matrix;
    layer.batch_stride = layer.taps * matrix;
    return empty_strided(weight, size, {layer.batch_stride, size[2], 1, size[4] * matrix, matrix},
                         type);
  }
  int64_t numel = 1;
  for (size_t d = 1; d < size.size(); ++d) numel *= size[d];
  layer.dense = true;
  layer.out_channels = size.size() > 2 ? size[1] : 1;
  layer.group_in = layer.out_channels == 0 ? 0 : numel / layer.out_channels;
  layer.row_stride = layer.group_in;
  layer.batch_stride = numel;
  return empty_like_device(weight, size, type);
}

}  // namespace

std::vector<Tensor> aggregate_experts_stack_cuda(std::vector<Tensor> weight,
                                                 const Tensor& routing_weights, ScalarType dtype) {
  const DeviceGuard guard(routing_weights);
  const Tensor routing = to_contiguous(routing_weights);
  std::vector<Tensor> result;
  std::vector<PackExpertsLayer> layers;
  for (Tensor& experts : weight) {
    experts = to_contiguous(experts);
    layers.emplace_back();
    result.push_back(allocate(experts, routing.size(0), dtype, layers.back()));
    layers.back().out = result.back().mutable_data_ptr();
  }
  PackExpertsParams params;
  params.layers = layers.data();
  params.n_layers = static_cast<int64_t>(layers.size());
  params.routing = routing.const_data_ptr();
  params.routing_type = dtype_of(routing);
  params.batch = routing.size(0);
  params.experts = routing.size(1);
  params.out_type = dtype_of(dtype);
  if (!layers.empty()) check(pack_experts(params, current_stream(routing)));
  return result;
}

std::tuple<std::vector<Tensor>, Tensor> aggregate_experts_stack_backward_cuda(
    std::vector<Tensor> grad_output, std::vector<Tensor> weight, const Tensor& routing_weights,
    std::vector<bool> output_mask) {
  const DeviceGuard guard(routing_weights);
  const bool want_routing = output_mask.back();
  ScalarType acc = accumulate_type({routing_weights.scalar_type()});
  for (size_t i = 0; i < weight.size(); ++i) {
    acc = accumulate_type({acc, weight[i].scalar_type(), grad_output[i].scalar_type()});
  }
  const Tensor routing = contiguous(routing_weights, acc);
  // What each layer adds to the routing gradient, unrounded; summed in a fixed order.
  const int64_t n_layers = want_routing ? static_cast<int64_t>(weight.size()) : 0;
  const Tensor parts =
      empty_like_device(routing, {n_layers, routing.size(0), routing.size(1)}, acc);
  const int64_t part_bytes = routing.numel() * (acc == ScalarType::Double ? 8 : 4);
  std::vector<Tensor> grad_weight;
  for (size_t i = 0; i < weight.size(); ++i) {
    const Tensor experts = to_contiguous(weight[i]);
    const bool want_weight = output_mask[i];
    grad_weight.push_back(
        empty_like_device(experts, want_weight ? size_vector(experts) : std::vector<int64_t>{0},
                          experts.scalar_type()));
    char* part = want_routing ? static_cast<char*>(parts.mutable_data_ptr()) +
                                    static_cast<int64_t>(i) * part_bytes
                              : nullptr;
    aggregate_experts_gradients_cuda(to_contiguous(grad_output[i]), 1, experts, routing,
                                     want_weight ? grad_weight.back().mutable_data_ptr() : nullptr,
                                     part);
  }
  if (!want_routing) {
    return {grad_weight, empty_like_device(routing, {0}, routing_weights.scalar_type())};
  }
  const int64_t over_layers[] = {0};
  return {grad_weight, cast(torch::stable::sum(parts, over_layers), routing_weights.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(DASR_CUDA_NAMESPACE, DASR_CUDA_KEY, m) {
  m.impl("aggregate_experts_stack", TORCH_BOX(&aggregate_experts_stack_cuda));
  m.impl("aggregate_experts_stack_backward", TORCH_BOX(&aggregate_experts_stack_backward_cuda));
}

}  // namespace dasr
