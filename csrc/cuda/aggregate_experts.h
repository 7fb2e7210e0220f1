// Aggregation of expert kernels, out[b] = sum_k routing[b, k] * weight[k], and its gradients.
//
// Every tensor is dense and row-major (contiguous), with the experts' [O, I/g, kh, kw] flattened to
// N. Any base address that suits the element type is legal; 16-byte-aligned tensors with N % 4 == 0
// take the vectorised path. Inputs may be of four different types. Inputs and outputs must not
// overlap. The calls are asynchronous on `stream`, allocate nothing and never synchronise, so they
// can be captured in a CUDA graph. The caller makes the tensors' device current and checks shapes;
// a launcher returns the error of its own launches.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "runtime_api.h"

namespace dasr {

struct AggregateExpertsSizes {
  int64_t batch = 0;    // B >= 0
  int64_t experts = 0;  // K >= 1
  int64_t numel = 0;    // N >= 0, elements of one expert; may exceed 2^31
};

// Sums run in fp32 in the order of k (in fp64 if weight, routing or out is float64) and are rounded
// once to out_type. An expert whose routing weight is exactly 0 is not read for that sample: its
// NaN or Inf do not reach the result.
struct AggregateExpertsParams : AggregateExpertsSizes {
  // inputs
  const void* weight = nullptr;   // [K, N]
  const void* routing = nullptr;  // [B, K]
  DType weight_type = DType::kFloat32;
  DType routing_type = DType::kFloat32;
  // outputs
  void* out = nullptr;  // [B, N], every element is written
  DType out_type = DType::kFloat32;
};

// Sums run in fp32 (in fp64 if weight, routing or grad is float64) in an order that depends on the
// sizes alone, so that results are bit-equal from run to run. A sample whose routing weight for an
// expert is exactly 0 adds nothing to that expert's grad_weight, whatever its grad holds; the
// routing gradient is formed for every expert, also for those with weight 0.
struct AggregateExpertsBackwardParams : AggregateExpertsSizes {
  // inputs
  const void* weight = nullptr;          // [K, N], not read (may be null) when grad_routing is null
  const void* routing = nullptr;         // [B, K], not read (may be null) when grad_weight is null
  const void* grad = nullptr;            // [splits, B, N], added up over splits, in order
  DType weight_type = DType::kFloat32;   // also of grad_weight; used even if weight is null
  DType routing_type = DType::kFloat32;  // also of grad_routing; used even if routing is null
  DType grad_type = DType::kFloat32;
  int64_t grad_splits = 1;
  // outputs, every element is written; null: not wanted
  void* grad_weight = nullptr;   // [K, N]
  void* grad_routing = nullptr;  // [B, K]
  // aggregate_experts_backward_workspace_size() bytes, 16-byte aligned, uninitialised; null if 0
  void* workspace = nullptr;
};

cudaError_t aggregate_experts(const AggregateExpertsParams& params, cudaStream_t stream);

// Depends on sizes, types and on whether grad_routing is null; 0 when that is null.
size_t aggregate_experts_backward_workspace_size(const AggregateExpertsBackwardParams& params);

cudaError_t aggregate_experts_backward(const AggregateExpertsBackwardParams& params,
                                       cudaStream_t stream);

}  // namespace dasr
