#include <algorithm>

#include "conv_weight_grad.h"
#include "convert.cuh"

namespace dasr {
namespace {

constexpr int kThreads = 256;

template <class acc_t>
__global__ void __launch_bounds__(kThreads) reduce_splits_kernel(ReduceSplitsParams p) {
  const acc_t* const partial = static_cast<const acc_t*>(p.partial);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.numel;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    acc_t sum = 0;
#pragma unroll 8
    for (int64_t split = 0; split < p.splits; ++split) sum += partial[split * p.numel + i];
    store_element(p.out, p.out_type, i, sum);
  }
}

}  // namespace

cudaError_t reduce_splits(const ReduceSplitsParams& p, cudaStream_t stream) {
  if (p.splits < 0 || p.numel < 0) return cudaErrorInvalidValue;
  if (p.numel == 0) return cudaSuccess;
  const bool in_double = p.partial_type == DType::kFloat64;
  if (!in_double && (p.partial_type != DType::kFloat32 || p.out_type == DType::kFloat64)) {
    return cudaErrorInvalidValue;
  }
  const int64_t blocks = std::min<int64_t>((p.numel + kThreads - 1) / kThreads, 1 << 20);
  return launch(in_double ? &reduce_splits_kernel<double> : &reduce_splits_kernel<float>,
                dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, p);
}

}  // namespace dasr
