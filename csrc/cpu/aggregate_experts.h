// Aggregation of experts and its gradients on the CPU; every tensor is dense. The CUDA kernels of
// the same name are in csrc/cuda.
#pragma once

#include <cstdint>

namespace dasr::cpu {

// out[b, n] = sum_k routing[b, k] * weight[k, n], in the order of k. An expert whose routing weight
// is exactly 0 is not read.
template <typename T>
void aggregate_experts(const T* weight,   // [K, N]
                       const T* routing,  // [B, K]
                       T* out,            // [B, N]
                       int64_t batch, int64_t experts, int64_t numel);

// grad_weight[k, n] = sum_b routing[b, k] * grad[b, n]
// grad_routing[b, k] = sum_n grad[b, n] * weight[k, n]
// A null output is not wanted. Sums do not depend on the number of threads.
template <typename T>
void aggregate_experts_backward(const T* grad,     // [B, N]
                                const T* weight,   // [K, N]
                                const T* routing,  // [B, K]
                                T* grad_weight,    // [K, N]
                                T* grad_routing,   // [B, K]
                                int64_t batch, int64_t experts, int64_t numel);

}  // namespace dasr::cpu
