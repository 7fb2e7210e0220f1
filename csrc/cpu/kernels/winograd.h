// One-dimensional Winograd transforms of vectors of channels, and their two-dimensional use.
#pragma once

#include "simd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// Six points, 0, +-sqrt(1/2), +-sqrt(2), infinity: the error of this choice is about half of that
// with the usual points 0, +-1, +-2.
struct WinogradSixPoints {
  static constexpr int kIn = 6;
  static constexpr float kP = 0.70710678118654752440f;
  static constexpr float kQ = 1.41421356237309504880f;

  DASR_OPS_INLINE void input(const vf* d, vf* t) {
    const vf even_p = d[4] - 2.0f * d[2];
    const vf even_q = d[4] - 0.5f * d[2];
    const vf odd_p = kP * d[3] - kQ * d[1];
    const vf odd_q = kQ * d[3] - kP * d[1];
    t[0] = (d[0] + d[4]) - 2.5f * d[2];
    t[1] = even_p + odd_p;
    t[2] = even_p - odd_p;
    t[3] = even_q + odd_q;
    t[4] = even_q - odd_q;
    t[5] = (d[1] + d[5]) - 2.5f * d[3];
  }
};

// F(4,3)
struct WinogradF4 : WinogradSixPoints {
  static constexpr int kOut = 4;
  static constexpr int kTaps = 3;

  DASR_OPS_INLINE void kernel(const vf* g, vf* u) {
    const vf even_p = (g[0] + 0.5f * g[2]) * (-2.0f / 3.0f);
    const vf even_q = (g[0] + 2.0f * g[2]) * (1.0f / 6.0f);
    const vf odd_p = g[1] * (kP * (-2.0f / 3.0f));
    const vf odd_q = g[1] * (kQ * (1.0f / 6.0f));
    u[0] = g[0];
    u[1] = even_p + odd_p;
    u[2] = even_p - odd_p;
    u[3] = even_q + odd_q;
    u[4] = even_q - odd_q;
    u[5] = g[2];
  }

  DASR_OPS_INLINE void output(const vf* m, vf* y) {
    const vf sum_p = m[1] + m[2];
    const vf sum_q = m[3] + m[4];
    const vf diff_p = m[1] - m[2];
    const vf diff_q = m[3] - m[4];
    y[0] = m[0] + sum_p + sum_q;
    y[1] = kP * diff_p + kQ * diff_q;
    y[2] = 0.5f * sum_p + 2.0f * sum_q;
    y[3] = (0.5f * kP) * diff_p + (2.0f * kQ) * diff_q + m[5];
  }

  DASR_OPS_INLINE void output_adjoint(const vf* y, vf* m) {
    const vf even_p = y[0] + 0.5f * y[2];
    const vf even_q = y[0] + 2.0f * y[2];
    const vf odd_p = kP * y[1] + (0.5f * kP) * y[3];
    const vf odd_q = kQ * y[1] + (2.0f * kQ) * y[3];
    m[0] = y[0];
    m[1] = even_p + odd_p;
    m[2] = even_p - odd_p;
    m[3] = even_q + odd_q;
    m[4] = even_q - odd_q;
    m[5] = y[3];
  }

  DASR_OPS_INLINE void kernel_adjoint(const vf* u, vf* g) {
    const vf sum_p = (u[1] + u[2]) * (-2.0f / 3.0f);
    const vf sum_q = (u[3] + u[4]) * (1.0f / 6.0f);
    g[0] = u[0] + sum_p + sum_q;
    g[1] = (kP * (-2.0f / 3.0f)) * (u[1] - u[2]) + (kQ * (1.0f / 6.0f)) * (u[3] - u[4]);
    g[2] = u[5] + 0.5f * sum_p + 2.0f * sum_q;
  }
};

// F(2,5)
struct WinogradF2x5 : WinogradSixPoints {
  static constexpr int kOut = 2;
  static constexpr int kTaps = 5;

  DASR_OPS_INLINE void kernel(const vf* g, vf* u) {
    const vf even_p = (g[0] + 0.5f * g[2] + 0.25f * g[4]) * (-2.0f / 3.0f);
    const vf even_q = (g[0] + 2.0f * g[2] + 4.0f * g[4]) * (1.0f / 6.0f);
    const vf odd_p = (g[1] + 0.5f * g[3]) * (kP * (-2.0f / 3.0f));
    const vf odd_q = (g[1] + 2.0f * g[3]) * (kQ * (1.0f / 6.0f));
    u[0] = g[0];
    u[1] = even_p + odd_p;
    u[2] = even_p - odd_p;
    u[3] = even_q + odd_q;
    u[4] = even_q - odd_q;
    u[5] = g[4];
  }

  DASR_OPS_INLINE void output(const vf* m, vf* y) {
    y[0] = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
    y[1] = kP * (m[1] - m[2]) + kQ * (m[3] - m[4]) + m[5];
  }

  DASR_OPS_INLINE void output_adjoint(const vf* y, vf* m) {
    const vf odd_p = kP * y[1];
    const vf odd_q = kQ * y[1];
    m[0] = y[0];
    m[1] = y[0] + odd_p;
    m[2] = y[0] - odd_p;
    m[3] = y[0] + odd_q;
    m[4] = y[0] - odd_q;
    m[5] = y[1];
  }

  DASR_OPS_INLINE void kernel_adjoint(const vf* u, vf* g) {
    const vf sum_p = (u[1] + u[2]) * (-2.0f / 3.0f);
    const vf sum_q = (u[3] + u[4]) * (1.0f / 6.0f);
    const vf diff_p = (kP * (-2.0f / 3.0f)) * (u[1] - u[2]);
    const vf diff_q = (kQ * (1.0f / 6.0f)) * (u[3] - u[4]);
    g[0] = u[0] + sum_p + sum_q;
    g[1] = diff_p + diff_q;
    g[2] = 0.5f * sum_p + 2.0f * sum_q;
    g[3] = 0.5f * diff_p + 2.0f * diff_q;
    g[4] = u[5] + 0.25f * sum_p + 4.0f * sum_q;
  }
};

// F(2,3) with the points 0, +-1, infinity.
struct WinogradF2 {
  static constexpr int kOut = 2;
  static constexpr int kTaps = 3;
  static constexpr int kIn = 4;

  DASR_OPS_INLINE void input(const vf* d, vf* t) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }

  DASR_OPS_INLINE void kernel(const vf* g, vf* u) {
    const vf even = (g[0] + g[2]) * 0.5f;
    const vf odd = g[1] * 0.5f;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }

  DASR_OPS_INLINE void output(const vf* m, vf* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }

  DASR_OPS_INLINE void output_adjoint(const vf* y, vf* m) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = y[1];
  }

  DASR_OPS_INLINE void kernel_adjoint(const vf* u, vf* g) {
    const vf sum = (u[1] + u[2]) * 0.5f;
    g[0] = u[0] + sum;
    g[1] = (u[1] - u[2]) * 0.5f;
    g[2] = u[3] + sum;
  }
};

// Applies Op (kFrom -> kTo values) to the columns, then to the rows of a square of vectors.
template <int kFrom, int kTo, void (*Op)(const vf*, vf*), typename Load, typename Store>
DASR_OPS_INLINE void transform_square(Load load_at, Store store_at) {
  vf half[kTo][kFrom];
  DASR_OPS_UNROLL
  for (int j = 0; j < kFrom; ++j) {
    vf column[kFrom];
    vf result[kTo];
    DASR_OPS_UNROLL
    for (int i = 0; i < kFrom; ++i) {
      column[i] = load_at(i, j);
    }
    Op(column, result);
    DASR_OPS_UNROLL
    for (int i = 0; i < kTo; ++i) {
      half[i][j] = result[i];
    }
  }
  DASR_OPS_UNROLL
  for (int i = 0; i < kTo; ++i) {
    vf result[kTo];
    Op(half[i], result);
    DASR_OPS_UNROLL
    for (int j = 0; j < kTo; ++j) {
      store_at(i, j, result[j]);
    }
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
