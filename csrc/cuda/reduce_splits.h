// The second pass of sums that were split over blocks.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "runtime_api.h"

namespace dasr {

// out[i] = sum over splits of partial[split, i], in an order that depends on `splits` alone.
// Asynchronous on `stream`, allocates nothing.
struct ReduceSplitsParams {
  const void* partial = nullptr;         // [splits, numel]
  DType partial_type = DType::kFloat32;  // or float64
  int64_t splits = 1, numel = 0;
  void* out = nullptr;  // [numel]
  DType out_type = DType::kFloat32;
};

cudaError_t reduce_splits(const ReduceSplitsParams& params, cudaStream_t stream);

}  // namespace dasr
