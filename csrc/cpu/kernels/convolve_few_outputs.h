// Direct convolution of stride 1 to few output channels, as in a network's last layer.
#pragma once

#include "convolve_gemm.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kFewChannels = 4;
constexpr int64_t kSumTaps = 72;  // of one partial sum

// Vectors run along the columns of a planar patch.
struct FewOutputsConv {
  static constexpr int64_t kInputCost = 1;

  static Blocking blocking(const ConvJob& job) {
    const int64_t row_floats = job.in() * pitch_of(job, min_of(job.dst.width, kDirectCols));
    return {job.dst.height, job.dst.width, 1, rows_in_cache(job.y, row_floats, 16) * kDirectCols,
            kDirectCols};
  }

  static int64_t kernel_floats(const ConvJob& job, const PanelRange&) {
    return job.in() * job.taps() * kFewChannels;
  }

  // [c][tap][kFewChannels]
  static void emit(const ConvJob& job, float* kernels, int64_t, int64_t c, int64_t,
                   const Taps& taps) {
    float* dst = kernels + c * job.taps() * kFewChannels;
    for (int64_t i = 0; i < job.y.taps; ++i) {
      for (int64_t j = 0; j < job.x.taps; ++j, dst += kFewChannels) {
        const vf tap = taps[job.tap(i, j)];
        for (int64_t n = 0; n < kFewChannels; ++n) {
          dst[n] = tap[n];
        }
      }
    }
  }

  // Vectors read up to kLanes - 1 columns beyond the last.
  static int64_t pitch_of(const ConvJob& job, int64_t cols) {
    return round_up(job.x.extent(round_up(cols, kLanes)), kLanes);
  }

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
    buf.patch = cutter.take(job.in() * job.y.extent(rows) * pitch_of(job, cols));
    buf.row = cutter.take(job.x.extent(cols) * job.in());
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
  static void run_columns(const ConvJob& job, const float* patch, int64_t plane, int64_t pitch,
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
    const int64_t sum_channels = max_of(1, kSumTaps / max_of(job.taps(), 1));
    const float* w = kernels;
    for (int64_t first = 0; first < job.in(); first += sum_channels) {
      vf acc[kOut][kVecs] = {};
      for (int64_t c = first; c < min_of(first + sum_channels, job.in()); ++c) {
        for (int64_t i = 0; i < job.y.taps; ++i) {
          const float* src = patch + c * plane + i * job.y.dilation * pitch;
          for (int64_t j = 0; j < job.x.taps; ++j) {
            DASR_OPS_UNROLL
            for (int v = 0; v < kVecs; ++v) {
              vf x = load(src + v * kLanes);
              DASR_OPS_KEEP(x);
              DASR_OPS_UNROLL
              for (int n = 0; n < kOut; ++n) {
                acc[n][v] += x * w[n];
              }
            }
            w += kFewChannels;
            src += job.x.dilation;
          }
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
    const Window window = job.window(block, block.rows, block.cols);
    const int64_t pitch = pitch_of(job, block.cols);
    const int64_t plane = window.rows * pitch;
    const int64_t padded = round_up(block.cols, kLanes);
    if (job.taps() > 0) {
      load_planar(job.src, block.b, window, buf.patch, pitch, buf.row);
    }
    constexpr int kVecs = kAccumulators / 6;
    for (int64_t y = 0; y < block.rows; ++y) {
      const float* src = buf.patch + y * pitch;
      float* dst = buf.result + y * padded * kOut;
      int64_t x = 0;
      for (; x + kVecs * kLanes <= padded; x += kVecs * kLanes) {
        run_columns<kOut, kVecs>(job, src + x, plane, pitch, kernels, bias, dst + x * kOut);
      }
      for (; x < padded; x += kLanes) {
        run_columns<kOut, 1>(job, src + x, plane, pitch, kernels, bias, dst + x * kOut);
      }
    }
    store_block(job.dst, block, 0, kOut, buf.result, padded * kOut, kOut, buf.sink);
  }

  static void run(const ConvJob& job, const Block& block, const PanelRange&, const float* kernels,
                  const float* bias, float* scratch) {
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
