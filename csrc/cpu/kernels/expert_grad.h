// From the gradients of the aggregated kernels to those of the experts and the routing weights.
#pragma once

#include "weight_grad.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kReduceChunk = 2048;

DASR_OPS_INLINE void add_scaled(float* dst, const float* src, float a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    dst[i] += a * src[i];
  }
}

DASR_OPS_INLINE float dot(const float* a, const float* b, int64_t n) {
  vf sum0 = {};
  vf sum1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + kLanes) * load(b + i + kLanes);
  }
  float rest = 0.0f;
  for (; i < n; ++i) {
    rest += a[i] * b[i];
  }
  return sum_lanes(sum0 + sum1) + rest;
}

// grad[b][0] becomes the sum over the segments; then every output gets its part [begin, end).
static void reduce_part(const ConvBackwardParams& p, int64_t segments, float* grad, int64_t row,
                        int64_t begin, int64_t end, const float* expert, float* grad_expert,
                        float* grad_routing) {
  const int64_t n = end - begin;
  const int64_t sample = segments * row;
  for (int64_t b = 0; b < p.batch; ++b) {
    float* total = grad + b * sample + begin;
    for (int64_t s = 1; s < segments; ++s) {
      add_scaled(total, total + s * row, 1.0f, n);
    }
  }
  if (grad_expert != nullptr && p.experts == 0) {
    for (int64_t b = 0; b < p.batch; ++b) {
      copy_floats(grad_expert + b * row + begin, grad + b * sample + begin, n);
    }
  }
  for (int64_t k = 0; k < p.experts; ++k) {
    if (grad_expert != nullptr) {
      float* dst = grad_expert + k * row + begin;
      fill_zero(dst, n);
      for (int64_t b = 0; b < p.batch; ++b) {
        const float a = p.routing[b * p.experts + k];
        if (a != 0.0f) {
          add_scaled(dst, grad + b * sample + begin, a, n);
        }
      }
    }
    if (grad_routing != nullptr) {
      for (int64_t b = 0; b < p.batch; ++b) {
        grad_routing[b * p.experts + k] =
            dot(grad + b * sample + begin, expert + k * row + begin, n);
      }
    }
  }
}

// Consumes job.weight and job.bias.
static void expert_grad(const ConvBackwardParams& p, const GradJob& job, const ThreadPool& pool) {
  const int64_t row = job.kernel_floats();
  const int64_t chunks = job.want_weight ? ceil_div(row, kReduceChunk) : 0;
  const int64_t routings = p.grad_routing != nullptr ? p.batch * p.experts : 0;
  // One part per chunk and one for the biases, summed in this order.
  const Workspace space(1, (chunks + 1) * routings);
  float* parts = space.part(0);
  run_tasks(pool, chunks, [&](int64_t, int64_t i) {
    reduce_part(p, job.segments, job.weight, row, i * kReduceChunk,
                min_of((i + 1) * kReduceChunk, row), p.weight, p.grad_weight,
                routings != 0 ? parts + i * routings : nullptr);
  });
  const bool routing_bias = routings != 0 && p.bias != nullptr;
  reduce_part(p, job.segments, job.bias, job.out(), 0, job.out(), p.bias, p.grad_bias,
              routing_bias ? parts + chunks * routings : nullptr);
  for (int64_t i = 0; i < routings; ++i) {
    double sum = 0.0;
    for (int64_t c = 0; c < chunks + routing_bias; ++c) {
      sum += static_cast<double>(parts[c * routings + i]);
    }
    p.grad_routing[i] = static_cast<float>(sum);
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
