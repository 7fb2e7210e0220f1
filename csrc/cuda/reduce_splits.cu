#include "reduce_splits.h"

#include <algorithm>

#include "convert.cuh"

namespace dasr {
namespace {

constexpr int kColumns = 32;
constexpr int64_t kMaxBlocks = 8192;  // with more elements, blocks walk

// kColumns neighbours per block and step; each of kRows rows of threads sums every kRows-th split.
template <class acc_t, int kRows>
__global__ void __launch_bounds__(kColumns* kRows) reduce_splits_kernel(ReduceSplitsParams p) {
  DASR_SHARED(sums, acc_t[kRows][kColumns]);
  const int x = threadIdx.x, y = threadIdx.y;
  const acc_t* const partial = static_cast<const acc_t*>(p.partial);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kColumns; first < p.numel;
       first += static_cast<int64_t>(gridDim.x) * kColumns) {
    const int64_t i = first + x;
    acc_t sum = 0;
    if (i < p.numel) {
#pragma unroll 4
      for (int64_t split = y; split < p.splits; split += kRows) sum += partial[split * p.numel + i];
    }
    __syncthreads();  // the previous sums have been read
    sums[y][x] = sum;
    __syncthreads();
    if (y != 0 || i >= p.numel) continue;
    for (int row = 1; row < kRows; ++row) sum += sums[row][x];
    store_element(p.out, p.out_type, i, sum);
  }
}

// Few splits: a thread sums one element.
template <class acc_t>
__global__ void __launch_bounds__(256) reduce_few_splits_kernel(ReduceSplitsParams p) {
  const acc_t* const partial = static_cast<const acc_t*>(p.partial);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < p.numel;
       i += static_cast<int64_t>(gridDim.x) * 256) {
    acc_t sum = 0;
#pragma unroll 8
    for (int64_t split = 0; split < p.splits; ++split) sum += partial[split * p.numel + i];
    store_element(p.out, p.out_type, i, sum);
  }
}

template <class acc_t>
cudaError_t launch_reduction(const ReduceSplitsParams& p, cudaStream_t stream) {
  constexpr int kRows = 8;
  const bool few = p.splits <= kRows;
  const int64_t per_block = few ? 256 : kColumns;
  const dim3 grid(
      static_cast<unsigned>(std::min((p.numel + per_block - 1) / per_block, kMaxBlocks)));
  return few ? launch(&reduce_few_splits_kernel<acc_t>, grid, 256, 0, stream, p)
             : launch(&reduce_splits_kernel<acc_t, kRows>, grid, dim3(kColumns, kRows), 0, stream,
                      p);
}

}  // namespace

cudaError_t reduce_splits(const ReduceSplitsParams& p, cudaStream_t stream) {
  if (p.splits < 0 || p.numel < 0) return cudaErrorInvalidValue;
  if (p.numel == 0) return cudaSuccess;
  if (p.partial_type == DType::kFloat64) return launch_reduction<double>(p, stream);
  if (p.partial_type != DType::kFloat32 || p.out_type == DType::kFloat64) {
    return cudaErrorInvalidValue;
  }
  return launch_reduction<float>(p, stream);
}

}  // namespace dasr
