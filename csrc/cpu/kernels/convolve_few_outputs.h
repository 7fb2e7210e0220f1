// Convolution of stride 1 to few output channels, as in a network's last layer.
#pragma once

#include "convolve_gemm.h"
#include "convolve_winograd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kFewChannels = 4;
constexpr int64_t kSumTaps = 72;  // of one partial sum

// Direct: vectors run along the columns of a planar patch.
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

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// sums[i] = the sum of the lanes of rows[i], for kRows rows.
template <int kRows>
DASR_OPS_INLINE void sum_rows(const float (*rows)[kLanes], float* sums) {
  static_assert(kRows % 4 == 0);
  for (int i = 0; i < kRows; i += 4) {
    vf4 part[4];
    DASR_OPS_UNROLL
    for (int l = 0; l < 4; ++l) {
      part[l] = vf4{};
      DASR_OPS_UNROLL
      for (int q = 0; q < kLanes; q += 4) {
        part[l] += *reinterpret_cast<const vf4_mem*>(rows[i + l] + q);
      }
    }
    const vf4 a = DASR_OPS_SHUFFLE4(part[0], part[1], 0, 4, 1, 5) +
                  DASR_OPS_SHUFFLE4(part[0], part[1], 2, 6, 3, 7);
    const vf4 b = DASR_OPS_SHUFFLE4(part[2], part[3], 0, 4, 1, 5) +
                  DASR_OPS_SHUFFLE4(part[2], part[3], 2, 6, 3, 7);
    *reinterpret_cast<vf4_mem*>(sums + i) =
        DASR_OPS_SHUFFLE4(a, b, 0, 1, 4, 5) + DASR_OPS_SHUFFLE4(a, b, 2, 3, 6, 7);
  }
}

// Winograd: vectors run along the input channels, whose lanes are summed after the transform back.
template <typename W>
struct FewOutputsWinograd {
  static constexpr int64_t kInputCost = 4;
  static constexpr int kTilesAtOnce = 4;
  static constexpr int64_t kPoints = W::kIn * W::kIn;
  static constexpr int64_t kHalo = W::kTaps - 1;

  static Blocking blocking(const ConvJob& job) {
    return {job.dst.height, job.dst.width, W::kOut, tiles_per_block(kPoints, job.in()),
            kDirectCols / W::kOut};
  }

  static int64_t channels(const ConvJob& job) { return round_up(job.in(), kLanes); }

  static int64_t kernel_floats(const ConvJob& job, const PanelRange&) {
    return job.out() * kPoints * channels(job);
  }

  // [output][point][c], 0 for the channels beyond the last
  static void emit(const ConvJob& job, float* kernels, int64_t, int64_t c, int64_t,
                   const Taps& taps) {
    const int64_t ld = channels(job);
    transform_square<W::kTaps, W::kIn, W::kernel>(
        [&](int i, int j) { return taps[job.tap(i, j)]; },
        [&](int i, int j, vf u) {
          for (int64_t n = 0; n < job.out(); ++n) {
            float* dst = kernels + (n * kPoints + i * W::kIn + j) * ld;
            dst[c] = u[n];
            if (c == job.in() - 1) {
              fill_zero(dst + job.in(), ld - job.in());
            }
          }
        });
  }

  struct Buffers {
    float* patch;
    float* input;
    float* product;
    float* result;
    float* sink;
    int64_t floats;
  };

  static Buffers cut(const ConvJob& job, int64_t th, int64_t tw, float* scratch) {
    const int64_t rows = th * W::kOut;
    const int64_t cols = tw * W::kOut;
    Cutter cutter{scratch};
    Buffers buf;
    buf.patch = cutter.take((rows + kHalo) * (cols + kHalo) * channels(job));
    buf.input = cutter.take(th * tw * tile_stride(kPoints, channels(job)));
    buf.product = cutter.take(kTilesAtOnce * job.out() * kPoints * kLanes);
    buf.result = cutter.take(rows * cols * job.out());
    buf.sink = cutter.take(kSinkScratch);
    buf.floats = cutter.used;
    return buf;
  }

  static int64_t scratch_floats(const ConvJob& job, const Blocking& blocking) {
    return cut(job, blocking.th, blocking.tw, nullptr).floats;
  }

  // product[tile][output][point]: sums over vectors of channels, whose lanes are still apart.
  template <int kOutputs, int kTiles>
  static void multiply_tiles(const float* input, const float* kernels, int64_t ld, float* product) {
    const int64_t stride = tile_stride(kPoints, ld);
    for (int64_t i = 0; i < kPoints; ++i) {
      vf sum[kTiles][kOutputs] = {};
      for (int64_t c = i * ld; c < (i + 1) * ld; c += kLanes) {
        vf x[kTiles];
        DASR_OPS_UNROLL
        for (int t = 0; t < kTiles; ++t) {
          x[t] = load(input + t * stride + c);
        }
        DASR_OPS_UNROLL
        for (int n = 0; n < kOutputs; ++n) {
          const vf w = load(kernels + n * kPoints * ld + c);
          DASR_OPS_UNROLL
          for (int t = 0; t < kTiles; ++t) {
            sum[t][n] += x[t] * w;
          }
        }
      }
      DASR_OPS_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        DASR_OPS_UNROLL
        for (int n = 0; n < kOutputs; ++n) {
          store(product + ((t * kOutputs + n) * kPoints + i) * kLanes, sum[t][n]);
        }
      }
    }
  }

  // dst[row][col][outputs] of a tile
  static void finish_tile(const float* product, int64_t outputs, const float* bias, float* dst,
                          int64_t pitch) {
    for (int64_t n = 0; n < outputs; ++n) {
      alignas(64) float rows[W::kOut * W::kOut][kLanes];
      alignas(64) float tile[W::kOut * W::kOut];
      transform_square<W::kIn, W::kOut, W::output>(
          [&](int i, int j) { return load(product + (n * kPoints + i * W::kIn + j) * kLanes); },
          [&](int i, int j, vf v) { store(rows[i * W::kOut + j], v); });
      sum_rows<W::kOut * W::kOut>(rows, tile);
      for (int64_t i = 0; i < W::kOut; ++i) {
        for (int64_t j = 0; j < W::kOut; ++j) {
          dst[i * pitch + j * outputs + n] = tile[i * W::kOut + j] + bias[n];
        }
      }
    }
  }

  template <int kOutputs>
  static void run_tiles(const float* input, const float* kernels, const float* bias, int64_t ld,
                        int64_t tiles, int64_t tw, float* product, float* dst, int64_t pitch) {
    for (int64_t t = 0; t < tiles;) {
      const float* src = input + t * tile_stride(kPoints, ld);
      const int64_t count = tiles - t >= kTilesAtOnce ? kTilesAtOnce : 1;
      if (count == 1) {
        multiply_tiles<kOutputs, 1>(src, kernels, ld, product);
      } else {
        multiply_tiles<kOutputs, kTilesAtOnce>(src, kernels, ld, product);
      }
      for (int64_t u = 0; u < count; ++u, ++t) {
        finish_tile(product + u * kOutputs * kPoints * kLanes, kOutputs, bias,
                    dst + t / tw * W::kOut * pitch + t % tw * W::kOut * kOutputs, pitch);
      }
    }
  }

  static void run(const ConvJob& job, const Block& block, const PanelRange&, const float* kernels,
                  const float* bias, float* scratch) {
    const int64_t th = ceil_div(block.rows, W::kOut);
    const int64_t tw = ceil_div(block.cols, W::kOut);
    const int64_t out = job.out();
    const int64_t ld = channels(job);
    const int64_t pitch = tw * W::kOut * out;
    const Buffers buf = cut(job, th, tw, scratch);
    transform_block<W>(job.src, block.b, job.window(block, th * W::kOut, tw * W::kOut), th, tw,
                       buf.patch, buf.input);
    const auto run_all = [&](auto outputs) {
      run_tiles<outputs.value>(buf.input, kernels, bias, ld, th * tw, tw, buf.product, buf.result,
                               pitch);
    };
    switch (out) {
      case 1:
        run_all(Constant<1>{});
        break;
      case 2:
        run_all(Constant<2>{});
        break;
      case 3:
        run_all(Constant<3>{});
        break;
      default:
        run_all(Constant<4>{});
    }
    store_block(job.dst, block, 0, out, buf.result, pitch, out, buf.sink);
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
