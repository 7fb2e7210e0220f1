// Depthwise convolution, for any kernel, stride and dilation: vectors run along the channels.
#pragma once

#include "convolve_gemm.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kDepthwiseVecs = 4;  // of channels that are computed together
constexpr int64_t kDepthwiseRows = 8;  // of a block

// Pixels of some channels: in place, or a copy that is padded with zeros.
struct ChannelPatch {
  const float* data;
  int64_t row, col;  // strides

  ChannelPatch(const Source& s, int64_t b, const Window& w, int64_t c0, int64_t c1, int64_t ld,
               float* copy) {
    const bool inside = w.y >= 0 && w.x >= 0 && w.y + w.rows <= s.height && w.x + w.cols <= s.width;
    if (inside && s.access == Access::kRows && s.map.r == 1 && !s.gated && c1 - c0 == ld) {
      data = s.data + s.strides.image(b) + w.y * s.strides.y + w.x * s.strides.x + c0;
      row = s.strides.y;
      col = s.strides.x;
      return;
    }
    load_patch(s, b, w, c0, c1, copy, ld);
    data = copy;
    row = w.cols * ld;
    col = ld;
  }
};

struct DepthwiseConv {
  static constexpr int64_t kInputCost = 1;

  static Blocking blocking(const ConvJob& job) {
    return {job.dst.height, job.dst.width, 1, kDepthwiseRows * kDirectCols, kDirectCols};
  }

  // [vector of channels][tap][kLanes]
  static int64_t kernel_floats(const ConvJob& job, const PanelRange& range) {
    const Panels panels = panels_of(job.out());
    return (panels.first_vec(range.last) - panels.first_vec(range.first)) * job.taps() * kLanes;
  }

  static void emit(const ConvJob& job, float* kernels, int64_t first, int64_t, int64_t v,
                   const Taps& taps) {
    float* dst = kernels + (v - panels_of(job.out()).first_vec(first)) * job.taps() * kLanes;
    for (int64_t i = 0; i < job.y.taps; ++i) {
      for (int64_t j = 0; j < job.x.taps; ++j, dst += kLanes) {
        store(dst, taps[job.tap(i, j)]);
      }
    }
  }

  static int64_t scratch_floats(const ConvJob& job, const Blocking& blocking) {
    const int64_t pixels = job.y.extent(blocking.th) * job.x.extent(blocking.tw);
    return (pixels + blocking.th * blocking.tw) * kDepthwiseVecs * kLanes + kSinkScratch;
  }

  // kCols pixels of a row; dst[pixel][ld].
  template <int kCols>
  DASR_OPS_INLINE void run_pixels(const ConvJob& job, const ChannelPatch& patch, const float* src,
                                  const float* kernel, vf bias, float* dst, int64_t ld) {
    const int64_t step = job.x.stride * patch.col;
    vf acc[kCols];
    DASR_OPS_UNROLL
    for (int p = 0; p < kCols; ++p) {
      acc[p] = bias;
    }
    for (int64_t i = 0; i < job.y.taps; ++i) {
      const float* from = src + i * job.y.dilation * patch.row;
      for (int64_t j = 0; j < job.x.taps; ++j) {
        const vf w = load(kernel);
        DASR_OPS_UNROLL
        for (int p = 0; p < kCols; ++p) {
          acc[p] += load(from + p * step) * w;
        }
        from += job.x.dilation * patch.col;
        kernel += kLanes;
      }
    }
    DASR_OPS_UNROLL
    for (int p = 0; p < kCols; ++p) {
      store(dst + p * ld, acc[p]);
    }
  }

  static void run(const ConvJob& job, const Block& block, const PanelRange& range,
                  const float* kernels, const float* bias, float* scratch) {
    const Panels panels = panels_of(job.out());
    const int64_t v0 = panels.first_vec(range.first);
    const int64_t v1 = panels.first_vec(range.last);
    const Window window = job.window(block, block.rows, block.cols);
    float* copy = scratch;
    float* result = copy + window.rows * window.cols * kDepthwiseVecs * kLanes;
    float* sink = result + block.rows * block.cols * kDepthwiseVecs * kLanes;
    // The last vector apart, if it is not full, so that the others can be read in place.
    const int64_t full = job.out() / kLanes;
    for (int64_t v = v0; v < v1;) {
      const int64_t last = v < full ? min_of(min_of(v + kDepthwiseVecs, v1), full) : v1;
      const int64_t ld = (last - v) * kLanes;
      const int64_t n1 = min_of(last * kLanes, job.out());
      const ChannelPatch patch(job.src, block.b, window, v * kLanes, n1, ld, copy);
      for (int64_t u = v; u < last; ++u) {
        const float* kernel = kernels + (u - v0) * job.taps() * kLanes;
        const vf shift = load(bias + u * kLanes);
        for (int64_t y = 0; y < block.rows; ++y) {
          const float* src = patch.data + y * job.y.stride * patch.row + (u - v) * kLanes;
          float* dst = result + y * block.cols * ld + (u - v) * kLanes;
          const int64_t step = job.x.stride * patch.col;
          int64_t x = 0;
          for (; x + 8 <= block.cols; x += 8) {
            run_pixels<8>(job, patch, src + x * step, kernel, shift, dst + x * ld, ld);
          }
          for (; x + 2 <= block.cols; x += 2) {
            run_pixels<2>(job, patch, src + x * step, kernel, shift, dst + x * ld, ld);
          }
          if (x < block.cols) {
            run_pixels<1>(job, patch, src + x * step, kernel, shift, dst + x * ld, ld);
          }
        }
      }
      store_block(job.dst, block, v * kLanes, n1, result, block.cols * ld, ld, sink);
      v = last;
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
