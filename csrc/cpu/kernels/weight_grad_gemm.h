// Gradients of kernels as matrix products, for any kernel, stride and dilation.
#pragma once

#include "convolve_gemm.h"
#include "weight_grad.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// The rows of the product are the taps and input channels of a kernel row, or of one tap where the
// kernel is dilated; the sum runs over pixels.
struct GemmGrad {
  static Blocking blocking(const GradJob& job) {
    const int64_t cols = cols_in_cache(job.x, job.in(), job.grad.width);
    const int64_t rows = rows_in_cache(job.y, job.x.extent(cols) * job.in(), 8);
    return {job.grad.height, job.grad.width, 1, rows * cols, cols};
  }

  // [panel][tap][c][columns of the panel]
  static int64_t sum_floats(const GradJob& job) {
    return job.taps() * job.in() * round_up(job.out(), kLanes);
  }

  static int64_t patch_floats(const GradJob& job, int64_t rows, int64_t cols) {
    return round_up(job.y.extent(rows) * job.x.extent(cols) * job.in(), kAlign);
  }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    return max_of(patch_floats(job, blocking.th, blocking.tw) +
                      blocking.th * blocking.tw * kMaxPanelVecs * kLanes,
                  kLanes * job.in() * job.taps());
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const int64_t in = job.in();
    float* grad = scratch + patch_floats(job, block.rows, block.cols);
    Patch patch{};
    if (job.want_weight) {
      patch = patch_of(job.input, block.b, job.window(block, block.rows, block.cols), scratch);
    }
    const Panels panels = panels_of(job.out());
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t vecs = panels.num_vecs(p);
      const int64_t first = panels.first_vec(p) * kLanes;
      const int64_t ld = vecs * kLanes;
      const int64_t last = min_of(first + ld, job.out());
      const Window window{block.y, block.x, block.rows, block.cols};
      load_patch(job.grad, block.b, window, first, last, grad, ld);
      add_bias_grad(grad, block.rows * block.cols, ld, last - first, bias + first);
      if (!job.want_weight) {
        continue;
      }
      const bool row_at_once = job.x.dilation == 1;
      const int64_t row_taps = row_at_once ? job.x.taps : 1;
      Gemm g;
      g.rows = row_taps * in;
      g.cols = vecs;
      g.depth = block.cols;
      g.segments = block.rows;
      g.a_row = 1;
      g.a_depth = job.x.stride * in;
      g.a_segment = job.y.stride * patch.pitch;
      g.b = grad;
      g.b_depth = ld;
      g.b_segment = block.cols * ld;
      g.c_row = ld;
      g.accumulate = !first_block;
      for (int64_t i = 0; i < job.y.taps; ++i) {
        for (int64_t j = 0; j < job.x.taps; j += row_taps) {
          g.a = patch.data + i * job.y.dilation * patch.pitch + j * job.x.dilation * in;
          g.c = sums + job.taps() * in * first + (i * job.x.taps + j) * in * ld;
          gemm(g);
        }
      }
    }
  }

  static void finish(const GradJob& job, const float* sums, float* weight, float* scratch) {
    const int64_t in = job.in();
    const int64_t row = in * job.taps();
    const Panels panels = panels_of(job.out());
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t ld = panels.num_vecs(p) * kLanes;
      for (int64_t n = panels.first_vec(p) * kLanes; n < panels.first_vec(p + 1) * kLanes;
           n += kLanes) {
        const int64_t column = n - panels.first_vec(p) * kLanes;
        const float* src = sums + row * (n - column) + column;
        for (int64_t c = 0; c < in; ++c) {
          transpose(src + c * ld, in * ld, job.taps(), kLanes, scratch + c * job.taps(), row);
        }
        for (int64_t l = 0; l < min_of(kLanes, job.out() - n); ++l) {
          copy_floats(weight + job.grad.map.torch_channel(n + l) * row, scratch + l * row, row);
        }
      }
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
