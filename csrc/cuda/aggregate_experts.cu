#include "aggregate_experts.h"

#include <algorithm>
#include <type_traits>

#include "mix_experts.cuh"
#include "reduce_splits.h"

namespace dasr {
namespace {

constexpr int kNThreads = 128;
constexpr int kNWarps = kNThreads / 32;
constexpr int kTile = kNThreads * kWidth;  // elements of N per block and step
constexpr int kMaxGridY = 65535;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- forward ----

constexpr int kSamples = 8;  // that share one read of the experts

// Grid: x walks over tiles of N, y over groups of samples.
template <class acc_t, bool kVector>
__global__ void __launch_bounds__(kNThreads)
    aggregate_experts_kernel(AggregateExpertsParams p, int64_t n_tiles, int samples_per_group) {
  DASR_SHARED(routing, acc_t[kExpertChunk][kSamples]);
  const int tid = threadIdx.x;

  for (int64_t b0 = static_cast<int64_t>(blockIdx.y) * samples_per_group; b0 < p.batch;
       b0 += static_cast<int64_t>(gridDim.y) * samples_per_group) {
    const int n_samples =
        static_cast<int>(p.batch - b0 < samples_per_group ? p.batch - b0 : samples_per_group);
    for (int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
      const Slice<kVector, kNThreads> slice(tile, tid, p.numel);
      acc_t acc[kSamples][kWidth] = {};
      mix_experts<acc_t, kNThreads>(
          p.routing, p.routing_type, p.experts, b0, n_samples, tile == blockIdx.x, routing,
          [&](auto expert_of, auto& weight) {
            slice.load(p.weight, p.weight_type, expert_of, weight);
          },
          acc);
      slice.store(p.out, p.out_type, b0, n_samples, acc);
    }
  }
}

// ---- backward ----

// At most this many splits of N, two blocks for each of 148 SMs, and at most this many bytes.
constexpr int64_t kMaxSplits = 296;
constexpr int64_t kMaxWorkspace = int64_t{64} << 20;

bool accumulates_in_double(const AggregateExpertsBackwardParams& p) {
  return p.weight_type == DType::kFloat64 || p.routing_type == DType::kFloat64 ||
         p.grad_type == DType::kFloat64;
}

// Depends on sizes and types alone: the order of summation does.
int64_t tiles_per_split(const AggregateExpertsBackwardParams& p) {
  const int64_t bytes = p.batch * p.experts * (accumulates_in_double(p) ? 8 : 4);
  const int64_t max_splits =
      std::clamp<int64_t>(kMaxWorkspace / std::max<int64_t>(bytes, 1), 1, kMaxSplits);
  return std::max<int64_t>(divide_up(divide_up(p.numel, kTile), max_splits), 1);
}

int64_t split_count(const AggregateExpertsBackwardParams& p) {
  return divide_up(divide_up(p.numel, kTile), tiles_per_split(p));
}

// Sums each of the kN values over the warp; lane l ends with the sums of values
// l * kN / 32, ... (one for every 32 / kN lanes if kN < 32) in values[0], ...
template <int kN, class T>
__device__ __forceinline__ void warp_transpose_sum(T (&values)[kN], int lane) {
  int n = kN;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    if (n == 1) {
      values[0] += __shfl_xor_sync(~0u, values[0], offset);
      continue;
    }
    n /= 2;
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) {
      if (i >= n) break;
      const T keep = upper ? values[i + n] : values[i];
      const T send = upper ? values[i] : values[i + n];
      values[i] = keep + __shfl_xor_sync(~0u, send, offset);
    }
  }
}

// Grid: x walks over splits of N, y over chunks of experts. A block owns its elements of
// grad_weight; of grad_routing it forms the part [B, K] that its split contributes.
template <class acc_t, bool kVector>
__global__ void __launch_bounds__(kNThreads)
    aggregate_experts_backward_kernel(AggregateExpertsBackwardParams p, int64_t n_tiles,
                                      int64_t tiles_per_split) {
  constexpr int kBlock = sizeof(acc_t) == 4 ? 8 : 4;  // samples and experts at a time
  constexpr int kPairs = kBlock * kBlock;
  constexpr int kPerLane = kPairs < 32 ? 1 : kPairs / 32;
  constexpr int kLanesPerSum = kPairs < 32 ? 32 / kPairs : 1;
  DASR_SHARED(routing, acc_t[kBlock][kBlock]);     // [sample][expert]
  DASR_SHARED(warp_sums, acc_t[kNWarps][kPairs]);  // [warp][sample * kBlock + expert]
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const bool wants_weight = p.grad_weight != nullptr, wants_routing = p.grad_routing != nullptr;
  const int64_t first_tile = blockIdx.x * tiles_per_split;
  const int64_t end_tile =
      first_tile + tiles_per_split < n_tiles ? first_tile + tiles_per_split : n_tiles;
  acc_t* const partial =
      static_cast<acc_t*>(p.workspace) + blockIdx.x * p.batch * p.experts;  // [B, K]

  for (int64_t k0 = static_cast<int64_t>(blockIdx.y) * kBlock; k0 < p.experts;
       k0 += static_cast<int64_t>(gridDim.y) * kBlock) {
    const int n_experts = static_cast<int>(p.experts - k0 < kBlock ? p.experts - k0 : kBlock);
    acc_t dots[kPairs] = {};
    for (int64_t tile = first_tile; tile < end_tile; ++tile) {
      const Slice<kVector, kNThreads> slice(tile, tid, p.numel);
      acc_t weight[kBlock][kWidth] = {}, grad_weight[kBlock][kWidth] = {};
      if (wants_routing) {
        slice.load(
            p.weight, p.weight_type, [&](int k) -> int64_t { return k < n_experts ? k0 + k : -1; },
            weight);
      }
      for (int64_t b0 = 0; b0 < p.batch; b0 += kBlock) {
        const int n_samples = static_cast<int>(p.batch - b0 < kBlock ? p.batch - b0 : kBlock);
        acc_t grad[kBlock][kWidth];
        const auto load_grad = [&](int64_t split, acc_t(&to)[kBlock][kWidth]) {
          slice.load(
              p.grad, p.grad_type,
              [&](int b) -> int64_t { return b < n_samples ? split * p.batch + b0 + b : -1; }, to);
        };
        load_grad(0, grad);
#pragma unroll 1
        for (int64_t split = 1; split < p.grad_splits; ++split) {
          acc_t more[kBlock][kWidth];
          load_grad(split, more);
#pragma unroll
          for (int b = 0; b < kBlock; ++b) {
#pragma unroll
            for (int j = 0; j < kWidth; ++j) grad[b][j] += more[b][j];
          }
        }
        if (wants_weight && (p.batch > kBlock || tile == first_tile)) {
          __syncthreads();  // the previous routing has been read
          if (tid < kPairs) {
            const int b = tid / kBlock, k = tid % kBlock;
            routing[b][k] =
                b < n_samples && k < n_experts
                    ? load_element<acc_t>(p.routing, p.routing_type, (b0 + b) * p.experts + k0 + k)
                    : acc_t(0);
          }
          __syncthreads();
        }
#pragma unroll
        for (int b = 0; b < kBlock; ++b) {
          if (b >= n_samples) break;
          if (wants_weight) {
#pragma unroll
            for (int k = 0; k < kBlock; ++k) {
              const acc_t a = routing[b][k];
              if (a == 0) continue;
#pragma unroll
              for (int j = 0; j < kWidth; ++j) {
                grad_weight[k][j] = fma(a, grad[b][j], grad_weight[k][j]);
              }
            }
          }
          if (wants_routing) {
#pragma unroll
            for (int k = 0; k < kBlock; ++k) {
              acc_t& dot = dots[b * kBlock + k];
#pragma unroll
              for (int j = 0; j < kWidth; ++j) dot = fma(grad[b][j], weight[k][j], dot);
            }
          }
        }
        if (!wants_routing) continue;
        // Up to kBlock samples stay in registers until the last tile.
        if (p.batch <= kBlock && tile + 1 < end_tile) continue;
        warp_transpose_sum(dots, lane);
        if (lane % kLanesPerSum == 0) {
#pragma unroll
          for (int i = 0; i < kPerLane; ++i) {
            warp_sums[warp][lane / kLanesPerSum * kPerLane + i] = dots[i];
          }
        }
        __syncthreads();
        const int b = tid / kBlock, k = tid % kBlock;
        if (tid < kPairs && b < n_samples && k < n_experts) {
          acc_t& sum = partial[(b0 + b) * p.experts + k0 + k];
          acc_t total = p.batch <= kBlock || tile == first_tile ? acc_t(0) : sum;
          for (int w = 0; w < kNWarps; ++w) total += warp_sums[w][tid];
          sum = total;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kPairs; ++i) dots[i] = 0;
      }
      if (wants_weight) slice.store(p.grad_weight, p.weight_type, k0, n_experts, grad_weight);
    }
  }
}

template <class acc_t>
cudaError_t launch_backward(const AggregateExpertsBackwardParams& p, cudaStream_t stream) {
  constexpr int kBlock = sizeof(acc_t) == 4 ? 8 : 4;
  const int64_t n_tiles = divide_up(p.numel, kTile), n_splits = split_count(p);
  if (n_splits > 0) {
    const dim3 grid(n_splits, std::min<int64_t>(divide_up(p.experts, kBlock), kMaxGridY));
    const bool vector = vector_rows(p.grad, p.grad_type, p.numel) &&
                        vector_rows(p.weight, p.weight_type, p.numel) &&
                        vector_rows(p.grad_weight, p.weight_type, p.numel);
    auto* kernel = vector ? &aggregate_experts_backward_kernel<acc_t, true>
                          : &aggregate_experts_backward_kernel<acc_t, false>;
    const cudaError_t error =
        launch(kernel, grid, kNThreads, 0, stream, p, n_tiles, tiles_per_split(p));
    if (error != cudaSuccess) return error;
  }
  const int64_t n_pairs = p.batch * p.experts;
  if (p.grad_routing == nullptr || n_pairs == 0) return cudaSuccess;
  const DType type = sizeof(acc_t) == 8 ? DType::kFloat64 : DType::kFloat32;
  return reduce_splits({p.workspace, type, n_splits, n_pairs, p.grad_routing, p.routing_type},
                       stream);
}

bool valid(const AggregateExpertsSizes& p) {
  return p.batch >= 0 && p.experts >= 1 && p.numel >= 0;
}

}  // namespace

cudaError_t aggregate_experts(const AggregateExpertsParams& p, cudaStream_t stream) {
  if (!valid(p)) return cudaErrorInvalidValue;
  if (p.batch == 0 || p.numel == 0) return cudaSuccess;
  const int64_t n_tiles = divide_up(p.numel, kTile), n_groups = divide_up(p.batch, kSamples);
  const int samples_per_group = static_cast<int>(divide_up(p.batch, n_groups));
  const dim3 grid(std::min<int64_t>(n_tiles, 0x7FFFFFFF), std::min<int64_t>(n_groups, kMaxGridY));
  const bool vector =
      vector_rows(p.weight, p.weight_type, p.numel) && vector_rows(p.out, p.out_type, p.numel);
  const bool in_double = p.weight_type == DType::kFloat64 || p.routing_type == DType::kFloat64 ||
                         p.out_type == DType::kFloat64;
  auto* kernel = in_double ? (vector ? &aggregate_experts_kernel<double, true>
                                     : &aggregate_experts_kernel<double, false>)
                           : (vector ? &aggregate_experts_kernel<float, true>
                                     : &aggregate_experts_kernel<float, false>);
  return launch(kernel, grid, kNThreads, 0, stream, p, n_tiles, samples_per_group);
}

size_t aggregate_experts_backward_workspace_size(const AggregateExpertsBackwardParams& p) {
  if (p.grad_routing == nullptr || !valid(p)) return 0;
  return split_count(p) * p.batch * p.experts * (accumulates_in_double(p) ? 8 : 4);
}

cudaError_t aggregate_experts_backward(const AggregateExpertsBackwardParams& p,
                                       cudaStream_t stream) {
  if (!valid(p)) return cudaErrorInvalidValue;
  if (p.grad_weight == nullptr && p.grad_routing == nullptr) return cudaSuccess;
  return accumulates_in_double(p) ? launch_backward<double>(p, stream)
                                  : launch_backward<float>(p, stream);
}

}  // namespace dasr
