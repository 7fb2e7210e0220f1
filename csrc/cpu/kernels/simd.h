// A vector of floats of the instruction set that the including file is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if !defined(DASR_OPS_ISA) || !defined(DASR_OPS_LANES)
#error "included by conv_<isa>.cpp and relayout.cpp only"
#endif

#define DASR_OPS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define DASR_OPS_UNROLL _Pragma("unroll")
#define DASR_OPS_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define DASR_OPS_UNROLL _Pragma("GCC unroll 32")
#define DASR_OPS_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, vi4{i, j, k, l})
#endif

// Compilers may fold a load into each of its uses, which costs more when it crosses cache lines.
#if defined(__x86_64__) && defined(__AVX512F__)
#define DASR_OPS_KEEP(v) __asm__("" : "+v"(v))
#elif defined(__x86_64__)
#define DASR_OPS_KEEP(v) __asm__("" : "+x"(v))
#else
#define DASR_OPS_KEEP(v)
#endif

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

constexpr int64_t kLanes = DASR_OPS_LANES;
constexpr int64_t kAlign = 16;  // floats: a cache line

// Register blocking of the matrix product: columns in vectors, accumulators in all.
#if DASR_OPS_LANES == 16 || defined(__aarch64__)
constexpr int kMaxPanelVecs = 4;
constexpr int kAccumulators = 24;
#else
constexpr int kMaxPanelVecs = 2;
constexpr int kAccumulators = 12;
#endif

typedef float vf __attribute__((vector_size(DASR_OPS_LANES * 4)));
typedef float vf_mem __attribute__((vector_size(DASR_OPS_LANES * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(DASR_OPS_LANES * 4)));
typedef float vf4 __attribute__((vector_size(16)));
typedef float vf4_mem __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t vi4 __attribute__((vector_size(16)));

DASR_OPS_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
DASR_OPS_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
DASR_OPS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DASR_OPS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

DASR_OPS_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_mem*>(p); }
DASR_OPS_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_mem*>(p) = v; }
DASR_OPS_INLINE vf splat(float x) { return x - vf{}; }

// The first n < kLanes elements; the others read as 0 and are not written.
DASR_OPS_INLINE vf load_first(const float* p, int64_t n) {
#if defined(__AVX512F__) && DASR_OPS_LANES == 16
  return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  vf v = {};
  for (int64_t i = 0; i < n; ++i) {
    v[i] = p[i];
  }
  return v;
#endif
}

DASR_OPS_INLINE void store_first(float* p, vf v, int64_t n) {
#if defined(__AVX512F__) && DASR_OPS_LANES == 16
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  for (int64_t i = 0; i < n; ++i) {
    p[i] = v[i];
  }
#endif
}

// Bit i: element i is > 0.
DASR_OPS_INLINE uint32_t positive_bits(vf v) {
#if defined(__AVX512F__) && DASR_OPS_LANES == 16
  return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__) && DASR_OPS_LANES == 8
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_GT_OQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) {
    bits |= static_cast<uint32_t>(v[i] > 0.0f) << i;
  }
  return bits;
#endif
}

// Lane i is all ones if bit i is set.
DASR_OPS_INLINE vi lanes_of_bits(uint32_t bits) {
  vi lane_bit;
  for (int i = 0; i < kLanes; ++i) {
    lane_bit[i] = 1 << i;
  }
  return (lane_bit & static_cast<int32_t>(bits)) != 0;
}

DASR_OPS_INLINE float sum_lanes(vf v) {
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) {
    sum += v[i];
  }
  return sum;
}

static void fill_zero(float* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    p[i] = 0.0f;
  }
}

static void copy_floats(float* dst, const float* src, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(dst + i, load(src + i));
  }
  if (i < n) {
    store_first(dst + i, load_first(src + i, n - i), n - i);
  }
}

// dst[j][i] = src[i][j] for i < rows, j < cols.
static void transpose(const float* src, int64_t src_stride, int64_t rows, int64_t cols, float* dst,
                      int64_t dst_stride) {
  const int64_t rows4 = rows / 4 * 4;
  const int64_t cols4 = cols / 4 * 4;
  for (int64_t i = 0; i < rows4; i += 4) {
    for (int64_t j = 0; j < cols4; j += 4) {
      const float* s = src + i * src_stride + j;
      float* d = dst + j * dst_stride + i;
      const vf4 r0 = *reinterpret_cast<const vf4_mem*>(s);
      const vf4 r1 = *reinterpret_cast<const vf4_mem*>(s + src_stride);
      const vf4 r2 = *reinterpret_cast<const vf4_mem*>(s + 2 * src_stride);
      const vf4 r3 = *reinterpret_cast<const vf4_mem*>(s + 3 * src_stride);
      const vf4 a = DASR_OPS_SHUFFLE4(r0, r1, 0, 4, 1, 5);
      const vf4 b = DASR_OPS_SHUFFLE4(r2, r3, 0, 4, 1, 5);
      const vf4 c = DASR_OPS_SHUFFLE4(r0, r1, 2, 6, 3, 7);
      const vf4 e = DASR_OPS_SHUFFLE4(r2, r3, 2, 6, 3, 7);
      *reinterpret_cast<vf4_mem*>(d) = DASR_OPS_SHUFFLE4(a, b, 0, 1, 4, 5);
      *reinterpret_cast<vf4_mem*>(d + dst_stride) = DASR_OPS_SHUFFLE4(a, b, 2, 3, 6, 7);
      *reinterpret_cast<vf4_mem*>(d + 2 * dst_stride) = DASR_OPS_SHUFFLE4(c, e, 0, 1, 4, 5);
      *reinterpret_cast<vf4_mem*>(d + 3 * dst_stride) = DASR_OPS_SHUFFLE4(c, e, 2, 3, 6, 7);
    }
    for (int64_t j = cols4; j < cols; ++j) {
      for (int64_t l = i; l < i + 4; ++l) {
        dst[j * dst_stride + l] = src[l * src_stride + j];
      }
    }
  }
  for (int64_t i = rows4; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      dst[j * dst_stride + i] = src[i * src_stride + j];
    }
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
