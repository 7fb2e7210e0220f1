#include "cuda/aggregate_experts.h"

#include "ops/aggregate_experts_cuda.h"
#include "ops/cuda_tensors.h"

namespace dasr {
namespace {

AggregateExpertsSizes sizes_of(const Tensor& weight, const Tensor& routing) {
  AggregateExpertsSizes sizes;
  sizes.batch = routing.size(0);
  sizes.experts = routing.size(1);
  sizes.numel = 1;
  for (int64_t d = 1; d < weight.dim(); ++d) sizes.numel *= weight.size(d);
  return sizes;
}

}  // namespace

Tensor aggregate_experts_cuda(const Tensor& weight_, const Tensor& routing_weights_,
                              ScalarType dtype) {
  const DeviceGuard guard(weight_);
  const Tensor weight = to_contiguous(weight_);
  const Tensor routing = to_contiguous(routing_weights_);
  std::vector<int64_t> size = size_vector(weight);
  size[0] = routing.size(0);
  const Tensor out = empty_like_device(weight, size, dtype);
  AggregateExpertsParams params;
  static_cast<AggregateExpertsSizes&>(params) = sizes_of(weight, routing);
  params.weight = weight.const_data_ptr();
  params.routing = routing.const_data_ptr();
  params.weight_type = dtype_of(weight);
  params.routing_type = dtype_of(routing);
  params.out = out.mutable_data_ptr();
  params.out_type = dtype_of(out);
  check(aggregate_experts(params, current_stream(weight)));
  return out;
}

void aggregate_experts_gradients_cuda(const Tensor& grad, int64_t splits, const Tensor& weight,
                                      const Tensor& routing, void* grad_weight,
                                      void* grad_routing) {
  AggregateExpertsBackwardParams params;
  static_cast<AggregateExpertsSizes&>(params) = sizes_of(weight, routing);
  params.weight = weight.const_data_ptr();
  params.routing = routing.const_data_ptr();
  params.grad = grad.const_data_ptr();
  params.weight_type = dtype_of(weight);
  params.routing_type = dtype_of(routing);
  params.grad_type = dtype_of(grad);
  params.grad_splits = splits;
  params.grad_weight = grad_weight;
  params.grad_routing = grad_routing;
  const auto workspace_size =
      static_cast<int64_t>(aggregate_experts_backward_workspace_size(params));
  const Tensor workspace = empty_like_device(weight, {workspace_size}, ScalarType::Byte);
  params.workspace = workspace_size > 0 ? workspace.mutable_data_ptr() : nullptr;
  check(aggregate_experts_backward(params, current_stream(weight)));
}

std::tuple<Tensor, Tensor> aggregate_experts_backward_cuda(const Tensor& grad_output,
                                                           const Tensor& weight_,
                                                           const Tensor& routing_weights_,
                                                           std::vector<bool> output_mask) {
  const DeviceGuard guard(weight_);
  const Tensor grad = to_contiguous(grad_output);
  const Tensor weight = to_contiguous(weight_);
  const Tensor routing = to_contiguous(routing_weights_);
  const auto allocate = [](bool wanted, const Tensor& like) {
    return empty_like_device(like, wanted ? size_vector(like) : std::vector<int64_t>{0},
                             like.scalar_type());
  };
  const Tensor grad_weight = allocate(output_mask[0], weight);
  const Tensor grad_routing = allocate(output_mask[1], routing);
  aggregate_experts_gradients_cuda(grad, 1, weight, routing,
                                   output_mask[0] ? grad_weight.mutable_data_ptr() : nullptr,
                                   output_mask[1] ? grad_routing.mutable_data_ptr() : nullptr);
  return {grad_weight, grad_routing};
}

STABLE_TORCH_LIBRARY_IMPL(DASR_CUDA_NAMESPACE, DASR_CUDA_KEY, m) {
  m.impl("aggregate_experts", TORCH_BOX(&aggregate_experts_cuda));
  m.impl("aggregate_experts_backward", TORCH_BOX(&aggregate_experts_backward_cuda));
}

}  // namespace dasr
