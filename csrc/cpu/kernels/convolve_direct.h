// Direct convolution for the first (few input channels) and last (few output channels) layers.
#pragma once

#include "convolve.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kFewChannels = 4;
constexpr int64_t kDirectCols = 64;
constexpr int64_t kSumChannels = 8;

// Few input channels: the taps and channels of one row of the kernel are contiguous in a
// channels-last patch, so three segments of 3 * I values are multiplied without an im2col copy.
struct FewInputsConv {
  static Blocking blocking(const ConvJob& job) {
    return {job.dst.height, job.dst.width, 1, 8 * kDirectCols, kDirectCols};
  }

  static int64_t kernel_floats(const ConvJob& job) {
    return 9 * job.in() * round_up(job.out(), kLanes);
  }

  // [panel][tap row][tap column, c][columns of the panel]
  static void emit(const ConvJob& job, float* kernels, int64_t c, int64_t v, const vf* taps) {
    const Panels panels = panels_of(job.out());
    const int64_t p = ((v + 1) * panels.count - 1) / panels.vecs;
    const int64_t first = panels.first_vec(p);
    float* dst = kernels + 9 * job.in() * first * kLanes + (v - first) * kLanes;
    for (int64_t t = 0; t < 9; ++t) {
      store(dst + (t * job.in() + c) * panels.num_vecs(p) * kLanes, taps[t]);
    }
  }

  static int64_t patch_floats(const ConvJob& job, int64_t rows, int64_t cols) {
    return round_up((rows + 2) * (cols + 2) * job.in(), kAlign);
  }

  static int64_t scratch_floats(const ConvJob& job, const Blocking& blocking) {
    return patch_floats(job, blocking.th, blocking.tw) +
           blocking.th * blocking.tw * kMaxPanelVecs * kLanes + kSinkScratch;
  }

  static void run(const ConvJob& job, const Block& block, const float* kernels, const float* bias,
                  float* scratch) {
    const int64_t in = job.in();
    const int64_t pitch = (block.cols + 2) * in;
    float* patch = scratch;
    float* result = patch + patch_floats(job, block.rows, block.cols);
    float* sink = result + block.rows * block.cols * kMaxPanelVecs * kLanes;
    const Window window{block.y - job.pad_y, block.x - job.pad_x, block.rows + 2, block.cols + 2};
    load_patch(job.src, block.b, window, 0, in, patch, in);

    const Panels panels = panels_of(job.out());
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t vecs = panels.num_vecs(p);
      const int64_t first = panels.first_vec(p) * kLanes;
      const int64_t ld = vecs * kLanes;
      for (int64_t i = 0; i < block.rows * block.cols; ++i) {
        for (int64_t n = 0; n < ld; n += kLanes) {
          store(result + i * ld + n, load(bias + first + n));
        }
      }
      Gemm g;
      g.rows = block.cols;
      g.cols = vecs;
      g.depth = 3 * in;
      g.segments = 3;
      g.a_row = in;
      g.a_depth = 1;
      g.a_segment = pitch;
      g.b = kernels + 9 * in * first;
      g.b_depth = ld;
      g.b_segment = 3 * in * ld;
      g.c_row = ld;
      g.accumulate = true;
      for (int64_t y = 0; y < block.rows; ++y) {
        g.a = patch + y * pitch;
        g.c = result + y * block.cols * ld;
        gemm(g);
      }
      store_block(job.dst, block, first, min_of(first + ld, job.out()), result, block.cols * ld, ld,
                  sink);
    }
  }
};

// Few output channels: vectors run along the columns of a planar patch.
struct FewOutputsConv {
  static Blocking blocking(const ConvJob& job) {
    const int64_t row_bytes = 4 * max_of(job.in(), 1) * pitch_of(kDirectCols);
    const int64_t rows = max_of(2, min_of((256 << 10) / row_bytes - 2, 16));
    return {job.dst.height, job.dst.width, 1, rows * kDirectCols, kDirectCols};
  }

  static int64_t kernel_floats(const ConvJob& job) { return job.in() * 9 * kFewChannels; }

  // [c][tap][kFewChannels]
  static void emit(const ConvJob&, float* kernels, int64_t c, int64_t, const vf* taps) {
    for (int64_t t = 0; t < 9; ++t) {
      for (int64_t n = 0; n < kFewChannels; ++n) {
        kernels[(c * 9 + t) * kFewChannels + n] = taps[t][n];
      }
    }
  }

  static int64_t pitch_of(int64_t cols) { return round_up(cols, kLanes) + kLanes; }

  struct Buffers {
    float* patch;
    float* row;
    float* result;
    float* sink;
    int64_t floats;
  };

  static Buffers cut(const ConvJob& job, int64_t rows, int64_t cols, float* scratch) {
    Cutter cutter{scratch};
    Buffers buf;
    buf.patch = cutter.take(job.in() * (rows + 2) * pitch_of(cols));
    buf.row = cutter.take(kMaxCols * job.in());
    buf.result = cutter.take(rows * round_up(cols, kLanes) * job.out());
    buf.sink = cutter.take(kSinkScratch);
    buf.floats = cutter.used;
    return buf;
  }

  static int64_t scratch_floats(const ConvJob& job, const Blocking& blocking) {
    return cut(job, blocking.th, blocking.tw, nullptr).floats;
  }

  // kVecs vectors of one output row; dst[column][channel].
  template <int kOut, int kVecs>
  static void run_columns(const float* patch, int64_t plane, int64_t pitch, int64_t in,
                          const float* kernels, const float* bias, float* dst) {
    vf total[kOut][kVecs];
    DASR_OPS_UNROLL
    for (int n = 0; n < kOut; ++n) {
      DASR_OPS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        total[n][v] = splat(bias[n]);
      }
    }
    // Sums of sums, because one long sum would be less exact than a Winograd convolution.
    for (int64_t first = 0; first < in; first += kSumChannels) {
      vf acc[kOut][kVecs] = {};
      for (int64_t c = first; c < min_of(first + kSumChannels, in); ++c) {
        const float* w = kernels + c * 9 * kFewChannels;
        for (int64_t dy = 0; dy < 3; ++dy) {
          const float* src = patch + c * plane + dy * pitch;
          DASR_OPS_UNROLL
          for (int dx = 0; dx < 3; ++dx) {
            DASR_OPS_UNROLL
            for (int v = 0; v < kVecs; ++v) {
              vf x = load(src + dx + v * kLanes);
              DASR_OPS_KEEP(x);
              DASR_OPS_UNROLL
              for (int n = 0; n < kOut; ++n) {
                acc[n][v] += x * w[dx * kFewChannels + n];
              }
            }
          }
          w += 3 * kFewChannels;
        }
      }
      DASR_OPS_UNROLL
      for (int n = 0; n < kOut; ++n) {
        DASR_OPS_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          total[n][v] += acc[n][v];
        }
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      for (int n = 0; n < kOut; ++n) {
        alignas(64) float lanes[kLanes];
        store(lanes, total[n][v]);
        for (int64_t l = 0; l < kLanes; ++l) {
          dst[(v * kLanes + l) * kOut + n] = lanes[l];
        }
      }
    }
  }

  template <int kOut>
  static void run_block(const ConvJob& job, const Block& block, const float* kernels,
                        const float* bias, float* scratch) {
    const Buffers buf = cut(job, block.rows, block.cols, scratch);
    const int64_t pitch = pitch_of(block.cols);
    const int64_t plane = (block.rows + 2) * pitch;
    const int64_t padded = round_up(block.cols, kLanes);
    const Window window{block.y - job.pad_y, block.x - job.pad_x, block.rows + 2, block.cols + 2};
    load_planar(job.src, block.b, window, buf.patch, pitch, buf.row);
    constexpr int kVecs = kAccumulators / 6;
    for (int64_t y = 0; y < block.rows; ++y) {
      const float* src = buf.patch + y * pitch;
      float* dst = buf.result + y * padded * kOut;
      int64_t x = 0;
      for (; x + kVecs * kLanes <= padded; x += kVecs * kLanes) {
        run_columns<kOut, kVecs>(src + x, plane, pitch, job.in(), kernels, bias, dst + x * kOut);
      }
      for (; x < padded; x += kLanes) {
        run_columns<kOut, 1>(src + x, plane, pitch, job.in(), kernels, bias, dst + x * kOut);
      }
    }
    store_block(job.dst, block, 0, kOut, buf.result, padded * kOut, kOut, buf.sink);
  }

  static void run(const ConvJob& job, const Block& block, const float* kernels, const float* bias,
                  float* scratch) {
    switch (job.out()) {
      case 1:
        return run_block<1>(job, block, kernels, bias, scratch);
      case 2:
        return run_block<2>(job, block, kernels, bias, scratch);
      case 3:
        return run_block<3>(job, block, kernels, bias, scratch);
      default:
        return run_block<4>(job, block, kernels, bias, scratch);
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
