// One warp's share of a matrix product whose reduction runs over pixels: for each tap t,
//   acc[t][o, i] += sum over pixels of grad[pixel, o] * input[t][pixel, i]
// with both operands in shared memory, pixel after pixel, channels contiguous: the transpose of
// what WarpTile (multiply.cuh) reads. A warp owns 64 output channels and 8 * kNTiles input
// channels.
#pragma once

#include "multiply.cuh"

namespace dasr {

constexpr int kOuterRows = 64;

// Shared memory of a pixel's channels, such that the loads of a warp meet different banks.
template <class T>
constexpr int outer_pitch(int channels) {
  return channels * static_cast<int>(sizeof(T)) + (sizeof(T) == 2 ? 16 : 32);
}

// Sums in tensor-core fragments.
template <int kTaps, int kNTiles>
struct OuterFragments {
  using acc_t = float;
  static constexpr int kMTiles = kOuterRows / 16;

  float acc[kTaps][kMTiles][kNTiles][4] = {};

  // f(tap, row of 16, column, sum) for the sums of rows 16 * m + [0, 16).
  template <class F>
  __device__ __forceinline__ void for_each(int m_tile, int lane, F f) const {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int m = 0; m < kMTiles; ++m) {
        if (m != m_tile) continue;
#pragma unroll
        for (int n = 0; n < kNTiles; ++n) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            f(t, lane / 4 + r / 2 * 8, 8 * n + lane % 4 * 2 + r % 2, acc[t][m][n][r]);
          }
        }
      }
    }
  }
};

// 16-bit types: ldmatrix transposes.
template <class T, class Math, int kTaps, int kNTiles>
struct OuterTile : OuterFragments<kTaps, kNTiles> {
  using OuterFragments<kTaps, kNTiles>::acc;
  using OuterFragments<kTaps, kNTiles>::kMTiles;
  static constexpr int kStep = 16;  // pixels at a time

  // grad: [kStep][64] and, for tap t, input_of(t): [kStep][...] from this warp's first channel on.
  template <class InputOf>
  __device__ __forceinline__ void multiply(const unsigned char* grad, int grad_pitch,
                                           InputOf input_of, int input_pitch, int n_taps,
                                           int lane) {
    const int matrix = lane / 8, row = lane % 8;
    uint32_t a[kMTiles][4];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
      ldmatrix_trans(a[m],
                     grad + (matrix / 2 * 8 + row) * grad_pitch + (16 * m + matrix % 2 * 8) * 2);
    }
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      if (t >= n_taps) break;
      const unsigned char* from = input_of(t) + (matrix % 2 * 8 + row) * input_pitch;
#pragma unroll
      for (int n = 0; n < kNTiles; n += 2) {
        uint32_t b[2][2];
        if constexpr (kNTiles == 1) {
          ldmatrix_trans(b[0], from);
        } else {
          uint32_t pair[4];
          ldmatrix_trans(pair, from + (8 * n + matrix / 2 * 8) * 2);
          b[0][0] = pair[0], b[0][1] = pair[1], b[1][0] = pair[2], b[1][1] = pair[3];
        }
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) {
          mma_m16n8k16<Math>(acc[t][m][n], a[m], b[0]);
          if constexpr (kNTiles > 1) mma_m16n8k16<Math>(acc[t][m][n + 1], a[m], b[1]);
        }
      }
    }
  }
};

// tf32: there is no transposing load for 32 bits.
template <int kTaps, int kNTiles>
struct OuterTile<float, Tf32, kTaps, kNTiles> : OuterFragments<kTaps, kNTiles> {
  using OuterFragments<kTaps, kNTiles>::acc;
  using OuterFragments<kTaps, kNTiles>::kMTiles;
  static constexpr int kStep = 8;

  __device__ static uint32_t element(const unsigned char* base, int pitch, int pixel, int channel) {
    return to_tf32(*reinterpret_cast<const float*>(base + pixel * pitch + 4 * channel));
  }

  template <class InputOf>
  __device__ __forceinline__ void multiply(const unsigned char* grad, int grad_pitch,
                                           InputOf input_of, int input_pitch, int n_taps,
                                           int lane) {
    const int g = lane / 4, k = lane % 4;
    uint32_t a[kMTiles][4];
#pragma unroll
    for (int m = 0; m < kMTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[m][r] = element(grad, grad_pitch, k + r / 2 * 4, 16 * m + g + r % 2 * 8);
      }
    }
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      if (t >= n_taps) break;
      const unsigned char* from = input_of(t);
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const uint32_t b[2] = {element(from, input_pitch, k, 8 * n + g),
                               element(from, input_pitch, k + 4, 8 * n + g)};
#pragma unroll
        for (int m = 0; m < kMTiles; ++m) mma_m16n8k8_tf32(acc[t][m][n], a[m], b);
      }
    }
  }
};

// fp32 and fp64 without tensor cores: lanes form a grid of 8 output by 4 input channels.
template <class T, int kTaps, int kNTiles>
struct OuterTile<T, Exact, kTaps, kNTiles> {
  using acc_t = T;
  static constexpr int kStep = 8;
  static constexpr int kMTiles = kOuterRows / 16, kRows = kOuterRows / 8, kCols = 2 * kNTiles;

  T acc[kTaps][kRows][kCols] = {};

  template <class InputOf>
  __device__ __forceinline__ void multiply(const unsigned char* grad, int grad_pitch,
                                           InputOf input_of, int input_pitch, int n_taps,
                                           int lane) {
#pragma unroll 1
    for (int pixel = 0; pixel < kStep; ++pixel) {
      const T* const from = reinterpret_cast<const T*>(grad + pixel * grad_pitch) + lane % 8;
      T a[kRows];
#pragma unroll
      for (int m = 0; m < kRows; ++m) a[m] = from[8 * m];
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (t >= n_taps) break;
        const T* const b = reinterpret_cast<const T*>(input_of(t) + pixel * input_pitch) + lane / 8;
#pragma unroll
        for (int n = 0; n < kCols; ++n) {
#pragma unroll
          for (int m = 0; m < kRows; ++m) acc[t][m][n] = fma(a[m], b[4 * n], acc[t][m][n]);
        }
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void for_each(int m_tile, int lane, F f) const {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (m / 2 != m_tile) continue;
#pragma unroll
        for (int n = 0; n < kCols; ++n) {
          f(t, m % 2 * 8 + lane % 8, 4 * n + lane / 8, acc[t][m][n]);
        }
      }
    }
  }
};

}  // namespace dasr
