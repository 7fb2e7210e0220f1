// Rows of a [rows, N] matrix whose type is known at run time, in fp32 or fp64. The switch on the
// type is uniform and stands outside the loop over rows, so that the loads of all rows are in
// flight together; one kernel per accumulator type is enough.
#pragma once

#include "device.cuh"
#include "dtype.h"

namespace dasr {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ double widen(double value) { return value; }

template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  __device__ static float from(float value) { return value; }
  __device__ static float from(double value) { return static_cast<float>(value); }
};
template <>
struct Narrow<__half> {
  __device__ static __half from(float value) { return __float2half_rn(value); }
  __device__ static __half from(double value) { return __double2half(value); }
};
template <>
struct Narrow<__nv_bfloat16> {
  __device__ static __nv_bfloat16 from(float value) { return __float2bfloat16_rn(value); }
  __device__ static __nv_bfloat16 from(double value) { return __double2bfloat16(value); }
};
template <>
struct Narrow<double> {
  __device__ static double from(double value) { return value; }
};

// Calls f(T{}) with the type's C++ counterpart. fp64 is not compiled for fp32 accumulators: a
// launcher accumulates in fp64 as soon as one operand is.
template <class acc_t, class F>
__device__ __forceinline__ void with_type(DType type, F f) {
  switch (type) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(__half{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kFloat64:
      if constexpr (sizeof(acc_t) == 8) f(double{});
  }
}

template <class acc_t>
__device__ __forceinline__ acc_t load_element(const void* data, DType type, int64_t i) {
  acc_t value = 0;
  with_type<acc_t>(type, [&](auto t) { value = widen(static_cast<const decltype(t)*>(data)[i]); });
  return value;
}

template <class acc_t>
__device__ __forceinline__ void store_element(void* data, DType type, int64_t i, acc_t value) {
  with_type<acc_t>(type, [&](auto t) {
    using T = decltype(t);
    static_cast<T*>(data)[i] = Narrow<T>::from(value);
  });
}

constexpr int kWidth = 4;  // elements of a row per thread

// The elements of a row that one thread owns: kWidth neighbours if kVector (N % kWidth == 0 and
// aligned rows), else kWidth elements kStep apart, so that a warp still touches whole sectors.
template <bool kVector, int kStep>
struct Slice {
  int64_t begin;
  int64_t numel;

  __device__ Slice(int64_t tile, int thread, int64_t numel)
      : begin(tile * kStep * kWidth + (kVector ? thread * kWidth : thread)), numel(numel) {}
  __device__ bool holds(int i) const { return begin + (kVector ? 0 : i * kStep) < numel; }

  // values[r] = row row_of(r) of data; zeros where row_of(r) < 0 and beyond the end of the row.
  template <int kRows, class acc_t, class RowOf>
  __device__ __forceinline__ void load(const void* data, DType type, RowOf row_of,
                                       acc_t (&values)[kRows][kWidth]) const {
    with_type<acc_t>(type, [&](auto t) {
      using T = decltype(t);
      Pack<T, kWidth> raw[kRows] = {};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t row = row_of(r);
        const T* from = static_cast<const T*>(data) + row * numel + begin;
        if constexpr (kVector) {
          if (row >= 0 && holds(0)) raw[r] = load_pack<T, kWidth>(from);
        } else {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            if (row >= 0 && holds(i)) raw[r].values[i] = from[i * kStep];
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) values[r][i] = widen(raw[r].values[i]);
      }
    });
  }

  // The first n_rows rows of values become rows first_row, first_row + 1, ... of data.
  template <int kRows, class acc_t>
  __device__ __forceinline__ void store(void* data, DType type, int64_t first_row, int n_rows,
                                        const acc_t (&values)[kRows][kWidth]) const {
    with_type<acc_t>(type, [&](auto t) {
      using T = decltype(t);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= n_rows) continue;
        T* to = static_cast<T*>(data) + (first_row + r) * numel + begin;
        if constexpr (kVector) {
          Pack<T, kWidth> pack;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) pack.values[i] = Narrow<T>::from(values[r][i]);
          if (holds(0)) store_pack(to, pack);
        } else {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            if (holds(i)) to[i * kStep] = Narrow<T>::from(values[r][i]);
          }
        }
      }
    });
  }
};

// Whether the rows of data can be read as vectors of kWidth elements.
inline bool vector_rows(const void* data, DType type, int64_t numel) {
  const size_t bytes = size_of(type) * kWidth;
  return numel % kWidth == 0 && reinterpret_cast<uintptr_t>(data) % (bytes < 16 ? bytes : 16) == 0;
}

}  // namespace dasr
