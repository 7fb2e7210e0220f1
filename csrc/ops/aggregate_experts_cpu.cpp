#include "ops/aggregate_experts_cpu.h"

#include "cpu/aggregate_experts.h"

namespace dasr {
namespace {

int64_t numel_of_expert(const Tensor& weight) {
  int64_t numel = 1;
  for (int64_t d = 1; d < weight.dim(); ++d) numel *= weight.size(d);
  return numel;
}

}  // namespace

Tensor aggregate_experts_cpu(const Tensor& weight, const Tensor& routing_weights,
                             ScalarType dtype) {
  const ScalarType acc = accumulate_type({weight.scalar_type(), routing_weights.scalar_type()});
  const Tensor w = contiguous(weight, acc);
  const Tensor a = contiguous(routing_weights, acc);
  std::vector<int64_t> size = size_vector(weight);
  size[0] = routing_weights.size(0);
  const Tensor out = empty_like_device(weight, size, acc);
  dispatch_float_or_double(acc, [&](auto zero) {
    using T = decltype(zero);
    cpu::aggregate_experts(w.const_data_ptr<T>(), a.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                           a.size(0), a.size(1), numel_of_expert(weight));
  });
  return cast(out, dtype);
}

std::tuple<Tensor, Tensor> aggregate_experts_gradients(const Tensor& grad_output,
                                                       const Tensor& weight,
                                                       const Tensor& routing_weights,
                                                       bool want_weight, bool want_routing) {
  const ScalarType acc = accumulate_type(
      {grad_output.scalar_type(), weight.scalar_type(), routing_weights.scalar_type()});
  const Tensor g = contiguous(grad_output, acc);
  const Tensor w = contiguous(weight, acc);
  const Tensor a = contiguous(routing_weights, acc);
  const Tensor none = empty_like_device(weight, {0}, acc);
  const Tensor grad_weight = want_weight ? empty_like_device(w, size_vector(w), acc) : none;
  const Tensor grad_routing = want_routing ? empty_like_device(a, size_vector(a), acc) : none;
  dispatch_float_or_double(acc, [&](auto zero) {
    using T = decltype(zero);
    cpu::aggregate_experts_backward(g.const_data_ptr<T>(), w.const_data_ptr<T>(),
                                    a.const_data_ptr<T>(),
                                    want_weight ? grad_weight.mutable_data_ptr<T>() : nullptr,
                                    want_routing ? grad_routing.mutable_data_ptr<T>() : nullptr,
                                    a.size(0), a.size(1), numel_of_expert(weight));
  });
  return {grad_weight, grad_routing};
}

std::tuple<Tensor, Tensor> aggregate_experts_backward_cpu(const Tensor& grad_output,
                                                          const Tensor& weight,
                                                          const Tensor& routing_weights,
                                                          std::vector<bool> output_mask) {
  const auto [grad_weight, grad_routing] = aggregate_experts_gradients(
      grad_output, weight, routing_weights, output_mask[0], output_mask[1]);
  return {cast(grad_weight, weight.scalar_type()),
          cast(grad_routing, routing_weights.scalar_type())};
}

std::vector<Tensor> aggregate_experts_stack_cpu(std::vector<Tensor> weight,
                                                const Tensor& routing_weights, ScalarType dtype) {
  std::vector<Tensor> result;
  for (const Tensor& experts : weight) {
    result.push_back(aggregate_experts_cpu(experts, routing_weights, dtype));
  }
  return result;
}

std::tuple<std::vector<Tensor>, Tensor> aggregate_experts_stack_backward_cpu(
    std::vector<Tensor> grad_output, std::vector<Tensor> weight, const Tensor& routing_weights,
    std::vector<bool> output_mask) {
  const bool want_routing = output_mask.back();
  std::vector<Tensor> grad_weight;
  // The layers' parts of the routing gradient, summed in their order.
  std::vector<double> routing_sum(want_routing ? routing_weights.numel() : 0);
  for (size_t i = 0; i < weight.size(); ++i) {
    const auto [of_weight, of_routing] = aggregate_experts_gradients(
        grad_output[i], weight[i], routing_weights, output_mask[i], want_routing);
    grad_weight.push_back(cast(of_weight, weight[i].scalar_type()));
    if (!want_routing) continue;
    dispatch_float_or_double(of_routing.scalar_type(), [&, &part = of_routing](auto zero) {
      const auto* values = part.template const_data_ptr<decltype(zero)>();
      for (size_t j = 0; j < routing_sum.size(); ++j) routing_sum[j] += values[j];
    });
  }
  const ScalarType type = routing_weights.scalar_type();
  if (!want_routing) return {grad_weight, empty_like_device(routing_weights, {0}, type)};
  const Tensor sum =
      empty_like_device(routing_weights, size_vector(routing_weights), ScalarType::Double);
  std::copy(routing_sum.begin(), routing_sum.end(), sum.mutable_data_ptr<double>());
  return {grad_weight, cast(sum, type)};
}

STABLE_TORCH_LIBRARY_IMPL(dasr_ops, CPU, m) {
  m.impl("aggregate_experts", TORCH_BOX(&aggregate_experts_cpu));
  m.impl("aggregate_experts_backward", TORCH_BOX(&aggregate_experts_backward_cpu));
  m.impl("aggregate_experts_stack", TORCH_BOX(&aggregate_experts_stack_cpu));
  m.impl("aggregate_experts_stack_backward", TORCH_BOX(&aggregate_experts_stack_backward_cpu));
}

}  // namespace dasr
