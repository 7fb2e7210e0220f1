// The kernel of conv_gemm.h for stride 1 and at least three taps.
#pragma once

#include "conv_gemm.cuh"

namespace dasr {

constexpr int kHaloThreads = 128, kHaloStages = 4, kHaloWidth = 16;

template <class T, class Math, int kRows, int kCols>
int64_t halo_shared_bytes(const GemmGeometry& g) {
  const int64_t halo =
      static_cast<int64_t>(kRows / kHaloWidth + g.h.reach()) * (kHaloWidth + g.w.reach()) * kPitch;
  const int halos = g.k_size * static_cast<int>(sizeof(T)) > kChunkBytes ? 2 : 1;
  const int64_t stages = halos * halo + kHaloStages * kCols * kPitch;
  constexpr int64_t kTile = tile_bytes<float, kRows, kCols>();
  return stages > kTile ? stages : kTile;
}

// Block: a patch kHaloWidth pixels wide, and kCols channels. Each step multiplies by one tap; the
// kernels of several steps and the halo of the next 64 bytes of channels are in flight.
template <class T, class Math, int kRows, int kCols>
__global__ void __launch_bounds__(kHaloThreads)
    conv_halo_kernel(const ConvGemmParams p, const GemmGeometry g) {
  constexpr int kThreads = kHaloThreads, kWarpRows = kRows / (kThreads / 32);
  constexpr int kChunk = kChunkBytes / sizeof(T);
  using Tile = WarpTile<T, Math, kWarpRows, kCols>;
  using acc_t = typename Tile::acc_t;
  DASR_DYNAMIC_SHARED(memory);  // kHaloStages kernels, then one or two halos
  DASR_SHARED(bias, acc_t[kCols]);

  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const GemmBlock block(p, g);
  const int n0 = block.n_tile * kCols;
  const int patch_y = block.tile / g.pixel_tiles_w * (kRows / kHaloWidth);
  const int patch_x = block.tile % g.pixel_tiles_w * kHaloWidth;
  const int halo_h = kRows / kHaloWidth + g.h.reach(), halo_w = kHaloWidth + g.w.reach();
  const int n_taps = g.h.taps * g.w.taps;
  const int n_steps = n_taps * ((g.k_size + kChunk - 1) / kChunk);
  // Of the halo: the source pixel of its corner. A transposed convolution walks its taps backwards.
  const int corner_y = patch_y + g.h.base - (g.h.tap_step < 0 ? g.h.reach() : 0);
  const int corner_x = patch_x + g.w.base - (g.w.tap_step < 0 ? g.w.reach() : 0);
  const Image<T> source(p.source, block.b, block.group, g.k_size, g.h.source, g.w.source);
  unsigned char* const halos = memory + kHaloStages * kCols * kPitch;

  mix_biases<acc_t, kCols>(p, g, block, n0, bias);

  const auto fetch_halo = [&](int chunk) {
    unsigned char* const to = halos + chunk % 2 * (halo_h * halo_w * kPitch);
    source.template fetch_patch<kThreads>(to, kPitch, g.fetch == Fetch::kVectors, corner_y,
                                          corner_x, halo_h, halo_w, chunk * kChunk, 4);
  };
  int next_tap = 0, next_chunk = 0;
  const auto fetch_step = [&](int step) {
    if (step < n_steps) {
      fetch_kernel_rows<T, kCols, kThreads>(p.kernels, g, block, n0, next_tap, next_chunk * kChunk,
                                            memory + step % kHaloStages * (kCols * kPitch));
      if (next_tap == 0 && next_chunk > 0) fetch_halo(next_chunk);
      if (++next_tap == n_taps) {
        next_tap = 0;
        ++next_chunk;
      }
    }
    cp_async_commit();
  };

  Tile tile;
  int offset[Tile::kRowsPerLane];
#pragma unroll
  for (int i = 0; i < Tile::kRowsPerLane; ++i) {
    const int row = warp * kWarpRows + Tile::row(lane, i);
    offset[i] = (row / kHaloWidth * halo_w + row % kHaloWidth) * kPitch;
  }
  fetch_halo(0);
  wait_for_previous();  // for the kernels
#pragma unroll 1
  for (int step = 0; step < kHaloStages - 1; ++step) fetch_step(step);
  int ty = 0, tx = 0, chunk = 0;
#pragma unroll 1
  for (int step = 0; step < n_steps; ++step) {
    cp_async_wait<kHaloStages - 2>();
    // The step has landed; the kernel before it is free, and so is, from the third tap on, the halo
    // of the chunk before.
    __syncthreads();
    fetch_step(step + kHaloStages - 1);
    const int y = ty * g.h.tap_step + (g.h.tap_step < 0 ? g.h.reach() : 0);
    const int x = tx * g.w.tap_step + (g.w.tap_step < 0 ? g.w.reach() : 0);
    tile.multiply(halos + (chunk % 2 * (halo_h * halo_w) + y * halo_w + x) * kPitch, offset,
                  memory + step % kHaloStages * (kCols * kPitch), lane);
    if (++tx == g.w.taps) {
      tx = 0;
      if (++ty == g.h.taps) {
        ty = 0;
        ++chunk;
      }
    }
  }

  finish<T, kRows, kCols, kThreads>(p, g, block, n0, tile, bias, memory, [&](int row) {
    const int y = patch_y + row / kHaloWidth, x = patch_x + row % kHaloWidth;
    return y < g.h.result && x < g.w.result ? Pixel{y, x} : Pixel{-1, 0};
  });
}

template <class T, class Math, int kRows, int kCols>
cudaError_t launch_halo(const ConvGemmParams& p, const GemmGeometry& g, cudaStream_t stream) {
  return launch_samples(&conv_halo_kernel<T, Math, kRows, kCols>, p, g, kHaloThreads,
                        static_cast<int>(halo_shared_bytes<T, Math, kRows, kCols>(g)), stream);
}

}  // namespace dasr
