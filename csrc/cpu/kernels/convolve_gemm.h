// Convolution as matrix products without im2col, for any kernel, stride and dilation.
#pragma once

#include "convolve.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kDirectCols = 64;

// Rows of a block whose input, `row_floats` floats a row, should stay in the cache.
DASR_OPS_INLINE int64_t rows_in_cache(const JobAxis& y, int64_t row_floats, int64_t most) {
  const int64_t fit = (256 << 10) / (4 * max_of(row_floats, 1));
  return max_of(2, min_of((fit - y.extent(1)) / y.stride, most));
}

// Columns of a block: fewer where strides are long, so that a row of its input stays in the cache.
DASR_OPS_INLINE int64_t cols_in_cache(const JobAxis& x, int64_t channels, int64_t width) {
  int64_t cols = max_of(min_of(width, kDirectCols), 1);
  while (cols > 1 && 4 * x.extent(cols) * channels > (512 << 10)) {
    cols /= 2;
  }
  return cols;
}

// The input of a block as pixels of `channels` floats each, at `data`, `pitch` floats a row.
struct Patch {
  const float* data;
  int64_t pitch;
};

// In place where the channels lie as they are wanted and nothing is padded; else copied.
static Patch patch_of(const Source& s, int64_t b, const Window& w, float* copy) {
  const bool inside = w.y >= 0 && w.x >= 0 && w.y + w.rows <= s.height && w.x + w.cols <= s.width;
  if (inside && s.access == Access::kRows && s.map.r == 1 && !s.gated &&
      s.strides.x == s.channels) {
    return {s.data + s.strides.image(b) + w.y * s.strides.y + w.x * s.strides.x, s.strides.y};
  }
  load_patch(s, b, w, 0, s.channels, copy, s.channels);
  return {copy, w.cols * s.channels};
}

// Pixels and their channels are contiguous, so that the taps of a kernel row are one long dot
// product where the kernel is not dilated.
struct GemmConv {
  static constexpr int64_t kInputCost = 1;

  static Blocking blocking(const ConvJob& job) {
    const int64_t cols = cols_in_cache(job.x, job.in(), job.dst.width);
    const int64_t rows = rows_in_cache(job.y, job.x.extent(cols) * job.in(), 8);
    return {job.dst.height, job.dst.width, 1, rows * cols, cols};
  }

  static int64_t panel_floats(const ConvJob& job, int64_t p) {
    return job.taps() * job.in() * panels_of(job.out()).first_vec(p) * kLanes;
  }

  static int64_t kernel_floats(const ConvJob& job, const PanelRange& range) {
    return panel_floats(job, range.last) - panel_floats(job, range.first);
  }

  // [panel][tap][c][columns of the panel]
  static void emit(const ConvJob& job, float* kernels, int64_t first, int64_t c, int64_t v,
                   const Taps& taps) {
    const Panels panels = panels_of(job.out());
    const int64_t p = panels.panel_of(v);
    float* dst = kernels + panel_floats(job, p) - panel_floats(job, first) +
                 (v - panels.first_vec(p)) * kLanes;
    for (int64_t i = 0; i < job.y.taps; ++i) {
      for (int64_t j = 0; j < job.x.taps; ++j) {
        const int64_t t = i * job.x.taps + j;
        store(dst + (t * job.in() + c) * panels.num_vecs(p) * kLanes, taps[job.tap(i, j)]);
      }
    }
  }

  static int64_t patch_floats(const ConvJob& job, int64_t rows, int64_t cols) {
    return round_up(job.y.extent(rows) * job.x.extent(cols) * job.in(), kAlign);
  }

  static int64_t scratch_floats(const ConvJob& job, const Blocking& blocking) {
    return patch_floats(job, blocking.th, blocking.tw) +
           blocking.th * blocking.tw * kMaxPanelVecs * kLanes + kSinkScratch;
  }

  static void run(const ConvJob& job, const Block& block, const PanelRange& range,
                  const float* kernels, const float* bias, float* scratch) {
    float* result = scratch + patch_floats(job, block.rows, block.cols);
    float* sink = result + block.rows * block.cols * kMaxPanelVecs * kLanes;
    Patch patch{scratch, 0};
    if (job.taps() > 0) {
      patch = patch_of(job.src, block.b, job.window(block, block.rows, block.cols), scratch);
    }
    const Panels panels = panels_of(job.out());
    for (int64_t p = range.first; p < range.last; ++p) {
      const int64_t vecs = panels.num_vecs(p);
      const int64_t first = panels.first_vec(p) * kLanes;
      const int64_t ld = vecs * kLanes;
      for (int64_t i = 0; i < block.rows * block.cols; ++i) {
        for (int64_t n = 0; n < ld; n += kLanes) {
          store(result + i * ld + n, load(bias + first + n));
        }
      }
      const float* own = kernels + panel_floats(job, p) - panel_floats(job, range.first);
      for (int64_t y = 0; y < block.rows; ++y) {
        multiply_row(job, block.cols, vecs, patch.data + y * job.y.stride * patch.pitch,
                     patch.pitch, own, result + y * block.cols * ld);
      }
      store_block(job.dst, block, first, min_of(first + ld, job.out()), result, block.cols * ld, ld,
                  sink);
    }
  }

  // result[column][ld] += a row of pixels x kernels
  static void multiply_row(const ConvJob& job, int64_t cols, int64_t vecs, const float* src,
                           int64_t pitch, const float* kernels, float* result) {
    const int64_t in = job.in();
    Gemm g;
    g.rows = cols;
    g.cols = vecs;
    g.a_row = job.x.stride * in;
    g.a_depth = 1;
    g.b_depth = vecs * kLanes;
    g.c = result;
    g.c_row = g.b_depth;
    g.accumulate = true;
    if (job.x.dilation == 1) {
      g.depth = job.x.taps * in;
      g.segments = job.y.taps;
      g.a = src;
      g.a_segment = job.y.dilation * pitch;
      g.b = kernels;
      g.b_segment = g.depth * g.b_depth;
      return gemm(g);
    }
    g.depth = in;
    g.segments = job.x.taps;
    g.a_segment = job.x.dilation * in;
    g.b_segment = in * g.b_depth;
    for (int64_t i = 0; i < job.y.taps; ++i) {
      g.a = src + i * job.y.dilation * pitch;
      g.b = kernels + i * job.x.taps * g.b_segment;
      gemm(g);
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
