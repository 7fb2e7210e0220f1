#pragma once

#include "ops/tensors.h"

namespace dasr {

// weight [K, ...], routing_weights [B, K] -> [B, ...]
Tensor aggregate_experts_cuda(const Tensor& weight, const Tensor& routing_weights,
                              ScalarType dtype);

// Fills the gradients that are not null; all tensors are contiguous, their device is current.
void aggregate_experts_gradients_cuda(const Tensor& grad, const Tensor& weight,
                                      const Tensor& routing, void* grad_weight, void* grad_routing);

}  // namespace dasr
