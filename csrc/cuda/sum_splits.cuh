// The second pass of sums that were split over blocks: partial sums are added in a fixed order.
#pragma once

#include "device.cuh"

namespace dasr {

constexpr int kSplitColumns = 32, kSplitRows = 8;

// out[i] = sum over splits of partial[split, i], i < n; 32 neighbours i per block.
template <class acc_t>
__global__ void __launch_bounds__(kSplitColumns* kSplitRows)
    sum_splits_kernel(const acc_t* partial, acc_t* out, int64_t n, int64_t n_splits) {
  DASR_SHARED(sums, acc_t[kSplitRows][kSplitColumns]);
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSplitColumns + x;
  acc_t sum = 0;
  if (i < n) {
#pragma unroll 4
    for (int64_t split = y; split < n_splits; split += kSplitRows) sum += partial[split * n + i];
  }
  sums[y][x] = sum;
  __syncthreads();
  if (y != 0 || i >= n) return;
  for (int row = 1; row < kSplitRows; ++row) sum += sums[row][x];
  out[i] = sum;
}

template <class acc_t>
cudaError_t sum_splits(const void* partial, void* out, int64_t n, int64_t n_splits,
                       cudaStream_t stream) {
  return launch(&sum_splits_kernel<acc_t>, (n + kSplitColumns - 1) / kSplitColumns,
                dim3(kSplitColumns, kSplitRows), 0, stream, static_cast<const acc_t*>(partial),
                static_cast<acc_t*>(out), n, n_splits);
}

}  // namespace dasr
