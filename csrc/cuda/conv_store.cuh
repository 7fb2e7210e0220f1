// The end of a convolution kernel: a tile of sums, gathered in shared memory, goes through the
// epilogue to memory in the order that suits the output's layout.
#pragma once

#include "conv_epilogue.cuh"

namespace dasr {

// Shared-memory row length of a tile of kCols sums. Sums are read along rows where channels are
// neighbours in memory (vectors of them, so rows are aligned), else down columns.
template <class acc_t, int kCols>
__device__ __forceinline__ int tile_pitch(bool channels_last) {
  return channels_last ? kCols + (sizeof(acc_t) == 4 ? 4 : 2) : kCols + 1;
}
template <class acc_t, int kRows, int kCols>
constexpr int tile_bytes() {
  return kRows * (kCols + 4) * static_cast<int>(sizeof(acc_t));
}

// Whether vectors of channels can be stored: host side.
inline bool stores_vectors(const ConvEpilogue& p, const void* out, const int64_t (&stride)[4],
                           DType type, int group_channels) {
  const int width = static_cast<int>(16 / size_of(type));
  const auto aligned = [&](const void* data, const int64_t (&s)[4]) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && s[1] == 1 && s[0] % width == 0 &&
           s[2] % width == 0 && s[3] % width == 0;
  };
  return p.upscale == 1 && p.mask == nullptr && group_channels % width == 0 &&
         aligned(out, stride) &&
         (p.residual.data == nullptr ||
          (p.residual.type == type && aligned(p.residual.data, p.residual.stride)));
}

struct Pixel {
  int y, x;  // y < 0: outside of the image
};

// sums: [kRows][pitch], biases included, aligned to 16 bytes. Row r is the pixel pixel_of(r);
// column c is the output channel first_channel + c, and n_cols of them exist. tid: of kThreads.
template <class T, int kRows, int kCols, int kThreads, class acc_t, class PixelOf>
__device__ __forceinline__ void store_tile(int tid, const ConvEpilogue& p, T* out,
                                           const int64_t (&stride)[4], bool vectors, int64_t b,
                                           int first_channel, int n_cols, const acc_t* sums,
                                           int pitch, PixelOf pixel_of) {
  constexpr int kVector = 16 / sizeof(T), kPart = 16 / sizeof(acc_t);
  if (vectors) {
    constexpr int kPerRow = kCols / kVector;
    for (int i = tid; i < kRows * kPerRow; i += kThreads) {
      // Eight lanes, 32 bytes each, would meet half of the banks in one row; in two rows all.
      const int place =
          kPerRow == 8 && kVector != kPart ? (i & ~12) | (i & 4) << 1 | (i & 8) >> 1 : i;
      const int row = place / kPerRow, col = place % kPerRow * kVector;
      const Pixel pixel = pixel_of(row);
      if (pixel.y < 0 || col >= n_cols) continue;
      const int64_t channel = first_channel + col;
      Pack<T, kVector> residual = {};
      if (p.residual.data != nullptr) {
        const int64_t (&s)[4] = p.residual.stride;
        residual = load_pack<T, kVector>(static_cast<const T*>(p.residual.data) + b * s[0] +
                                         channel + pixel.y * s[2] + pixel.x * s[3]);
      }
      Pack<acc_t, kPart> parts[kVector / kPart];
#pragma unroll
      for (int v = 0; v < kVector; v += kPart) {
        parts[v / kPart] = load_pack<acc_t, kPart>(sums + row * pitch + col + v);
      }
      Pack<T, kVector> result;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        acc_t c = activate(p, parts[v / kPart].values[v % kPart]);
        if (p.residual.data != nullptr) {
          c = fma(static_cast<acc_t>(p.residual_scale), c,
                  static_cast<acc_t>(widen(residual.values[v])));
        }
        result.values[v] = Narrow<T>::from(c);
      }
      store_pack(out + b * stride[0] + channel + pixel.y * stride[2] + pixel.x * stride[3], result);
    }
    return;
  }
  const bool channels_last = stride[1] == 1;
  const int shuffled = p.upscale * p.upscale;
  for (int i = tid; i < kRows * kCols; i += kThreads) {
    int row, col;
    if (channels_last) {
      row = i / kCols, col = i % kCols;
      // Neighbours in memory are `shuffled` channels of the convolution apart.
      if (shuffled > 1 && kCols % shuffled == 0) {
        col = col % (kCols / shuffled) * shuffled + col / (kCols / shuffled);
      }
    } else {
      row = i % kRows, col = i / kRows;
    }
    const Pixel pixel = pixel_of(row);
    if (pixel.y < 0 || col >= n_cols) continue;
    store_output(p, out, stride, b, first_channel + col, pixel.y, pixel.x, sums[row * pitch + col]);
  }
}

}  // namespace dasr
