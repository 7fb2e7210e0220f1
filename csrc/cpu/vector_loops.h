// Inner loops that the compiler vectorises once for each instruction set; the loader picks one.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define DASR_TARGET_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define DASR_TARGET_CLONES
#endif

namespace dasr::cpu {

// y += a * x
void axpy(float a, const float* x, float* y, int64_t n);
void axpy(double a, const double* x, double* y, int64_t n);

// sum of x * y, always in the same order
float dot(const float* x, const float* y, int64_t n);
double dot(const double* x, const double* y, int64_t n);

}  // namespace dasr::cpu
