// Winograd convolution: per block of tiles, transform, multiply, transform back and store.
#pragma once

#include "convolve.h"
#include "winograd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// Transformed kernels, [panel][point][c][columns of the panel]: points are padded by a cache line
// so that they do not compete for the same sets of the cache.
struct WinogradPanels {
  int64_t points;
  int64_t depth;
  Panels panels;

  int64_t offset(int64_t p) const {
    return points * (depth * panels.first_vec(p) * kLanes + p * kAlign);
  }
  int64_t point_stride(int64_t p) const { return depth * panels.num_vecs(p) * kLanes + kAlign; }
  int64_t floats() const { return offset(panels.count); }
  // Where vector v of row c lies for point 0.
  int64_t at(int64_t c, int64_t v, int64_t* stride) const {
    const int64_t p = panels.panel_of(v);
    *stride = point_stride(p);
    return offset(p) + (c * panels.num_vecs(p) + v - panels.first_vec(p)) * kLanes;
  }
};

// Transformed tiles: [tile][point][channels].
DASR_OPS_INLINE int64_t tile_stride(int64_t points, int64_t channels) {
  return points * channels + kAlign;
}

// Tiles of a block such that its transformed input stays in the second-level cache.
DASR_OPS_INLINE int64_t tiles_per_block(int64_t points, int64_t channels) {
  const int64_t fit = (400 << 10) / (4 * points * round_up(channels, kLanes));
  return max_of(12, min_of(fit, 36 * 48 / points));
}

template <typename W>
DASR_OPS_INLINE void transform_input(const float* src, int64_t row, int64_t col, float* dst,
                                     int64_t point) {
  transform_square<W::kIn, W::kIn, W::input>(
      [&](int i, int j) { return load(src + i * row + j * col); },
      [&](int i, int j, vf v) { store(dst + (i * W::kIn + j) * point, v); });
}

// src[row][col][channels] -> dst[point][channels]
template <typename W>
static void transform_tile(const float* src, int64_t row, int64_t col, int64_t channels,
                           float* dst) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    transform_input<W>(src + c, row, col, dst + c, channels);
  }
}

// Reads a block's input with its halo and transforms it: dst[tile][point][channels], tiles in rows
// of tw. An image in memory in NHWC is read in place but for the tiles that padding is a part of.
template <typename W>
static void transform_block(const Source& s, int64_t b, const Window& w, int64_t th, int64_t tw,
                            float* patch, float* dst) {
  const int64_t channels = round_up(s.channels, kLanes);
  const int64_t stride = tile_stride(W::kIn * W::kIn, channels);
  const bool in_place =
      s.access == Access::kRows && s.map.r == 1 && !s.gated && channels == s.channels;
  if (!in_place) {
    load_patch(s, b, w, 0, s.channels, patch, channels);
  }
  for (int64_t ty = 0; ty < th; ++ty) {
    for (int64_t tx = 0; tx < tw; ++tx, dst += stride) {
      const int64_t row = ty * W::kOut;
      const int64_t col = tx * W::kOut;
      if (!in_place) {
        const float* src = patch + (row * w.cols + col) * channels;
        transform_tile<W>(src, w.cols * channels, channels, channels, dst);
        continue;
      }
      const Window tile{w.y + row, w.x + col, W::kIn, W::kIn};
      if (tile.y >= 0 && tile.x >= 0 && tile.y + W::kIn <= s.height && tile.x + W::kIn <= s.width) {
        const float* src =
            s.data + s.strides.image(b) + tile.y * s.strides.y + tile.x * s.strides.x;
        transform_tile<W>(src, s.strides.y, s.strides.x, channels, dst);
      } else {
        load_patch(s, b, tile, 0, s.channels, patch, channels);
        transform_tile<W>(patch, W::kIn * channels, channels, channels, dst);
      }
    }
  }
}

// What a block of tiles needs on its way: the patch with its halo (then a panel of results or of
// gradients), the transformed input, and a panel in the transformed domain.
template <typename W>
struct WinogradScratch {
  static constexpr int64_t kPoints = W::kIn * W::kIn;
  float* patch;
  float* input;
  float* panel;

  WinogradScratch(Cutter& cutter, int64_t in_channels, int64_t th, int64_t tw) {
    constexpr int64_t kHalo = W::kTaps - 1;
    const int64_t channels = round_up(in_channels, kLanes);
    const int64_t rows = th * W::kOut;
    const int64_t cols = tw * W::kOut;
    const int64_t width = kMaxPanelVecs * kLanes;
    patch = cutter.take(max_of((rows + kHalo) * (cols + kHalo) * channels, rows * cols * width));
    input = cutter.take(th * tw * tile_stride(kPoints, channels));
    panel = cutter.take(th * tw * tile_stride(kPoints, width));
  }
};

template <typename W>
struct WinogradConv {
  static constexpr int64_t kInputCost = 4;  // transformed
  static constexpr int64_t kPoints = W::kIn * W::kIn;

  static Blocking blocking(const ConvJob& job) {
    return {job.dst.height, job.dst.width, W::kOut, tiles_per_block(kPoints, job.in()),
            64 / W::kOut};
  }

  static WinogradPanels layout(const ConvJob& job) {
    return {kPoints, job.in(), panels_of(job.out())};
  }

  static int64_t kernel_floats(const ConvJob& job, const PanelRange& range) {
    return layout(job).offset(range.last) - layout(job).offset(range.first);
  }

  static void emit(const ConvJob& job, float* kernels, int64_t first, int64_t c, int64_t v,
                   const Taps& taps) {
    int64_t stride;
    const WinogradPanels all = layout(job);
    float* dst = kernels + all.at(c, v, &stride) - all.offset(first);
    transform_square<W::kTaps, W::kIn, W::kernel>(
        [&](int i, int j) { return taps[job.tap(i, j)]; },
        [&](int i, int j, vf u) { store(dst + (i * W::kIn + j) * stride, u); });
  }

  static int64_t scratch_floats(const ConvJob& job, const Blocking& blocking) {
    Cutter cutter{nullptr};
    WinogradScratch<W>(cutter, job.in(), blocking.th, blocking.tw);
    return cutter.used + kSinkScratch;
  }

  static void run(const ConvJob& job, const Block& block, const PanelRange& range,
                  const float* kernels, const float* bias, float* scratch) {
    const int64_t th = ceil_div(block.rows, W::kOut);
    const int64_t tw = ceil_div(block.cols, W::kOut);
    const int64_t rows = th * W::kOut;
    const int64_t cols = tw * W::kOut;
    Cutter cutter{scratch};
    const WinogradScratch<W> buf(cutter, job.in(), th, tw);
    float* sink = cutter.take(kSinkScratch);
    transform_block<W>(job.src, block.b, job.window(block, rows, cols), th, tw, buf.patch,
                       buf.input);

    const int64_t channels = round_up(job.in(), kLanes);
    const WinogradPanels kernel_layout = layout(job);
    for (int64_t p = range.first; p < range.last; ++p) {
      const int64_t vecs = kernel_layout.panels.num_vecs(p);
      const int64_t first = kernel_layout.panels.first_vec(p) * kLanes;
      const int64_t ld = vecs * kLanes;
      Gemm g;
      g.rows = th * tw;
      g.cols = vecs;
      g.depth = job.in();
      g.a_row = tile_stride(kPoints, channels);
      g.a_depth = 1;
      g.b_depth = ld;
      // A single panel that is not wider than the input replaces it: less cache is needed.
      const bool in_place =
          range.last - range.first == 1 && ld <= channels && job.in() <= kMaxChain;
      float* product = in_place ? buf.input : buf.panel;
      const int64_t point = in_place ? channels : ld;
      g.c_row = tile_stride(kPoints, point);
      const float* own = kernels + kernel_layout.offset(p) - kernel_layout.offset(range.first);
      for (int64_t i = 0; i < kPoints; ++i) {
        g.a = buf.input + i * channels;
        g.b = own + i * kernel_layout.point_stride(p);
        g.c = product + i * point;
        gemm(g);
      }
      transform_output(product, point, th, tw, ld, bias + first, buf.patch);
      store_block(job.dst, block, first, min_of(first + ld, job.out()), buf.patch, cols * ld, ld,
                  sink);
    }
  }

  static void transform_output(const float* product, int64_t point, int64_t th, int64_t tw,
                               int64_t ld, const float* bias, float* dst) {
    const int64_t row = tw * W::kOut * ld;
    for (int64_t ty = 0; ty < th; ++ty) {
      for (int64_t tx = 0; tx < tw; ++tx) {
        float* tile = dst + ty * W::kOut * row + tx * W::kOut * ld;
        for (int64_t n = 0; n < ld; n += kLanes) {
          const vf shift = load(bias + n);
          transform_square<W::kIn, W::kOut, W::output>(
              [&](int i, int j) { return load(product + (i * W::kIn + j) * point + n); },
              [&](int i, int j, vf v) { store(tile + i * row + j * ld + n, v + shift); });
        }
        product += tile_stride(kPoints, point);
      }
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
