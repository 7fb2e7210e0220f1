// The general kernel of conv_gemm.h.
#pragma once

#include "conv_gemm.cuh"

namespace dasr {

constexpr int kGatherRows = 128, kGatherThreads = 128, kGatherStages = 3;

template <class T, class Math, int kCols>
constexpr int gather_shared_bytes() {
  using acc_t = typename WarpTile<T, Math, 32, kCols>::acc_t;
  constexpr int kStages = kGatherStages * (kGatherRows + kCols) * kPitch;
  constexpr int kTile = tile_bytes<acc_t, kGatherRows, kCols>();
  return kStages > kTile ? kStages : kTile;
}

// Block: kGatherRows pixels, in the order of memory, and kCols channels.
template <class T, class Math, int kCols>
__global__ void __launch_bounds__(kGatherThreads, kCols == 8       ? 4
                                                  : sizeof(T) == 8 ? 2
                                                                   : 3)
    conv_gather_kernel(const ConvGemmParams p, const GemmGeometry g) {
  constexpr int kRows = kGatherRows, kThreads = kGatherThreads;
  constexpr int kVector = 16 / sizeof(T), kChunk = kChunkBytes / sizeof(T);
  constexpr int kStage = (kRows + kCols) * kPitch;
  constexpr int kRowsPerThread = 4 * kRows / kThreads;  // if vectors are fetched
  constexpr int kOutside = -(1 << 30);                  // source row of pixels that do not exist
  using Tile = WarpTile<T, Math, kRows / (kThreads / 32), kCols>;
  using acc_t = typename Tile::acc_t;
  DASR_DYNAMIC_SHARED(memory);
  DASR_SHARED(pixels, int2[kRows]);  // of the phase; .y is the row
  DASR_SHARED(bias, acc_t[kCols]);

  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const GemmBlock block(p, g);
  const int n0 = block.n_tile * kCols;
  const int phase_h = block.phase / g.w.used_phases(), phase_w = block.phase % g.w.used_phases();
  const int width = g.w.pixels(phase_w);
  const int64_t n_pixels = static_cast<int64_t>(g.h.pixels(phase_h)) * width;
  const int64_t first = static_cast<int64_t>(block.tile) * kRows;
  if (first >= n_pixels) return;  // another phase is larger

  for (int row = tid; row < kRows; row += kThreads) {
    const int64_t i = first + row;
    const int y = static_cast<int>(i / width);
    pixels[row] = i < n_pixels ? int2{static_cast<int>(i - static_cast<int64_t>(y) * width), y}
                               : int2{0, kOutside};
  }
  mix_biases<acc_t, kCols>(p, g, block, n0, bias);
  __syncthreads();

  // The rows that this thread fetches: one for each 16-byte column, or one alone.
  int y0[kRowsPerThread], x0[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int2 pixel = pixels[g.fetch == Fetch::kVectors ? tid / 4 + kThreads / 4 * i : tid];
    y0[i] = pixel.y == kOutside ? kOutside : pixel.y * g.h.step;
    x0[i] = pixel.x * g.w.step;
  }
  const Image<T> source(p.source, block.b, block.group, g.k_size, g.h.source, g.w.source);

  int n_steps = 0;
  if (g.fetch == Fetch::kFlat) {
    n_steps = (g.k_size * g.h.taps * g.w.taps + kChunk - 1) / kChunk;
  } else {
    int hits_h = 0, hits_w = 0;
    for (int t = 0; t < g.h.taps; ++t) hits_h += g.h.hits(phase_h, t);
    for (int t = 0; t < g.w.taps; ++t) hits_w += g.w.hits(phase_w, t);
    n_steps = hits_h * hits_w * ((g.k_size + kChunk - 1) / kChunk);
  }

  // The next step to fetch: a tap and a chunk of channels.
  int next_ty = 0, next_tx = -1, next_c = 0;
  const auto advance = [&] {
    do {
      if (++next_tx < g.w.taps) continue;
      next_tx = 0;
      if (++next_ty < g.h.taps) continue;
      next_ty = 0;
      next_c += kChunk;
    } while (!g.h.hits(phase_h, next_ty) || !g.w.hits(phase_w, next_tx));
  };

  const auto fetch_vectors = [&](unsigned char* to, int dy, int dx) {
    const int part = tid % 4;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      source.copy(to + (tid / 4 + kThreads / 4 * i) * kPitch + 16 * part, y0[i] + dy, x0[i] + dx,
                  next_c + part * kVector);
    }
  };
  const auto fetch_elements = [&](unsigned char* to, int dy, int dx) {
    Pack<T, kVector> packs[4];  // all loads before the first store
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      packs[part] = source.load(y0[0] + dy, x0[0] + dx, next_c + part * kVector);
    }
#pragma unroll
    for (int part = 0; part < 4; ++part) store_shared(to + tid * kPitch + 16 * part, packs[part]);
  };

  // f(v, c, ty, tx, exists) for the 16 bytes from element k of a flat row.
  const auto walk_flat = [&](int k, auto f) {
    const int taps = g.h.taps * g.w.taps;
    int c = k / taps, ty = k % taps / g.w.taps, tx = k % taps % g.w.taps;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      f(v, c, ty, tx, c < g.k_size);
      if (++tx < g.w.taps) continue;
      tx = 0;
      if (++ty < g.h.taps) continue;
      ty = 0, ++c;
    }
  };
  const auto fetch_flat = [&](unsigned char* to) {
    const T* const kernels = static_cast<const T*>(p.kernels.data) +
                             block.sample * p.kernels.batch_stride + block.group * g.group_stride;
#pragma unroll 1
    for (int part = 0; part < 4; ++part) {
      Pack<T, kVector> pack;
      walk_flat(next_c + part * kVector, [&](int v, int c, int ty, int tx, bool exists) {
        exists = exists && g.h.hits(phase_h, ty) && g.w.hits(phase_w, tx);
        const int y = y0[0] + g.h.offset(phase_h, ty), x = x0[0] + g.w.offset(phase_w, tx);
        pack.values[v] =
            exists && source.holds(y, x) ? source.at(y, x)[c * source.c_stride] : zero<T>();
      });
      store_shared(to + tid * kPitch + 16 * part, pack);
    }
#pragma unroll 1
    for (int i = tid; i < 4 * kCols; i += kThreads) {
      const int row = i / 4, part = i % 4;
      Pack<T, kVector> pack;
      walk_flat(next_c + part * kVector, [&](int v, int c, int ty, int tx, bool exists) {
        pack.values[v] =
            exists && n0 + row < g.n_size
                ? kernels[(n0 + row) * g.n_stride + c * g.c_stride + ty * g.w.taps + tx]
                : zero<T>();
      });
      store_shared(to + (kRows + row) * kPitch + 16 * part, pack);
    }
    next_c += kChunk;
  };
  const auto fetch_step = [&](int step) {
    unsigned char* const to = memory + step % kGatherStages * kStage;
    if (step < n_steps) {
      if (g.fetch == Fetch::kFlat) {
        fetch_flat(to);
      } else {
        advance();
        const int dy = g.h.offset(phase_h, next_ty), dx = g.w.offset(phase_w, next_tx);
        fetch_kernel_rows<T, kCols, kThreads>(p.kernels, g, block, n0, next_ty * g.w.taps + next_tx,
                                              next_c, to + kRows * kPitch);
        if (g.fetch == Fetch::kVectors) {
          fetch_vectors(to, dy, dx);
        } else {
          fetch_elements(to, dy, dx);
        }
      }
    }
    cp_async_commit();
  };

  Tile tile;
  int offset[Tile::kRowsPerLane];
#pragma unroll
  for (int i = 0; i < Tile::kRowsPerLane; ++i) {
    offset[i] = (warp * (kRows / (kThreads / 32)) + Tile::row(lane, i)) * kPitch;
  }
  wait_for_previous();  // for the kernels
#pragma unroll
  for (int step = 0; step < kGatherStages - 1; ++step) fetch_step(step);
#pragma unroll 1
  for (int step = 0; step < n_steps; ++step) {
    cp_async_wait<kGatherStages - 2>();
    __syncthreads();  // step has landed, the stage before it is free
    fetch_step(step + kGatherStages - 1);
    const unsigned char* stage = memory + step % kGatherStages * kStage;
    tile.multiply(stage, offset, stage + kRows * kPitch, lane);
  }

  finish<T, kRows, kCols, kThreads>(p, g, block, n0, tile, bias, memory, [&](int row) {
    const int2 pixel = pixels[row];
    return pixel.y == kOutside
               ? Pixel{-1, 0}
               : Pixel{pixel.y * g.h.phases + phase_h, pixel.x * g.w.phases + phase_w};
  });
}

template <class T, class Math, int kCols>
cudaError_t launch_gather(const ConvGemmParams& p, const GemmGeometry& g, cudaStream_t stream) {
  return launch_samples(&conv_gather_kernel<T, Math, kCols>, p, g, kGatherThreads,
                        gather_shared_bytes<T, Math, kCols>(), stream);
}

}  // namespace dasr
