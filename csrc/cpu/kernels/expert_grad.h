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

// Values of one group, [begin, end) of its `row`: grad[b][0] becomes the sum over the segments;
// then every output gets its part.
static void reduce_part(const ConvBackwardParams& p, int64_t segments, float* grad, int64_t row,
                        int64_t groups, int64_t group, int64_t begin, int64_t end,
                        const float* expert, float* grad_expert, float* grad_routing) {
  const int64_t n = end - begin;
  const int64_t sample = groups * segments * row;
  const int64_t expert_row = groups * row;
  grad += group * segments * row;
  if (expert != nullptr) {
    expert += group * row;
  }
  if (grad_expert != nullptr) {
    grad_expert += group * row;
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    float* total = grad + b * sample + begin;
    for (int64_t s = 1; s < segments; ++s) {
      add_scaled(total, total + s * row, 1.0f, n);
    }
  }
  if (grad_expert != nullptr && p.experts == 0) {
    for (int64_t b = 0; b < p.batch; ++b) {
      copy_floats(grad_expert + b * expert_row + begin, grad + b * sample + begin, n);
    }
  }
  for (int64_t k = 0; k < p.experts; ++k) {
    if (grad_expert != nullptr) {
      float* dst = grad_expert + k * expert_row + begin;
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
            dot(grad + b * sample + begin, expert + k * expert_row + begin, n);
      }
    }
  }
}

// Consumes job.weight and job.bias.
static void expert_grad(const ConvBackwardParams& p, const GradJob& job, const ThreadPool& pool) {
  const int64_t groups = job.groups;
  const int64_t row = job.kernel_floats();
  const int64_t row_chunks = job.want_weight ? ceil_div(row, kReduceChunk) : 0;
  const int64_t chunks = groups * row_chunks;
  const int64_t routings = p.grad_routing != nullptr ? p.batch * p.experts : 0;
  // One part per chunk and one for each group's biases, summed in this order.
  const Workspace space(1, (chunks + groups) * routings);
  float* parts = space.part(0);
  run_tasks(pool, chunks, [&](int64_t, int64_t i) {
    const int64_t begin = i % row_chunks * kReduceChunk;
    reduce_part(p, job.segments, job.weight, row, groups, i / row_chunks, begin,
                min_of(begin + kReduceChunk, row), p.weight, p.grad_weight,
                routings != 0 ? parts + i * routings : nullptr);
  });
  const bool routing_bias = routings != 0 && p.bias != nullptr;
  for (int64_t g = 0; g < groups; ++g) {
    reduce_part(p, job.segments, job.bias, job.out(), groups, g, 0, job.out(), p.bias, p.grad_bias,
                routing_bias ? parts + (chunks + g) * routings : nullptr);
  }
  for (int64_t i = 0; i < routings; ++i) {
    double sum = 0.0;
    for (int64_t c = 0; c < chunks + (routing_bias ? groups : 0); ++c) {
      sum += static_cast<double>(parts[c * routings + i]);
    }
    p.grad_routing[i] = static_cast<float>(sum);
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
