// Pixels of one group of channels of one sample, on their way to shared memory.
#pragma once

#include "conv.h"
#include "convert.cuh"
#include "ptx.cuh"

namespace dasr {

template <class T>
__device__ __forceinline__ T zero() {
  return Narrow<T>::from(0.0f);
}

// 16 bytes in one instruction (see store_pack).
template <class T, int kN>
__device__ __forceinline__ void store_shared(unsigned char* to, const Pack<T, kN>& pack) {
  static_assert(sizeof(pack) == 16);
  uint4 words;
  memcpy(&words, &pack, 16);
  *reinterpret_cast<uint4*>(to) = words;
}

// Whether channels can be fetched 16 bytes at a time: host side.
inline bool holds_vectors(const ConvTensor& tensor, int group_channels) {
  const int width = static_cast<int>(16 / size_of(tensor.type));
  return tensor.stride[1] == 1 && group_channels % width == 0 && tensor.stride[0] % width == 0 &&
         tensor.stride[2] % width == 0 && tensor.stride[3] % width == 0 &&
         reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0;
}

template <class T>
struct Image {
  static constexpr int kVector = 16 / sizeof(T);

  const T* data;
  int64_t c_stride, y_stride, x_stride;
  int channels, height, width;

  __device__ Image(const ConvTensor& tensor, int64_t b, int group, int channels, int height,
                   int width)
      : data(static_cast<const T*>(tensor.data) + b * tensor.stride[0] +
             static_cast<int64_t>(group) * channels * tensor.stride[1]),
        c_stride(tensor.stride[1]),
        y_stride(tensor.stride[2]),
        x_stride(tensor.stride[3]),
        channels(channels),
        height(height),
        width(width) {}

  __device__ bool holds(int y, int x) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(height) &&
           static_cast<unsigned>(x) < static_cast<unsigned>(width);
  }
  __device__ const T* at(int y, int x) const { return data + y * y_stride + x * x_stride; }

  // 16 bytes of channels from c on; zeros outside of the image. Only if holds_vectors.
  __device__ __forceinline__ void copy(unsigned char* to, int y, int x, int c) const {
    const bool exists = holds(y, x) && c < channels;
    cp_async<16>(to, exists ? at(y, x) + c : data, exists ? 16 : 0);
  }
  // The same one element at a time, whatever the strides.
  __device__ __forceinline__ Pack<T, kVector> load(int y, int x, int c) const {
    const bool exists = holds(y, x);
    const T* const from = exists ? at(y, x) + c * c_stride : data;
    Pack<T, kVector> pack;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      pack.values[v] = exists && c + v < channels ? from[v * c_stride] : zero<T>();
    }
    return pack;
  }

  // A patch whose corner is (y0, x0), channels [c0, c0 + 16 * parts bytes): pixel after pixel,
  // `pitch` bytes apart.
  template <int kThreads>
  __device__ __forceinline__ void fetch_patch(unsigned char* to, int pitch, bool vectors, int y0,
                                              int x0, int patch_h, int patch_w, int c0,
                                              int parts) const {
    const int n_pixels = patch_h * patch_w;
#pragma unroll 2
    for (int i = threadIdx.x; i < parts * n_pixels; i += kThreads) {
      // Vectors: lanes along channels; elements: lanes along pixels.
      const int pixel = vectors ? i / parts : i % n_pixels;
      const int part = vectors ? i % parts : i / n_pixels;
      const int y = y0 + pixel / patch_w, x = x0 + pixel % patch_w, c = c0 + part * kVector;
      unsigned char* const row = to + pixel * pitch + 16 * part;
      if (vectors) {
        copy(row, y, x, c);
      } else {
        store_shared(row, load(y, x, c));
      }
    }
  }
};

}  // namespace dasr
