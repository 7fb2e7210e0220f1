// One warp's share of a matrix product: acc[m, n] += sum over k of A[m, k] * B[n, k], both operands
// in shared memory with k contiguous, kChunkBytes of it at a time. Rows lie kPitch bytes apart, so
// that the eight rows of an 8x8 matrix start in different banks.
#pragma once

#include "convert.cuh"
#include "ptx.cuh"

namespace dasr {

constexpr int kChunkBytes = 64;
constexpr int kPitch = kChunkBytes + 16;

// How operands of type T are multiplied.
struct Tf32 {};   // fp32 in memory, rounded to tf32 on the way to the tensor cores
struct Exact {};  // fp32 or fp64 without tensor cores

// bf16 (fp16) and tf32 fragments take the same bytes of a row: 16 x 16 and 16 x 8 elements.
template <class Math>
__device__ __forceinline__ void multiply_fragments(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<Math, Tf32>) {
    mma_m16n8k8_tf32(d, a, b);
  } else {
    mma_m16n8k16<Math>(d, a, b);
  }
}

template <class Math, int kN>
__device__ __forceinline__ void round_fragments([[maybe_unused]] uint32_t (&r)[kN]) {
  if constexpr (std::is_same_v<Math, Tf32>) {
#pragma unroll
    for (int i = 0; i < kN; ++i) r[i] = to_tf32(__uint_as_float(r[i]));
  }
}

// kRows x kCols sums of one warp in tensor-core fragments. Math: __half, __nv_bfloat16 or Tf32.
template <class T, class Math, int kRows, int kCols>
struct WarpTile {
  using acc_t = float;
  static constexpr int kMTiles = kRows / 16, kNTiles = kCols / 8;
  static constexpr int kRowsPerLane = kMTiles;  // whose addresses a lane gives

  float acc[kMTiles][kNTiles][4] = {};

  __device__ static int row(int lane, int i) { return 16 * i + lane % 16; }

  // Row row(lane, i) of A lies at a + offset[i], row n of B at b + n * kPitch.
  __device__ __forceinline__ void multiply(const unsigned char* a, const int (&offset)[kMTiles],
                                           const unsigned char* b, int lane) {
    a += lane / 16 * 16;
    b += (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < kChunkBytes; k += 32) {
      uint32_t a_fragment[kMTiles][4];
#pragma unroll
      for (int i = 0; i < kMTiles; ++i) {
        ldmatrix(a_fragment[i], a + offset[i] + k);
        round_fragments<Math>(a_fragment[i]);
      }
      if constexpr (kNTiles == 1) {
        uint32_t b_fragment[2];
        // Lanes 16 and up give no address here: those of the lanes below serve.
        ldmatrix(b_fragment, b - lane / 16 * 8 * kPitch + k);
        round_fragments<Math>(b_fragment);
#pragma unroll
        for (int i = 0; i < kMTiles; ++i) {
          multiply_fragments<Math>(acc[i][0], a_fragment[i], b_fragment);
        }
      } else {
#pragma unroll
        for (int j = 0; j < kNTiles; j += 2) {
          uint32_t pair[4];
          ldmatrix(pair, b + j * 8 * kPitch + k);
          round_fragments<Math>(pair);
          const uint32_t first[2] = {pair[0], pair[1]}, second[2] = {pair[2], pair[3]};
#pragma unroll
          for (int i = 0; i < kMTiles; ++i) {
            multiply_fragments<Math>(acc[i][j], a_fragment[i], first);
            multiply_fragments<Math>(acc[i][j + 1], a_fragment[i], second);
          }
        }
      }
    }
  }

  // f(row, column, sum) for each sum of this lane.
  template <class F>
  __device__ __forceinline__ void for_each(int lane, F f) const {
#pragma unroll
    for (int i = 0; i < kMTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kNTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          f(16 * i + lane / 4 + r / 2 * 8, 8 * j + lane % 4 * 2 + r % 2, acc[i][j][r]);
        }
      }
    }
  }
};

// The same without tensor cores, for T = float and double: lanes form a 4 x 8 grid.
template <class T, int kRows, int kCols>
struct WarpTile<T, Exact, kRows, kCols> {
  using acc_t = T;
  static constexpr int kRowsPerLane = kRows / 4, kColsPerLane = kCols / 8;
  static constexpr int kVector = 16 / sizeof(T);

  T acc[kRowsPerLane][kColsPerLane] = {};

  __device__ static int row(int lane, int i) { return 4 * i + lane / 8; }

  __device__ __forceinline__ void multiply(const unsigned char* a,
                                           const int (&offset)[kRowsPerLane],
                                           const unsigned char* b, int lane) {
    b += lane % 8 * kPitch;
#pragma unroll 1
    for (int k = 0; k < kChunkBytes; k += 16) {
      Pack<T, kVector> b_values[kColsPerLane];
#pragma unroll
      for (int j = 0; j < kColsPerLane; ++j) {
        b_values[j] = load_pack<T, kVector>(reinterpret_cast<const T*>(b + 8 * j * kPitch + k));
      }
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) {
        const auto a_values = load_pack<T, kVector>(reinterpret_cast<const T*>(a + offset[i] + k));
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
#pragma unroll
          for (int j = 0; j < kColsPerLane; ++j) {
            acc[i][j] = fma(a_values.values[v], b_values[j].values[v], acc[i][j]);
          }
        }
      }
    }
  }

  template <class F>
  __device__ __forceinline__ void for_each(int lane, F f) const {
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
#pragma unroll
      for (int j = 0; j < kColsPerLane; ++j) f(4 * i + lane / 8, 8 * j + lane % 8, acc[i][j]);
    }
  }
};

}  // namespace dasr
