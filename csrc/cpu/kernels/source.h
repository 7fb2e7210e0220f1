// Reading an image into channels-last patches: any strides, zero padding, and for gradients the
// inverse of pixel shuffle and the derivative of the activation.
#pragma once

#include "simd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kMaxCols = 72;     // of what is transposed at a time
constexpr int64_t kMaxUpscale = 8;   // with a fast path in NCHW
constexpr int64_t kPlaneChunk = 16;  // channels that are transposed together

// How the channels of a convolution map to those of its pixel-shuffled image. `grouped` numbers
// them (dy, dx, o) so that neighbours stay neighbours in NHWC; otherwise (o, dy, dx) as in PyTorch.
struct ChannelMap {
  int64_t image_channels;
  int64_t r;
  bool grouped;

  int64_t image_channel(int64_t c) const { return grouped ? c % image_channels : c / (r * r); }
  int64_t sub(int64_t c) const { return grouped ? c / image_channels : c % (r * r); }
  int64_t torch_channel(int64_t c) const { return image_channel(c) * (r * r) + sub(c); }
};

// Groups of channels count as images of their own: image i is group i % groups of i / groups.
struct Strides {
  int64_t b, c, y, x;
  int64_t groups = 1;
  int64_t g = 0;

  int64_t image(int64_t i) const { return groups == 1 ? i * b : i / groups * b + i % groups * g; }
  bool equal(const Strides& o) const {
    return b == o.b && c == o.c && y == o.y && x == o.x && groups == o.groups && g == o.g;
  }
  // `channels`: of a group
  Strides in_groups(int64_t count, int64_t channels) const {
    return {b, c, y, x, count, count == 1 ? 0 : channels * c};
  }
};

DASR_OPS_INLINE Strides dense_strides(bool nhwc, int64_t c, int64_t h, int64_t w) {
  return nhwc ? Strides{c * h * w, 1, w * c, c} : Strides{c * h * w, h * w, w, 1};
}

enum class Access { kRows, kPlanes, kAny };

// height, width, channels: of the convolution, before pixel shuffle; strides: of the image in
// memory.
struct Source {
  const float* data;
  Strides strides;
  int64_t channels;
  int64_t height;
  int64_t width;
  ChannelMap map;
  Access access;

  // The derivative of the activation: x scale, and x slope where the gate is not > 0.
  bool gated = false;
  float scale = 1.0f;
  float slope = 1.0f;
  const float* gate = nullptr;
  const uint8_t* gate_bits = nullptr;
  Strides gate_strides = {};
};

DASR_OPS_INLINE uint32_t bits_at(const uint8_t* bits, int64_t index, int64_t n) {
  uint32_t word = 0;
  const int64_t first = index >> 3;
  const int64_t last = (index + n - 1) >> 3;
  for (int64_t i = first; i <= last; ++i) {
    word |= static_cast<uint32_t>(bits[i]) << (8 * (i - first));
  }
  return word >> (index & 7);
}

DASR_OPS_INLINE vf gate_value(const Source& s, vf v, vf gate, int64_t offset, int64_t n) {
  v *= s.scale;
  if (s.gate == nullptr && s.gate_bits == nullptr) {
    return v;
  }
  const vf closed = s.slope == 0.0f ? vf{} : v * s.slope;
  const vi open = s.gate != nullptr ? gate > 0.0f : lanes_of_bits(bits_at(s.gate_bits, offset, n));
  return open ? v : closed;
}

// n floats that are contiguous in memory, from an element offset.
static void load_run(const Source& s, int64_t offset, float* dst, int64_t n) {
  const float* src = s.data + offset;
  if (!s.gated) {
    return copy_floats(dst, src, n);
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vf gate = s.gate != nullptr ? load(s.gate + offset + i) : vf{};
    store(dst + i, gate_value(s, load(src + i), gate, offset + i, kLanes));
  }
  if (i < n) {
    const vf gate = s.gate != nullptr ? load_first(s.gate + offset + i, n - i) : vf{};
    const vf v = gate_value(s, load_first(src + i, n - i), gate, offset + i, n - i);
    store_first(dst + i, v, n - i);
  }
}

static float load_element(const Source& s, int64_t b, int64_t c, int64_t y, int64_t x) {
  const int64_t o = s.map.image_channel(c);
  const int64_t row = y * s.map.r + s.map.sub(c) / s.map.r;
  const int64_t col = x * s.map.r + s.map.sub(c) % s.map.r;
  float v = s.data[s.strides.image(b) + o * s.strides.c + row * s.strides.y + col * s.strides.x];
  if (!s.gated) {
    return v;
  }
  v *= s.scale;
  const Strides& g = s.gate_strides;
  const int64_t index = g.image(b) + o * g.c + row * g.y + col * g.x;
  bool open = true;
  if (s.gate != nullptr) {
    open = s.gate[index] > 0.0f;
  } else if (s.gate_bits != nullptr) {
    open = (s.gate_bits[index >> 3] >> (index & 7)) & 1;
  }
  return open ? v : s.slope == 0.0f ? 0.0f : v * s.slope;
}

static void load_rows(const Source& s, int64_t b, int64_t y, int64_t x0, int64_t n, int64_t c0,
                      int64_t c1, float* dst, int64_t ld) {
  const int64_t r = s.map.r;
  const int64_t base = s.strides.image(b) + y * r * s.strides.y + x0 * r * s.strides.x;
  if (r == 1) {
    if (c1 - c0 == ld && s.strides.x == ld) {
      return load_run(s, base + c0, dst, n * ld);
    }
    for (int64_t p = 0; p < n; ++p) {
      load_run(s, base + p * s.strides.x + c0, dst + p * ld, c1 - c0);
    }
    return;
  }
  const int64_t image_channels = s.map.image_channels;
  for (int64_t c = c0; c < c1;) {
    const int64_t sub = c / image_channels;
    const int64_t o = c % image_channels;
    const int64_t run = min_of(c1 - c, image_channels - o);
    const int64_t at = base + (sub / r) * s.strides.y + (sub % r) * s.strides.x + o;
    for (int64_t p = 0; p < n; ++p) {
      load_run(s, at + p * r * s.strides.x, dst + p * ld + (c - c0), run);
    }
    c += run;
  }
}

static void load_planes(const Source& s, int64_t b, int64_t y, int64_t x0, int64_t n, int64_t c0,
                        int64_t c1, float* dst, int64_t ld) {
  for (; n > kMaxCols; n -= kMaxCols) {
    load_planes(s, b, y, x0, kMaxCols, c0, c1, dst, ld);
    x0 += kMaxCols;
    dst += kMaxCols * ld;
  }
  const int64_t r = s.map.r;
  const int64_t base = s.strides.image(b) + y * r * s.strides.y + x0 * r;
  if (r == 1 && !s.gated) {
    return transpose(s.data + base + c0 * s.strides.c, s.strides.c, c1 - c0, n, dst, ld);
  }
  alignas(64) float chunk[kPlaneChunk * kMaxCols];
  alignas(64) float raw[kMaxUpscale * kMaxCols];
  int64_t loaded = -1;
  for (int64_t first = c0; first < c1; first += kPlaneChunk) {
    const int64_t last = min_of(first + kPlaneChunk, c1);
    for (int64_t c = first; c < last; ++c) {
      float* row = chunk + (c - first) * kMaxCols;
      if (r == 1) {
        load_run(s, base + c * s.strides.c, row, n);
        continue;
      }
      if (c / r != loaded) {
        loaded = c / r;
        load_run(s, base + (loaded / r) * s.strides.c + (loaded % r) * s.strides.y, raw, n * r);
      }
      for (int64_t p = 0; p < n; ++p) {
        row[p] = raw[p * r + c % r];
      }
    }
    transpose(chunk, kMaxCols, last - first, n, dst + (first - c0), ld);
  }
}

// dst[p][c - c0] of n pixels of a row that are all inside the image.
static void load_pixels(const Source& s, int64_t b, int64_t y, int64_t x0, int64_t n, int64_t c0,
                        int64_t c1, float* dst, int64_t ld) {
  switch (s.access) {
    case Access::kRows:
      return load_rows(s, b, y, x0, n, c0, c1, dst, ld);
    case Access::kPlanes:
      return load_planes(s, b, y, x0, n, c0, c1, dst, ld);
    default:
      for (int64_t p = 0; p < n; ++p) {
        for (int64_t c = c0; c < c1; ++c) {
          dst[p * ld + (c - c0)] = load_element(s, b, c, y, x0 + p);
        }
      }
  }
}

struct Window {
  int64_t y, x, rows, cols;  // y and x may lie outside of the image
};

// Where a window meets the image: columns [left, right) of the window, rows [top, bottom).
struct Inside {
  int64_t left, right, top, bottom;

  Inside(const Source& s, const Window& w)
      : left(min_of(max_of(-w.x, 0), w.cols)),
        right(max_of(min_of(w.cols, s.width - w.x), left)),
        top(min_of(max_of(-w.y, 0), w.rows)),
        bottom(left == right ? top : max_of(min_of(w.rows, s.height - w.y), top)) {}
};

// dst[row][col][ld]; what is outside of the image and channels from c1 - c0 to ld read as 0.
static void load_patch(const Source& s, int64_t b, const Window& w, int64_t c0, int64_t c1,
                       float* dst, int64_t ld) {
  const Inside in(s, w);
  const int64_t pitch = w.cols * ld;
  fill_zero(dst, in.top * pitch);
  fill_zero(dst + in.bottom * pitch, (w.rows - in.bottom) * pitch);
  for (int64_t row = in.top; row < in.bottom; ++row) {
    float* line = dst + row * pitch;
    fill_zero(line, in.left * ld);
    fill_zero(line + in.right * ld, (w.cols - in.right) * ld);
    if (c1 - c0 < ld) {
      for (int64_t p = in.left; p < in.right; ++p) {
        fill_zero(line + p * ld + (c1 - c0), ld - (c1 - c0));
      }
    }
  }
  // The rows of a plane follow each other in memory, so in planes rows are the inner loop.
  const int64_t chunk = s.access == Access::kPlanes ? kPlaneChunk * s.map.r : max_of(c1 - c0, 1);
  for (int64_t c = c0; c < c1; c += chunk) {
    for (int64_t row = in.top; row < in.bottom; ++row) {
      load_pixels(s, b, w.y + row, w.x + in.left, in.right - in.left, c, min_of(c + chunk, c1),
                  dst + row * pitch + in.left * ld + (c - c0), ld);
    }
  }
}

// dst[c][row][pitch]; what is outside of the image reads as 0. scratch: w.cols * channels.
static void load_planar(const Source& s, int64_t b, const Window& w, float* dst, int64_t pitch,
                        float* scratch) {
  const Inside in(s, w);
  const int64_t left = in.left;
  const int64_t right = in.right;
  const int64_t plane = w.rows * pitch;
  for (int64_t row = 0; row < w.rows; ++row) {
    float* line = dst + row * pitch;
    const int64_t y = w.y + row;
    if (row < in.top || row >= in.bottom) {
      for (int64_t c = 0; c < s.channels; ++c) {
        fill_zero(line + c * plane, pitch);
      }
      continue;
    }
    for (int64_t c = 0; c < s.channels; ++c) {
      fill_zero(line + c * plane, left);
      fill_zero(line + c * plane + right, pitch - right);
    }
    const int64_t n = right - left;
    if (s.access == Access::kPlanes && s.map.r == 1) {
      const int64_t at = s.strides.image(b) + y * s.strides.y + w.x + left;
      for (int64_t c = 0; c < s.channels; ++c) {
        load_run(s, at + c * s.strides.c, line + c * plane + left, n);
      }
    } else if (s.access == Access::kRows && s.map.r == 1 && !s.gated) {
      const int64_t at = s.strides.image(b) + y * s.strides.y + (w.x + left) * s.strides.x;
      transpose(s.data + at, s.strides.x, n, s.channels, line + left, plane);
    } else {
      load_pixels(s, b, y, w.x + left, n, 0, s.channels, scratch, s.channels);
      transpose(scratch, s.channels, n, s.channels, line + left, plane);
    }
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
