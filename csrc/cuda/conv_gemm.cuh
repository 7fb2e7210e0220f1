// What the two kernels of conv_gemm.h share.
#pragma once

#include "conv_gemm.h"
#include "conv_store.cuh"
#include "image.cuh"
#include "multiply.cuh"

namespace dasr {

// How a tap moves from a pixel of the result to one of the source, along one axis. The pixels of
// the result fall into `phases` classes by their remainder, each of which sees its own taps: there
// is more than one for the input gradient of a convolution with a stride.
//   source = pixel * step + offset(tap), result = pixel * phases + phase
struct GemmAxis {
  int taps, phases, step, base, tap_step;
  int source, result;  // extents

  __device__ bool hits(int phase, int tap) const {
    return (phase + base + tap * tap_step) % phases == 0;
  }
  __device__ int offset(int phase, int tap) const {
    return (phase + base + tap * tap_step) / phases;
  }
  // Source pixels from the first tap to the last.
  __host__ __device__ int reach() const {
    return (taps - 1) * (tap_step < 0 ? -tap_step : tap_step);
  }
  // Of a stride beyond the image most classes are empty: only these are launched.
  __host__ __device__ int used_phases() const { return phases < result ? phases : result; }
  __device__ int pixels(int phase) const { return (result - phase + phases - 1) / phases; }
};

inline GemmAxis gemm_axis(bool transposed, int taps, int stride, int pad, int dilation, int in,
                          int out) {
  if (transposed) return {taps, stride, 1, pad, -dilation, out, in};
  return {taps, 1, stride, -pad, dilation, in, out};
}

enum class Fetch {
  kVectors,   // of channels, by cp.async
  kElements,  // one by one, any strides
  kFlat,      // one by one, channels and taps are one dimension
};

struct GemmGeometry {
  GemmAxis h, w;
  int groups;
  int k_size, n_size;     // channels per group: of the source, of the result
  int n_tiles;            // of the columns of one group
  int pixel_tiles;        // of one phase (gather), of the image (halo)
  int pixel_tiles_w;      // halo
  int64_t launch_sample;  // of the samples computed, the first one of this launch
  // flat: element (n, c, tap) of a group's kernels
  int64_t group_stride, n_stride, c_stride;
  Fetch fetch;
  bool stores_vectors;
};

// The block's place, n_tile fastest so that neighbours share the source, then pixels, so that they
// share the kernels.
struct GemmBlock {
  int n_tile, tile, phase, group;
  int64_t sample;  // of those computed
  int64_t b;       // in the tensors

  __device__ GemmBlock(const ConvGemmParams& p, const GemmGeometry& g) {
    unsigned i = blockIdx.x;
    const auto next = [&](int n) {
      const int r = i % n;
      i /= n;
      return r;
    };
    n_tile = next(g.n_tiles);
    tile = next(g.pixel_tiles);
    phase = next(g.h.used_phases() * g.w.used_phases());
    group = next(g.groups);
    sample = g.launch_sample + i;
    b = p.first_sample + sample;
  }
};

// Rows n0 + [0, kCols) of one tap's kernel, channels c0 + [0, 64 bytes).
template <class T, int kCols, int kThreads>
__device__ __forceinline__ void fetch_kernel_rows(const PackedKernels& kernels,
                                                  const GemmGeometry& g, const GemmBlock& block,
                                                  int n0, int tap, int c0, unsigned char* to) {
  constexpr int kVector = 16 / sizeof(T);
  const T* from = static_cast<const T*>(kernels.data) + block.sample * kernels.batch_stride +
                  tap * kernels.tap_stride;
#pragma unroll
  for (int i = threadIdx.x; i < 4 * kCols; i += kThreads) {
    const int row = i / 4, part = i % 4;
    const int c = c0 + part * kVector;
    const bool exists = n0 + row < g.n_size && c < g.k_size;
    const int64_t n = exists ? static_cast<int64_t>(block.group) * g.n_size + n0 + row : 0;
    cp_async<16>(to + row * kPitch + 16 * part, from + n * kernels.row_stride + (exists ? c : 0),
                 exists ? 16 : 0);
  }
}

// Sums plus biases -> shared memory -> epilogue. `memory` may still be read by other warps.
template <class T, int kRows, int kCols, int kThreads, class Tile, class PixelOf>
__device__ __forceinline__ void finish(const ConvGemmParams& p, const GemmGeometry& g,
                                       const GemmBlock& block, int n0, const Tile& tile,
                                       const typename Tile::acc_t* bias, unsigned char* memory,
                                       PixelOf pixel_of) {
  using acc_t = typename Tile::acc_t;
  constexpr int kWarpRows = kRows / (kThreads / 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  acc_t* sums = reinterpret_cast<acc_t*>(memory);
  const int pitch = tile_pitch<acc_t, kCols>(p.out_stride[1] == 1);
  cp_async_wait<0>();
  __syncthreads();
  tile.for_each(lane, [&](int row, int col, acc_t sum) {
    sums[(warp * kWarpRows + row) * pitch + col] = sum + bias[col];
  });
  __syncthreads();
  const int n_cols = g.n_size - n0 < kCols ? g.n_size - n0 : kCols;
  store_tile<T, kRows, kCols, kThreads>(threadIdx.x, p.epilogue, static_cast<T*>(p.out),
                                        p.out_stride, g.stores_vectors, block.b,
                                        block.group * g.n_size + n0, n_cols, sums, pitch, pixel_of);
}

// Of the group and sample that `block` names.
template <class acc_t, int kCols, class Block>
__device__ __forceinline__ void mix_biases(const ConvGemmParams& p, const GemmGeometry& g,
                                           const Block& block, int n0, acc_t* bias) {
  const int col = threadIdx.x;
  if (col >= kCols) return;
  bias[col] = n0 + col < g.n_size ? mixed_bias<acc_t>(p.epilogue.bias, g.groups * g.n_size, block.b,
                                                      block.group * g.n_size + n0 + col)
                                  : acc_t(0);
}

// Launches for as many samples at a time as one grid holds.
template <class Kernel>
cudaError_t launch_samples(Kernel kernel, const ConvGemmParams& p, GemmGeometry g, int threads,
                           int shared_bytes, cudaStream_t stream) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  const int64_t per_sample = static_cast<int64_t>(g.n_tiles) * g.pixel_tiles * g.h.used_phases() *
                             g.w.used_phases() * g.groups;
  if (per_sample > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  const int64_t at_once = 0x7FFFFFFF / per_sample;
  for (int64_t b = 0; b < p.shape.batch; b += at_once) {
    const int64_t n = p.shape.batch - b < at_once ? p.shape.batch - b : at_once;
    g.launch_sample = b;
    const dim3 grid(static_cast<unsigned>(n * per_sample));
    const cudaError_t error =
        p.chained && b == 0 ? launch_dependent(kernel, grid, threads, shared_bytes, stream, p, g)
                            : launch(kernel, grid, threads, shared_bytes, stream, p, g);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dasr
