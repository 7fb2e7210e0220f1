// Sums over experts for the elements of one thread, as the aggregation and the packing form them.
#pragma once

#include "convert.cuh"

namespace dasr {

constexpr int kExpertChunk = 32;  // experts whose routing is staged at a time: one bit each

// Adds routing[b, k] * (expert k) to acc[b], for samples first_sample + [0, n_samples) and in the
// order of k. Experts whose routing weight is 0 for all of these are not read, and none is added to
// a sample where it is 0: 0 * NaN is not 0. load(expert_of, values) fills values[i] with expert
// expert_of(i), zeros where that is negative. `staged` holds routing weights for the whole block;
// `stages` says that it does not hold those of the first chunk yet.
template <class acc_t, int kThreads, int kSamples, class Load>
__device__ __forceinline__ void mix_experts(const void* routing, DType routing_type,
                                            int64_t n_experts, int64_t first_sample, int n_samples,
                                            bool stages, acc_t (&staged)[kExpertChunk][kSamples],
                                            Load load, acc_t (&acc)[kSamples][kWidth]) {
  constexpr int kInFlight = sizeof(acc_t) == 4 ? 8 : 2;  // experts loaded together
  const int tid = threadIdx.x, lane = tid % 32;
  for (int64_t k0 = 0; k0 < n_experts; k0 += kExpertChunk) {
    if (stages || n_experts > kExpertChunk) {
      __syncthreads();  // the previous chunk has been read
      for (int i = tid; i < kExpertChunk * kSamples; i += kThreads) {
        const int b = i / kExpertChunk, k = i % kExpertChunk;
        const bool exists = b < n_samples && k0 + k < n_experts;
        staged[k][b] = exists ? load_element<acc_t>(routing, routing_type,
                                                    (first_sample + b) * n_experts + k0 + k)
                              : acc_t(0);
      }
      __syncthreads();
    }
    bool used = false;
    for (int b = 0; b < kSamples; ++b) used |= staged[lane][b] != 0;
    unsigned to_do = __ballot_sync(~0u, used);
    while (to_do != 0) {
      int expert[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        expert[i] = __ffs(to_do) - 1;  // -1: no more
        to_do &= to_do - 1;
      }
      acc_t weight[kInFlight][kWidth];
      load([&](int i) -> int64_t { return expert[i] < 0 ? -1 : k0 + expert[i]; }, weight);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (expert[i] < 0) break;
#pragma unroll
        for (int b = 0; b < kSamples; ++b) {
          const acc_t a = staged[expert[i]][b];
          if (a == 0) continue;
#pragma unroll
          for (int j = 0; j < kWidth; ++j) acc[b][j] = fma(a, weight[i][j], acc[b][j]);
        }
      }
    }
  }
}

}  // namespace dasr
