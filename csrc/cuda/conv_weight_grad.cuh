// The kernels of conv_weight_grad.h: one with a halo for stride 1, one that gathers.
#pragma once

#include "conv_weight_grad.h"
#include "image.cuh"
#include "outer_product.cuh"

namespace dasr {

constexpr int kOuterThreads = 128, kPatchWidth = 16;

struct WeightGradGeometry {
  int row_tiles, column_tiles;  // of output channels (64) and input channels
  int tap_blocks;               // groups of taps that a block works on
  int splits, patches, patches_w, patches_per_split;
  int64_t launch_sample;  // of the samples computed, the first one of this launch
  bool grad_vectors, input_vectors;
};

// The block's place: those that read the same pixels are neighbours.
struct WeightGradBlock {
  int row_tile, column_tile, tap_block, group, split;
  int64_t sample;  // of those computed
  int64_t b;       // in the tensors
  int first_patch, end_patch;

  __device__ WeightGradBlock(const ConvWeightGradParams& p, const WeightGradGeometry& g) {
    unsigned i = blockIdx.x;
    const auto next = [&](int n) {
      const int r = i % n;
      i /= n;
      return r;
    };
    tap_block = next(g.tap_blocks);
    column_tile = next(g.column_tiles);
    row_tile = next(g.row_tiles);
    split = next(g.splits);
    group = next(p.shape.groups);
    sample = g.launch_sample + i;
    b = p.first_sample + sample;
    first_patch = split * g.patches_per_split;
    end_patch = first_patch + g.patches_per_split < g.patches ? first_patch + g.patches_per_split
                                                              : g.patches;
  }
};

// Shared memory of one stage and of the sums of 16 output channels on their way out.
template <class T, class Math, int kTaps, int kNTiles>
struct OuterSizes {
  using acc_t = typename OuterTile<T, Math, kTaps, kNTiles>::acc_t;
  static constexpr int kColumns = kOuterThreads / 32 * 8 * kNTiles;
  // As many pixels as let two stages fit 99 KB.
  static constexpr int kPatchHeight = sizeof(T) == 2 ? 8 : sizeof(T) == 4 ? 4 : 2;
  static constexpr int kPixels = kPatchHeight * kPatchWidth;
  static constexpr int kGradPitch = outer_pitch<T>(kOuterRows);
  static constexpr int kInputPitch = outer_pitch<T>(kColumns);
  static constexpr int kGradBytes = kPixels * kGradPitch;
  static constexpr int kSumsBytes = 16 * kTaps * kColumns * static_cast<int>(sizeof(acc_t));

  static int64_t shared_bytes(int64_t input_pixels) {
    const int64_t stages = 2 * (kGradBytes + input_pixels * kInputPitch);
    return stages > kSumsBytes ? stages : kSumsBytes;
  }
};

// Writes the sums of a block: runs of input channels and taps are contiguous in memory.
template <int kTaps, int kColumns, class Tile>
__device__ __forceinline__ void store_sums(const ConvWeightGradParams& p,
                                           const WeightGradBlock& block, const Tile& tile,
                                           int first_column, int first_tap, int n_taps,
                                           unsigned char* memory) {
  using acc_t = typename Tile::acc_t;
  constexpr int kWarpColumns = kColumns / (kOuterThreads / 32);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  acc_t* const sums = reinterpret_cast<acc_t*>(memory);  // [16][kColumns][kTaps]
  const ConvShape& s = p.shape;
  const int group_in = s.group_in(), group_out = s.group_out(), taps = s.taps();
  const int first_row = block.row_tile * kOuterRows;
  const int n_columns = group_in - first_column < kColumns ? group_in - first_column : kColumns;
  acc_t* const out = static_cast<acc_t*>(p.partial) +
                     (block.split * s.batch + block.sample) * s.out_channels * group_in * taps;
#pragma unroll 1
  for (int m = 0; m < kOuterRows / 16; ++m) {
    __syncthreads();
    tile.for_each(m, lane, [&](int tap, int row, int column, acc_t sum) {
      sums[(row * kColumns + warp * kWarpColumns + column) * kTaps + tap] = sum;
    });
    __syncthreads();
    const int n = 16 * n_columns * n_taps;
    for (int i = tid; i < n; i += kOuterThreads) {
      const int tap = i % n_taps, column = i / n_taps % n_columns, row = i / n_taps / n_columns;
      const int o = first_row + 16 * m + row;
      if (o >= group_out) break;
      out[(static_cast<int64_t>(block.group * group_out + o) * group_in + first_column + column) *
              taps +
          first_tap + tap] = sums[(row * kColumns + column) * kTaps + tap];
    }
  }
}

// Stride 1: a patch of the gradient and the input under it, with its halo, serve up to kTaps taps
// of neighbouring rows of the kernel. Blocks of fewer columns than channels share the gradient.
template <class T, class Math, int kTaps>
__global__ void __launch_bounds__(kOuterThreads)
    weight_grad_halo_kernel(const ConvWeightGradParams p, const WeightGradGeometry g) {
  using Sizes = OuterSizes<T, Math, kTaps, 1>;
  using Tile = OuterTile<T, Math, kTaps, 1>;
  constexpr int kColumns = Sizes::kColumns;
  DASR_DYNAMIC_SHARED(memory);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const WeightGradBlock block(p, g);
  const ConvShape& s = p.shape;
  const int taps = s.taps(), first_tap = block.tap_block * kTaps;
  const int n_taps = taps - first_tap < kTaps ? taps - first_tap : kTaps;
  const int halo_h = Sizes::kPatchHeight + (s.kernel_h - 1) * s.dilation_h;
  const int halo_w = kPatchWidth + (s.kernel_w - 1) * s.dilation_w;
  const int stage_bytes = Sizes::kGradBytes + halo_h * halo_w * Sizes::kInputPitch;
  const int first_row = block.row_tile * kOuterRows, first_column = block.column_tile * kColumns;
  const Image<T> grad(p.grad, block.b, block.group, s.group_out(), s.out_height, s.out_width);
  const Image<T> input(p.input, block.b, block.group, s.group_in(), s.in_height, s.in_width);

  const auto fetch = [&](int patch) {
    if (patch < block.end_patch) {
      unsigned char* const to = memory + (patch - block.first_patch) % 2 * stage_bytes;
      const int y = patch / g.patches_w * Sizes::kPatchHeight;
      const int x = patch % g.patches_w * kPatchWidth;
      grad.template fetch_patch<kOuterThreads>(to, Sizes::kGradPitch, g.grad_vectors, y, x,
                                               Sizes::kPatchHeight, kPatchWidth, first_row,
                                               kOuterRows * static_cast<int>(sizeof(T)) / 16);
      input.template fetch_patch<kOuterThreads>(to + Sizes::kGradBytes, Sizes::kInputPitch,
                                                g.input_vectors, y - s.pad_top, x - s.pad_left,
                                                halo_h, halo_w, first_column,
                                                kColumns * static_cast<int>(sizeof(T)) / 16);
    }
    cp_async_commit();
  };

  int tap_offset[kTaps];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    const int tap = first_tap + t;
    tap_offset[t] = (tap / s.kernel_w * s.dilation_h * halo_w + tap % s.kernel_w * s.dilation_w) *
                    Sizes::kInputPitch;
  }
  Tile tile;
  fetch(block.first_patch);
#pragma unroll 1
  for (int patch = block.first_patch; patch < block.end_patch; ++patch) {
    cp_async_wait<0>();
    __syncthreads();  // the patch has landed, the one before it is free
    fetch(patch + 1);
    const unsigned char* const stage = memory + (patch - block.first_patch) % 2 * stage_bytes;
    const unsigned char* const channels =
        stage + Sizes::kGradBytes + warp * 8 * static_cast<int>(sizeof(T));
#pragma unroll 1
    for (int pixel = 0; pixel < Sizes::kPixels; pixel += Tile::kStep) {
      const unsigned char* const under =
          channels + (pixel / kPatchWidth * halo_w + pixel % kPatchWidth) * Sizes::kInputPitch;
      tile.multiply(
          stage + pixel * Sizes::kGradPitch, Sizes::kGradPitch,
          [&](int t) { return under + tap_offset[t]; }, Sizes::kInputPitch, n_taps, lane);
    }
  }
  cp_async_wait<0>();
  store_sums<kTaps, kColumns>(p, block, tile, first_column, first_tap, n_taps, memory);
}

// Anything: one tap at a time, the input under the pixels of a patch gathered.
template <class T, class Math>
__global__ void __launch_bounds__(kOuterThreads, 3)
    weight_grad_gather_kernel(const ConvWeightGradParams p, const WeightGradGeometry g) {
  constexpr int kNTiles = sizeof(T) == 8 ? 1 : 2;
  using Sizes = OuterSizes<T, Math, 1, kNTiles>;
  using Tile = OuterTile<T, Math, 1, kNTiles>;
  constexpr int kColumns = Sizes::kColumns, kVector = 16 / sizeof(T);
  constexpr int kStage = Sizes::kGradBytes + Sizes::kPixels * Sizes::kInputPitch;
  constexpr int kParts = kColumns / kVector;
  DASR_DYNAMIC_SHARED(memory);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const WeightGradBlock block(p, g);
  const ConvShape& s = p.shape;
  const int first_row = block.row_tile * kOuterRows, first_column = block.column_tile * kColumns;
  const int tap_y = block.tap_block / s.kernel_w * s.dilation_h - s.pad_top;
  const int tap_x = block.tap_block % s.kernel_w * s.dilation_w - s.pad_left;
  const Image<T> grad(p.grad, block.b, block.group, s.group_out(), s.out_height, s.out_width);
  const Image<T> input(p.input, block.b, block.group, s.group_in(), s.in_height, s.in_width);

  const auto fetch = [&](int patch) {
    if (patch < block.end_patch) {
      unsigned char* const to = memory + (patch - block.first_patch) % 2 * kStage;
      const int y0 = patch / g.patches_w * Sizes::kPatchHeight;
      const int x0 = patch % g.patches_w * kPatchWidth;
      grad.template fetch_patch<kOuterThreads>(to, Sizes::kGradPitch, g.grad_vectors, y0, x0,
                                               Sizes::kPatchHeight, kPatchWidth, first_row,
                                               kOuterRows / kVector);
#pragma unroll 2
      for (int i = tid; i < kParts * Sizes::kPixels; i += kOuterThreads) {
        const int pixel = g.input_vectors ? i / kParts : i % Sizes::kPixels;
        const int part = g.input_vectors ? i % kParts : i / Sizes::kPixels;
        const int y = (y0 + pixel / kPatchWidth) * s.stride_h + tap_y;
        const int x = (x0 + pixel % kPatchWidth) * s.stride_w + tap_x;
        unsigned char* const row = to + Sizes::kGradBytes + pixel * Sizes::kInputPitch + 16 * part;
        if (g.input_vectors) {
          input.copy(row, y, x, first_column + part * kVector);
        } else {
          store_shared(row, input.load(y, x, first_column + part * kVector));
        }
      }
    }
    cp_async_commit();
  };

  Tile tile;
  fetch(block.first_patch);
#pragma unroll 1
  for (int patch = block.first_patch; patch < block.end_patch; ++patch) {
    cp_async_wait<0>();
    __syncthreads();  // the patch has landed, the one before it is free
    fetch(patch + 1);
    const unsigned char* const stage = memory + (patch - block.first_patch) % 2 * kStage;
    const unsigned char* const channels =
        stage + Sizes::kGradBytes + warp * 8 * kNTiles * static_cast<int>(sizeof(T));
#pragma unroll 1
    for (int pixel = 0; pixel < Sizes::kPixels; pixel += Tile::kStep) {
      tile.multiply(
          stage + pixel * Sizes::kGradPitch, Sizes::kGradPitch,
          [&](int) { return channels + pixel * Sizes::kInputPitch; }, Sizes::kInputPitch, 1, lane);
    }
  }
  cp_async_wait<0>();
  store_sums<1, kColumns>(p, block, tile, first_column, block.tap_block, 1, memory);
}

// Launches for as many samples at a time as one grid holds.
template <class Kernel>
cudaError_t launch_weight_grad(Kernel kernel, const ConvWeightGradParams& p, WeightGradGeometry g,
                               int shared_bytes, cudaStream_t stream) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  const int64_t per_sample =
      static_cast<int64_t>(g.tap_blocks) * g.column_tiles * g.row_tiles * g.splits * p.shape.groups;
  if (per_sample > 0x7FFFFFFF) return cudaErrorInvalidConfiguration;
  const int64_t at_once = 0x7FFFFFFF / per_sample;
  for (int64_t b = 0; b < p.shape.batch; b += at_once) {
    const int64_t n = p.shape.batch - b < at_once ? p.shape.batch - b : at_once;
    g.launch_sample = b;
    const cudaError_t error = launch(kernel, dim3(static_cast<unsigned>(n * per_sample)),
                                     kOuterThreads, shared_bytes, stream, p, g);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace dasr
