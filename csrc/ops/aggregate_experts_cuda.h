#pragma once

#include "ops/tensors.h"

namespace dasr {

// weight [K, ...], routing_weights [B, K] -> [B, ...]
Tensor aggregate_experts_cuda(const Tensor& weight, const Tensor& routing_weights,
                              ScalarType dtype);

}  // namespace dasr
