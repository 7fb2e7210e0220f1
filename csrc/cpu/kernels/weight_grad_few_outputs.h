// Gradients of kernels to few output channels.
#pragma once

#include "convolve_few_outputs.h"
#include "weight_grad.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// The columns of the product are the input channels, once per tap.
struct FewOutputsGrad {
  static Blocking blocking(const GradJob& job) {
    const int64_t cols = min_of(job.grad.width, kDirectCols);
    const int64_t row_floats = job.x.extent(cols) * round_up(job.in(), kLanes);
    return {job.grad.height, job.grad.width, 1, rows_in_cache(job.y, row_floats, 8) * kDirectCols,
            kDirectCols};
  }

  // [tap][O][ld]
  static int64_t sum_floats(const GradJob& job) {
    return job.taps() * job.out() * round_up(job.in(), kLanes);
  }

  static int64_t patch_floats(const GradJob& job, int64_t rows, int64_t cols) {
    return job.y.extent(rows) * job.x.extent(cols) * round_up(job.in(), kLanes) + kAlign;
  }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    return patch_floats(job, blocking.th, blocking.tw) + blocking.th * blocking.tw * job.out();
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const int64_t out = job.out();
    const int64_t ld = round_up(job.in(), kLanes);
    float* input = scratch;
    float* grad = scratch + patch_floats(job, block.rows, block.cols);
    load_patch(job.grad, block.b, {block.y, block.x, block.rows, block.cols}, 0, out, grad, out);
    add_bias_grad(grad, block.rows * block.cols, out, out, bias);
    if (!job.want_weight) {
      return;
    }
    const Window window = job.window(block, block.rows, block.cols);
    load_patch(job.input, block.b, window, 0, job.in(), input, ld);
    const int64_t pitch = window.cols * ld;
    const Panels panels = panels_of(job.in());
    Gemm g;
    g.rows = out;
    g.depth = block.cols;
    g.segments = block.rows;
    g.a = grad;
    g.a_row = 1;
    g.a_depth = out;
    g.a_segment = block.cols * out;
    g.b_depth = job.x.stride * ld;
    g.b_segment = job.y.stride * pitch;
    g.c_row = ld;
    g.accumulate = !first_block;
    for (int64_t i = 0; i < job.y.taps; ++i) {
      for (int64_t j = 0; j < job.x.taps; ++j) {
        for (int64_t p = 0; p < panels.count; ++p) {
          const int64_t first = panels.first_vec(p) * kLanes;
          g.cols = panels.num_vecs(p);
          g.b = input + i * job.y.dilation * pitch + j * job.x.dilation * ld + first;
          g.c = sums + (i * job.x.taps + j) * out * ld + first;
          gemm(g);
        }
      }
    }
  }

  static void finish(const GradJob& job, const float* sums, float* weight, float*) {
    const int64_t ld = round_up(job.in(), kLanes);
    const int64_t taps = job.taps();
    for (int64_t n = 0; n < job.out(); ++n) {
      float* dst = weight + job.grad.map.torch_channel(n) * job.in() * taps;
      for (int64_t c = 0; c < job.in(); ++c) {
        for (int64_t t = 0; t < taps; ++t) {
          dst[c * taps + t] = sums[(t * job.out() + n) * ld + c];
        }
      }
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
