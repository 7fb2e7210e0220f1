#include "cpu/aggregate_experts.h"

#include <algorithm>
#include <vector>

#include "cpu/vector_loops.h"
#include "ops/parallel.h"

namespace dasr::cpu {
namespace {

// Elements of one expert that are worked on at a time: all samples reuse them from the L1 cache.
constexpr int64_t kChunk = 2048;

int64_t num_chunks(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

}  // namespace

template <typename T>
void aggregate_experts(const T* weight, const T* routing, T* out, int64_t batch, int64_t experts,
                       int64_t numel) {
  parallel_for(num_chunks(numel), /*grain=*/4, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk;
      const int64_t n = std::min(kChunk, numel - begin);
      for (int64_t b = 0; b < batch; ++b) {
        T* row = out + b * numel + begin;
        std::fill(row, row + n, T(0));
        for (int64_t k = 0; k < experts; ++k) {
          const T a = routing[b * experts + k];
          if (a != T(0)) axpy(a, weight + k * numel + begin, row, n);
        }
      }
    }
  });
}

template <typename T>
void aggregate_experts_backward(const T* grad, const T* weight, const T* routing, T* grad_weight,
                                T* grad_routing, int64_t batch, int64_t experts, int64_t numel) {
  const int64_t chunks = num_chunks(numel);
  const int64_t pairs = batch * experts;
  std::vector<T> partial(grad_routing ? chunks * pairs : 0);
  parallel_for(chunks, /*grain=*/4, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk;
      const int64_t n = std::min(kChunk, numel - begin);
      for (int64_t k = 0; k < experts; ++k) {
        T* row = grad_weight ? grad_weight + k * numel + begin : nullptr;
        if (row) std::fill(row, row + n, T(0));
        for (int64_t b = 0; b < batch; ++b) {
          const T* g = grad + b * numel + begin;
          const T a = routing[b * experts + k];
          if (row && a != T(0)) axpy(a, g, row, n);
          if (grad_routing) {
            partial[chunk * pairs + b * experts + k] = dot(g, weight + k * numel + begin, n);
          }
        }
      }
    }
  });
  if (!grad_routing) return;
  std::fill(grad_routing, grad_routing + pairs, T(0));
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < pairs; ++i) grad_routing[i] += partial[chunk * pairs + i];
  }
}

template void aggregate_experts(const float*, const float*, float*, int64_t, int64_t, int64_t);
template void aggregate_experts(const double*, const double*, double*, int64_t, int64_t, int64_t);
template void aggregate_experts_backward(const float*, const float*, const float*, float*, float*,
                                         int64_t, int64_t, int64_t);
template void aggregate_experts_backward(const double*, const double*, const double*, double*,
                                         double*, int64_t, int64_t, int64_t);

}  // namespace dasr::cpu
