// Gradients of the aggregated kernels and biases: partial sums over fixed segments of the image.
#pragma once

#include "convolve.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct GradJob : Geometry {
  int64_t batch;   // times groups
  int64_t groups;  // that count as samples of their own
  Source input;
  Source grad;  // of the convolution's result
  bool depthwise;
  bool want_weight;
  int64_t segments;  // of a sample
  float* weight;     // [B * g, segments, O/g, I/g, kh, kw]
  float* bias;       // [B * g, segments, O/g]

  int64_t in() const { return input.channels; }
  int64_t out() const { return grad.channels; }
  int64_t kernel_floats() const { return out() * (depthwise ? 1 : in()) * taps(); }
};

// sums[n] += the sum over pixels; the sum of a block is formed first, so that errors stay small.
static void add_bias_grad(const float* patch, int64_t pixels, int64_t ld, int64_t n, float* sums) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    vf sum = {};
    for (int64_t p = 0; p < pixels; ++p) {
      sum += load(patch + p * ld + c);
    }
    store(sums + c, load(sums + c) + sum);
  }
  for (; c < n; ++c) {
    float sum = 0.0f;
    for (int64_t p = 0; p < pixels; ++p) {
      sum += patch[p * ld + c];
    }
    sums[c] += sum;
  }
}

// Fills job.weight (if wanted) and job.bias.
//
// Algorithm: blocking(job), sum_floats(job), scratch_floats(job, blocking),
//   add(job, block, first, sums, bias, scratch): adds a block's contribution, or overwrites,
//   finish(job, sums, weight, scratch): writes [O, I/g, kh, kw].
template <typename Algorithm>
static void weight_grad(const GradJob& job, const ThreadPool& pool) {
  const Blocking blocking = Algorithm::blocking(job);
  const int64_t blocks = blocking.count();
  const int64_t tasks = job.batch * job.segments;
  const int64_t sum_floats = round_up(Algorithm::sum_floats(job), kAlign);
  const int64_t bias_floats = round_up(job.out(), kLanes) + kAlign;
  const Workspace space(min_of(num_slots(pool), tasks),
                        sum_floats + bias_floats + Algorithm::scratch_floats(job, blocking));
  run_tasks(pool, tasks, [&](int64_t slot, int64_t task) {
    float* sums = space.part(slot);
    float* bias = sums + sum_floats;
    float* scratch = bias + bias_floats;
    const int64_t segment = task % job.segments;
    const int64_t begin = segment * blocks / job.segments;
    const int64_t end = (segment + 1) * blocks / job.segments;
    fill_zero(bias, bias_floats);
    if (begin == end) {
      fill_zero(sums, sum_floats);
    }
    for (int64_t i = begin; i < end; ++i) {
      Algorithm::add(job, blocking.at(task / job.segments, i), i == begin, sums, bias, scratch);
    }
    if (job.want_weight) {
      Algorithm::finish(job, sums, job.weight + task * job.kernel_floats(), scratch);
    }
    for (int64_t n = 0; n < job.out(); ++n) {
      job.bias[task * job.out() + job.grad.map.torch_channel(n)] = bias[n];
    }
  });
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
