// Writing a channels-last block of convolution results: activation, sign bits, residual, pixel
// shuffle and layout in one pass.
#pragma once

#include "source.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct Sink {
  float* data;
  Strides strides;   // of the image in memory, dense
  bool nhwc;         // the order in memory; without pixel shuffle pixels may lie apart
  int64_t channels;  // of the convolution, as height and width
  int64_t height;
  int64_t width;
  ChannelMap map;

  bool activate = false;
  float slope = 1.0f;
  float scale = 1.0f;
  const float* residual = nullptr;
  Strides residual_strides = {};
  uint8_t* sign_bits = nullptr;  // zeroed before
};

// Bytes may be shared with another thread where a run does not start and end at a byte.
DASR_OPS_INLINE void put_bits(uint8_t* bits, int64_t index, uint32_t value, int64_t n) {
  uint8_t* p = bits + (index >> 3);
  if (((index | n) & 7) == 0) {
    for (int64_t i = 0; i < n; i += 8) {
      *p++ = static_cast<uint8_t>(value >> i);
    }
    return;
  }
  for (uint32_t rest = value << (index & 7); rest != 0; rest >>= 8, ++p) {
    __atomic_fetch_or(p, static_cast<uint8_t>(rest), __ATOMIC_RELAXED);
  }
}

template <typename Residual>
DASR_OPS_INLINE vf finish(const Sink& s, vf v, int64_t index, int64_t n, Residual residual) {
  if (s.sign_bits != nullptr) {
    put_bits(s.sign_bits, index, positive_bits(v) & ((1u << n) - 1), n);
  }
  if (s.activate) {
    v = s.slope == 0.0f ? (v < 0.0f ? vf{} : v) : (v > 0.0f ? v : v * s.slope);
  }
  if (s.scale != 1.0f) {
    v *= s.scale;
  }
  return s.residual != nullptr ? v + residual() : v;
}

// n results that are contiguous in the output. residual_at: offset of the first one's residual.
static void store_run(const Sink& s, int64_t index, const float* src, int64_t n,
                      int64_t residual_at, int64_t residual_step) {
  const float* res = s.residual != nullptr ? s.residual + residual_at : nullptr;
  auto gather = [&](int64_t i, int64_t count) {
    vf v = {};
    for (int64_t l = 0; l < count; ++l) {
      v[l] = res[(i + l) * residual_step];
    }
    return v;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(s.data + index + i, finish(s, load(src + i), index + i, kLanes, [&] {
            return residual_step == 1 ? load(res + i) : gather(i, kLanes);
          }));
  }
  if (i < n) {
    const int64_t rest = n - i;
    const vf v = finish(s, load_first(src + i, rest), index + i, rest, [&] {
      return residual_step == 1 ? load_first(res + i, rest) : gather(i, rest);
    });
    store_first(s.data + index + i, v, rest);
  }
}

struct Block {
  int64_t b, y, x, rows, cols;
};

DASR_OPS_INLINE int64_t offset_at(const Strides& s, int64_t b, int64_t c, int64_t y, int64_t x) {
  return s.image(b) + c * s.c + y * s.y + x * s.x;
}

static void store_nhwc_line(const Sink& s, const Block& k, int64_t y, int64_t n0, int64_t n1,
                            const float* src, int64_t ld) {
  const int64_t r = s.map.r;
  const int64_t image_channels = s.map.image_channels;
  // Without gaps: ld may also be the distance of the pixels of a phase, with channels that pad.
  const bool whole = r == 1 && n0 == 0 && n1 == s.channels && ld == n1 && ld == s.strides.x;
  if (whole && (s.residual == nullptr || s.residual_strides.equal(s.strides))) {
    const int64_t index = offset_at(s.strides, k.b, 0, y, k.x);
    return store_run(s, index, src, k.cols * ld, index, 1);
  }
  for (int64_t n = n0; n < n1;) {
    const int64_t sub = n / image_channels;
    const int64_t o = n % image_channels;
    const int64_t run = min_of(n1 - n, image_channels - o);
    const int64_t row = y * r + sub / r;
    const int64_t col = k.x * r + sub % r;
    const int64_t index = offset_at(s.strides, k.b, o, row, col);
    const int64_t res = offset_at(s.residual_strides, k.b, o, row, col);
    for (int64_t p = 0; p < k.cols; ++p) {
      for (int64_t ahead = 0; ahead < run; ahead += kAlign) {
        __builtin_prefetch(s.data + index + (p + 8) * r * s.strides.x + ahead, 1);
      }
      store_run(s, index + p * r * s.strides.x, src + p * ld + (n - n0), run,
                res + p * r * s.residual_strides.x, s.residual_strides.c);
    }
    n += run;
  }
}

static void store_nchw_line(const Sink& s, const Block& k, int64_t y, int64_t n0, int64_t n1,
                            const float* planes) {
  const int64_t r = s.map.r;
  alignas(64) float line[kMaxUpscale * kMaxCols];
  for (int64_t n = n0; n < n1;) {
    const int64_t o = n / (r * r);
    const int64_t dy = n % (r * r) / r;
    const int64_t dx = n % r;
    const int64_t index = offset_at(s.strides, k.b, o, y * r + dy, k.x * r + dx);
    const int64_t res = offset_at(s.residual_strides, k.b, o, y * r + dy, k.x * r + dx);
    const float* plane = planes + (n - n0) * kMaxCols;
    if (r == 1 && s.strides.x == 1) {
      store_run(s, index, plane, k.cols, res, s.residual_strides.x);
      ++n;
    } else if (r > 1 && r <= kMaxUpscale && dx == 0 && n + r <= n1) {
      for (int64_t d = 0; d < r; ++d) {
        for (int64_t p = 0; p < k.cols; ++p) {
          line[p * r + d] = plane[d * kMaxCols + p];
        }
      }
      store_run(s, index, line, k.cols * r, res, s.residual_strides.x);
      n += r;
    } else {
      const int64_t step = r * s.strides.x;
      const bool plain =
          s.sign_bits == nullptr && !s.activate && s.scale == 1.0f && s.residual == nullptr;
      for (int64_t p = 0; plain && p < k.cols; ++p) {
        s.data[index + p * step] = plane[p];
      }
      for (int64_t p = 0; !plain && p < k.cols; ++p) {
        store_run(s, index + p * step, plane + p, 1, res + p * r * s.residual_strides.x, 1);
      }
      ++n;
    }
  }
}

constexpr int64_t kSinkScratch = kPlaneChunk * kMaxUpscale * kMaxCols;

// src[row][col][ld] holds the channels n0 to n1. scratch: kSinkScratch floats.
static void store_block(const Sink& s, const Block& k, int64_t n0, int64_t n1, const float* src,
                        int64_t row_pitch, int64_t ld, float* scratch) {
  // The rows of a plane follow each other in memory, so in planes rows are the inner loop.
  const int64_t chunk = s.nhwc ? n1 - n0 : kPlaneChunk * min_of(s.map.r, kMaxUpscale);
  for (int64_t n = n0; n < n1; n += chunk) {
    const int64_t last = min_of(n + chunk, n1);
    for (int64_t row = 0; row < k.rows; ++row) {
      const float* line = src + row * row_pitch + (n - n0);
      if (s.nhwc) {
        store_nhwc_line(s, k, k.y + row, n, last, line, ld);
      } else {
        transpose(line, ld, k.cols, last - n, scratch, kMaxCols);
        store_nchw_line(s, k, k.y + row, n, last, scratch);
      }
    }
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
