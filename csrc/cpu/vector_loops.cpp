#include "cpu/vector_loops.h"

namespace dasr::cpu {
namespace {

constexpr int kLanes = 32;

template <typename T>
inline __attribute__((always_inline)) void axpy_loop(T a, const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// Independent partial sums: they vectorise without reordering, and err less than one long chain.
template <typename T>
inline __attribute__((always_inline)) T dot_loop(const T* x, const T* y, int64_t n) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * y[i + l];
  }
  for (int l = 0; i + l < n; ++l) lanes[l] += x[i + l] * y[i + l];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

}  // namespace

DASR_TARGET_CLONES void axpy(float a, const float* x, float* y, int64_t n) {
  axpy_loop(a, x, y, n);
}
DASR_TARGET_CLONES void axpy(double a, const double* x, double* y, int64_t n) {
  axpy_loop(a, x, y, n);
}
DASR_TARGET_CLONES float dot(const float* x, const float* y, int64_t n) {
  return dot_loop(x, y, n);
}
DASR_TARGET_CLONES double dot(const double* x, const double* y, int64_t n) {
  return dot_loop(x, y, n);
}

}  // namespace dasr::cpu
