// Register-blocked matrix product. C[m][n] (+)= sum over segments s and k of A[s][m][k] B[s][k][n].
// Sums of at most kMaxChain terms may replace the rows of A that they are formed of.
#pragma once

#include "simd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct Gemm {
  int64_t rows;  // of A and C
  int64_t cols;  // vectors, at most kMaxPanelVecs
  int64_t depth;
  int64_t segments = 1;
  const float* a;
  int64_t a_row;
  int64_t a_depth;
  int64_t a_segment = 0;
  const float* b;
  int64_t b_depth;
  int64_t b_segment = 0;
  float* c;
  int64_t c_row;
  bool accumulate = false;
};

template <int kRows, int kVecs>
DASR_OPS_INLINE void gemm_tile(const Gemm& g, const float* a_tile, float* c) {
  const int64_t a_row = g.a_row;
  const int64_t c_row = g.c_row;
  vf acc[kRows][kVecs];
  DASR_OPS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    DASR_OPS_UNROLL
    for (int n = 0; n < kVecs; ++n) {
      acc[m][n] = vf{};
    }
  }
  for (int64_t s = 0; s < g.segments; ++s) {
    const float* a = a_tile + s * g.a_segment;
    const float* b = g.b + s * g.b_segment;
    for (int64_t k = 0; k < g.depth; ++k) {
      vf bv[kVecs];
      DASR_OPS_UNROLL
      for (int n = 0; n < kVecs; ++n) {
        bv[n] = load(b + n * kLanes);
      }
      DASR_OPS_UNROLL
      for (int m = 0; m < kRows; ++m) {
        const vf av = splat(a[m * a_row]);
        DASR_OPS_UNROLL
        for (int n = 0; n < kVecs; ++n) {
          acc[m][n] += av * bv[n];
        }
      }
      a += g.a_depth;
      b += g.b_depth;
    }
  }
  DASR_OPS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    DASR_OPS_UNROLL
    for (int n = 0; n < kVecs; ++n) {
      float* dst = c + m * c_row + n * kLanes;
      store(dst, g.accumulate ? load(dst) + acc[m][n] : acc[m][n]);
    }
  }
}

template <int kRows, int kVecs>
static __attribute__((noinline)) int64_t gemm_tiles(const Gemm& g, int64_t m) {
  for (; m + kRows <= g.rows; m += kRows) {
    gemm_tile<kRows, kVecs>(g, g.a + m * g.a_row, g.c + m * g.c_row);
  }
  return m;
}

template <int kVecs>
static void gemm_panel(const Gemm& g) {
  constexpr int kRows = kAccumulators / kVecs < 12 ? kAccumulators / kVecs : 12;
  int64_t m = gemm_tiles<kRows, kVecs>(g, 0);
  if (kRows > 8) {
    m = gemm_tiles<8, kVecs>(g, m);
  }
  if (kRows > 4) {
    m = gemm_tiles<4, kVecs>(g, m);
  }
  m = gemm_tiles<2, kVecs>(g, m);
  gemm_tiles<1, kVecs>(g, m);
}

static void gemm_chain(const Gemm& g) {
  switch (g.cols) {
    case 1:
      return gemm_panel<1>(g);
    case 2:
      return gemm_panel<2>(g);
#if DASR_OPS_LANES == 16 || defined(__aarch64__)
    case 3:
      return gemm_panel<3>(g);
    default:
      return gemm_panel<4>(g);
#else
    default:
      return;
#endif
  }
}

// Sums of sums: rounding errors of one chain of additions grow with its length.
constexpr int64_t kMaxChain = 256;

static void gemm(const Gemm& g) {
  if (g.depth * g.segments <= kMaxChain) {
    return gemm_chain(g);
  }
  Gemm part = g;
  const int64_t chunks = ceil_div(g.depth, kMaxChain);
  const int64_t segments = max_of(kMaxChain / g.depth, 1);
  for (int64_t s = 0; s < g.segments; s += segments) {
    part.segments = min_of(segments, g.segments - s);
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t k = i * g.depth / chunks;
      part.depth = (i + 1) * g.depth / chunks - k;
      part.a = g.a + s * g.a_segment + k * g.a_depth;
      part.b = g.b + s * g.b_segment + k * g.b_depth;
      gemm_chain(part);
      part.accumulate = true;
    }
  }
}

// Columns of a matrix, in vectors, cut into panels of about equal width.
struct Panels {
  int64_t vecs;
  int64_t count;

  // Divisions are slow, and one panel is common.
  int64_t first_vec(int64_t panel) const {
    return count == 1 ? panel * vecs : panel * vecs / count;
  }
  int64_t num_vecs(int64_t panel) const { return first_vec(panel + 1) - first_vec(panel); }
  int64_t panel_of(int64_t vec) const { return count == 1 ? 0 : ((vec + 1) * count - 1) / vecs; }
};

struct PanelRange {
  int64_t first, last;
};

DASR_OPS_INLINE Panels panels_of(int64_t columns) {
  const int64_t vecs = ceil_div(columns, kLanes);
  return {vecs, ceil_div(vecs, kMaxPanelVecs)};
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
