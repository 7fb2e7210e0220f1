#pragma once

#include "ops/tensors.h"

namespace dasr {

// weight [K, ...], routing_weights [B, K] -> [B, ...]
Tensor aggregate_experts_cpu(const Tensor& weight, const Tensor& routing_weights, ScalarType dtype);

// Gradients in the type that sums are formed in; empty where not wanted.
std::tuple<Tensor, Tensor> aggregate_experts_gradients(const Tensor& grad_output,
                                                       const Tensor& weight,
                                                       const Tensor& routing_weights,
                                                       bool want_weight, bool want_routing);

}  // namespace dasr
