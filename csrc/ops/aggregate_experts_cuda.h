#pragma once

#include "ops/tensors.h"

namespace dasr {

// weight [K, ...], routing_weights [B, K] -> [B, ...]
Tensor aggregate_experts_cuda(const Tensor& weight, const Tensor& routing_weights,
                              ScalarType dtype);

// Gradients of weight and routing_weights in their types; empty where not wanted.
std::tuple<Tensor, Tensor> aggregate_experts_backward_cuda(const Tensor& grad_output,
                                                           const Tensor& weight,
                                                           const Tensor& routing_weights,
                                                           std::vector<bool> output_mask);

// Fills the gradients that are not null; all tensors are contiguous, their device is current. grad
// is [B, ...], or [splits, B, ...] to be added up over splits.
void aggregate_experts_gradients_cuda(const Tensor& grad, int64_t splits, const Tensor& weight,
                                      const Tensor& routing, void* grad_weight, void* grad_routing);

}  // namespace dasr
