#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/aggregate_experts.h"
#include "ops/status.h"
#include "ops/tensors.h"

// Exported by CUDA builds of torch alone; weak, so that one binary loads beside CPU builds too.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace dasr {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "dasr_ops: this torch does not export the current CUDA stream");
  void* stream = nullptr;
  check_status(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream),
               "aoti_torch_get_current_cuda_stream");
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "dasr_ops: CUDA: ", cudaGetErrorString(error));
}

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "dasr_ops: expected a floating-point tensor");
  }
}

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
  const torch::stable::accelerator::DeviceGuard guard(weight_.get_device_index());
  const Tensor weight = torch::stable::contiguous(weight_);
  const Tensor routing = torch::stable::contiguous(routing_weights_);
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

std::tuple<Tensor, Tensor> aggregate_experts_backward_cuda(const Tensor& grad_output,
                                                           const Tensor& weight_,
                                                           const Tensor& routing_weights_,
                                                           std::vector<bool> output_mask) {
  const torch::stable::accelerator::DeviceGuard guard(weight_.get_device_index());
  const Tensor grad = torch::stable::contiguous(grad_output);
  const Tensor weight = torch::stable::contiguous(weight_);
  const Tensor routing = torch::stable::contiguous(routing_weights_);
  const auto allocate = [](bool wanted, const Tensor& like) {
    return empty_like_device(like, wanted ? size_vector(like) : std::vector<int64_t>{0},
                             like.scalar_type());
  };
  const Tensor grad_weight = allocate(output_mask[0], weight);
  const Tensor grad_routing = allocate(output_mask[1], routing);
  AggregateExpertsBackwardParams params;
  static_cast<AggregateExpertsSizes&>(params) = sizes_of(weight, routing);
  params.weight = weight.const_data_ptr();
  params.routing = routing.const_data_ptr();
  params.grad = grad.const_data_ptr();
  params.weight_type = dtype_of(weight);
  params.routing_type = dtype_of(routing);
  params.grad_type = dtype_of(grad);
  params.grad_weight = output_mask[0] ? grad_weight.mutable_data_ptr() : nullptr;
  params.grad_routing = output_mask[1] ? grad_routing.mutable_data_ptr() : nullptr;
  const auto workspace_size =
      static_cast<int64_t>(aggregate_experts_backward_workspace_size(params));
  const Tensor workspace = empty_like_device(weight, {workspace_size}, ScalarType::Byte);
  params.workspace = workspace_size > 0 ? workspace.mutable_data_ptr() : nullptr;
  check(aggregate_experts_backward(params, current_stream(weight)));
  return {grad_weight, grad_routing};
}

STABLE_TORCH_LIBRARY_IMPL(dasr_ops, CUDA, m) {
  m.impl("aggregate_experts", TORCH_BOX(&aggregate_experts_cuda));
  m.impl("aggregate_experts_backward", TORCH_BOX(&aggregate_experts_backward_cuda));
}

}  // namespace dasr
