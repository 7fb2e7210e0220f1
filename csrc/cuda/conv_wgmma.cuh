// The kernel of conv_wgmma.h. Output channels are the rows of the product, pixels its columns.
//
// A block stays with one sample's kernel for 64 channels ("unit") as long as it can: the kernel is
// loaded once, and then each warpgroup by itself walks over tiles of 8 x 16 pixels, one halo in use
// and the next one on its way. While one warpgroup stores its sums the others multiply.
//
// Both operands lie in shared memory as vectors of eight channels: [tap][vector][row] the kernel,
// [vector][pixel] a halo. Without a swizzle the eight pixels of a row of the tile are eight vectors
// on end wherever they start, so that a tap is nothing but another address.
#pragma once

#include "conv_gemm.cuh"
#include "ptx_sm90.cuh"

// The instructions are those of sm_90a alone. Elsewhere the kernels are empty shells, never called.
#if defined(DASR_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DASR_HAS_WGMMA 1
#endif

namespace dasr {

constexpr int kWgmmaCols = 64, kWgmmaTileW = 8, kWgmmaTileH = 16;
constexpr int kWarpgroup = 128, kMaxWarpgroups = 3;
constexpr int kVectorBytes = 16, kVectorChannels = 8;  // of fp16 or bf16
// Half a tile of sums at a time goes through shared memory, in the place of the halo.
constexpr int kStoredPixels = 64;

struct WgmmaGeometry : GemmGeometry {
  int vectors;  // of channels
  int halo_h, halo_w;
  int plane_bytes;   // from one vector of a halo to the next
  int buffer_bytes;  // a halo, or sums
  int kernel_bytes;
  // Blocks share the tiles of all units or, where that is as fast, of one unit each.
  int sharers;
  int64_t shared_tiles;
};

struct WgmmaUnit {
  int n_tile, group;
  int64_t sample;  // of those computed
  int64_t b;       // in the tensors

  __device__ WgmmaUnit(const ConvGemmParams& p, const WgmmaGeometry& g, int64_t unit)
      : n_tile(static_cast<int>(unit % g.n_tiles)),
        group(static_cast<int>(unit / g.n_tiles % g.groups)),
        sample(unit / g.n_tiles / g.groups),
        b(p.first_sample + sample) {}
};

// The kernel's rows n0 + [0, 64); rows that do not exist are zeros.
template <class T>
__device__ __forceinline__ void fetch_wgmma_kernel(const PackedKernels& kernels,
                                                   const WgmmaGeometry& g, const WgmmaUnit& unit,
                                                   int n0, unsigned char* memory) {
  const int n_vectors = g.h.taps * g.w.taps * g.vectors * kWgmmaCols;
  const T* const from = static_cast<const T*>(kernels.data) + unit.sample * kernels.batch_stride +
                        (static_cast<int64_t>(unit.group) * g.n_size + n0) * kernels.row_stride;
#pragma unroll 2
  for (int i = threadIdx.x; i < n_vectors; i += blockDim.x) {
    // Eight lanes along rows, whose vectors are neighbours in shared memory, then along channels.
    const int vector = i / 8 % g.vectors, rest = i / 8 / g.vectors;
    const int row = rest % (kWgmmaCols / 8) * 8 + i % 8, tap = rest / (kWgmmaCols / 8);
    const bool exists = n0 + row < g.n_size;
    const int64_t offset =
        exists ? tap * kernels.tap_stride + row * kernels.row_stride + vector * kVectorChannels : 0;
    cp_async<16>(memory + ((tap * g.vectors + vector) * kWgmmaCols + row) * kVectorBytes,
                 from + offset, exists ? 16 : 0);
  }
}

// The halo of a tile whose first source pixel is (y0, x0), by one warpgroup.
template <class T>
__device__ __forceinline__ void fetch_wgmma_halo(const Image<T>& source, const WgmmaGeometry& g,
                                                 int tid, int y0, int x0, unsigned char* halo) {
  // Lanes along channels, as far as there are any, then along pixels: no divisions on the way.
  const int step_vector = kWarpgroup % g.vectors, step_pixel = kWarpgroup / g.vectors;
  const int step_y = step_pixel / g.halo_w, step_x = step_pixel % g.halo_w;
  int vector = tid % g.vectors;
  int y = tid / g.vectors / g.halo_w, x = tid / g.vectors % g.halo_w;
#pragma unroll 2
  while (y < g.halo_h) {
    source.copy(halo + vector * g.plane_bytes + (y * g.halo_w + x) * kVectorBytes, y0 + y, x0 + x,
                vector * kVectorChannels);
    vector += step_vector;
    x += step_x;
    y += step_y;
    if (vector >= g.vectors) {
      vector -= g.vectors;
      ++x;
    }
    if (x >= g.halo_w) {
      x -= g.halo_w;
      ++y;
    }
  }
}

// Starts sums = kernel * halo. kSteps * 16 channels; 0: any number. The products of a tap stand in
// a row where their number is known: what comes between costs a fence.
template <class T, int kSteps>
__device__ __forceinline__ void start_products(WgmmaSums<kWarpgroup>& sums, const WgmmaGeometry& g,
                                               const unsigned char* kernel,
                                               const unsigned char* halo) {
  uint64_t a = matrix_descriptor(kernel, kWgmmaCols * kVectorBytes, 8 * kVectorBytes);
  const uint64_t corner = matrix_descriptor(halo, g.plane_bytes, g.halo_w * kVectorBytes);
  const unsigned b_step = 2u * g.plane_bytes / kVectorBytes;
  int accumulate = 0;
  const auto multiply = [&](uint64_t b) {
    wgmma_m64n128k16<T>(sums, a, b, accumulate);
    a += 2 * kWgmmaCols;
    accumulate = 1;
  };
#pragma unroll 1
  for (int ty = 0; ty < g.h.taps; ++ty) {
    const int y = ty * g.h.tap_step + (g.h.tap_step < 0 ? g.h.reach() : 0);
#pragma unroll 1
    for (int tx = 0; tx < g.w.taps; ++tx) {
      const int x = tx * g.w.tap_step + (g.w.tap_step < 0 ? g.w.reach() : 0);
      const uint64_t b = corner + static_cast<unsigned>(y * g.halo_w + x);
      if constexpr (kSteps > 0) {
        wgmma_fence(sums);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) multiply(b + step * b_step);
        wgmma_commit();
      } else {
#pragma unroll 1
        for (int step = 0; step < g.vectors / 2; ++step) {
          wgmma_fence(sums);
          multiply(b + step * b_step);
          wgmma_commit();
        }
      }
    }
  }
}

// sums[pixel][channel] of one half of the tile.
template <int kHalf>
__device__ __forceinline__ void write_sums(const WgmmaSums<kWarpgroup>& sums, int tid,
                                           const float* bias, float* to, int pitch) {
  const int lane = tid % 32;
  constexpr int kRows = kStoredPixels / kWgmmaTileW;  // of the image
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const int channel = tid / 32 * 16 + lane / 4 + i / 2 * 8;
    const float b = bias[channel];
#pragma unroll
    for (int y = 0; y < kRows; ++y) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        to[(y * kWgmmaTileW + lane % 4 * 2 + x) * pitch + channel] =
            sums[4 * (kHalf * kRows + y) + i + x] + b;
      }
    }
  }
}

template <class T, int kSteps>
__global__ void __launch_bounds__(kMaxWarpgroups* kWarpgroup, 1)
    conv_wgmma_kernel(const ConvGemmParams p, const WgmmaGeometry g) {
#ifdef DASR_HAS_WGMMA
  DASR_DYNAMIC_SHARED(kernel);  // then two halos for each warpgroup
  DASR_SHARED(bias, float[kWgmmaCols]);
  // The same for the whole warp, and the compiler should know.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / kWarpgroup, 0);
  const int n_warpgroups = blockDim.x / kWarpgroup, tid = threadIdx.x % kWarpgroup;
  unsigned char* const buffers = kernel + g.kernel_bytes + 2 * warpgroup * g.buffer_bytes;
  const auto sync_warpgroup = [&] { named_barrier_sync(1 + warpgroup, kWarpgroup); };
  const int pitch = tile_pitch<float, kWgmmaCols>(p.out_stride[1] == 1);

  const int64_t first_shared = blockIdx.x / g.sharers * g.shared_tiles;
  const int share = blockIdx.x % g.sharers;
  int64_t next = first_shared + share * g.shared_tiles / g.sharers;
  const int64_t end = first_shared + (share + 1) * g.shared_tiles / g.sharers;

  WgmmaSums<kWarpgroup> sums = {};
#pragma unroll 1
  while (next < end) {
    const WgmmaUnit unit(p, g, next / g.pixel_tiles);
    const int first = static_cast<int>(next % g.pixel_tiles);
    const int last =
        end - next < g.pixel_tiles - first ? first + static_cast<int>(end - next) : g.pixel_tiles;
    next += last - first;
    const int n0 = unit.n_tile * kWgmmaCols;
    const int n_cols = g.n_size - n0 < kWgmmaCols ? g.n_size - n0 : kWgmmaCols;
    const Image<T> source(p.source, unit.b, unit.group, g.k_size, g.h.source, g.w.source);
    const auto fetch_halo = [&](int tile, unsigned char* halo) {
      // A transposed convolution walks its taps backwards.
      const int y = tile / g.pixel_tiles_w * kWgmmaTileH + g.h.base;
      const int x = tile % g.pixel_tiles_w * kWgmmaTileW + g.w.base;
      fetch_wgmma_halo(source, g, tid, y - (g.h.tap_step < 0 ? g.h.reach() : 0),
                       x - (g.w.tap_step < 0 ? g.w.reach() : 0), halo);
    };

    int tile = first + warpgroup;
    if (tile < last) fetch_halo(tile, buffers);
    mix_biases<float, kWgmmaCols>(p, g, unit, n0, bias);
    wait_for_previous();  // for the kernels
    fetch_wgmma_kernel<T>(p.kernels, g, unit, n0, kernel);
    cp_async_wait_all();
    fence_proxy_async();
    __syncthreads();

    unsigned char *halo = buffers, *next_halo = buffers + g.buffer_bytes;
#pragma unroll 1
    for (; tile < last; tile += n_warpgroups) {
      start_products<T, kSteps>(sums, g, kernel, halo);
      if (tile + n_warpgroups < last) fetch_halo(tile + n_warpgroups, next_halo);
      wgmma_wait<0>(sums);
      sync_warpgroup();  // the other warps are done with the halo, too
      float* const stored = reinterpret_cast<float*>(halo);
      const int tile_y = tile / g.pixel_tiles_w * kWgmmaTileH;
      const int tile_x = tile % g.pixel_tiles_w * kWgmmaTileW;
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        if (half == 0) {
          write_sums<0>(sums, tid, bias, stored, pitch);
        } else {
          sync_warpgroup();  // the first half is stored
          write_sums<1>(sums, tid, bias, stored, pitch);
        }
        sync_warpgroup();
        const int y0 = tile_y + half * (kStoredPixels / kWgmmaTileW);
        store_tile<T, kStoredPixels, kWgmmaCols, kWarpgroup>(
            tid, p.epilogue, static_cast<T*>(p.out), p.out_stride, g.stores_vectors, unit.b,
            unit.group * g.n_size + n0, n_cols, stored, pitch, [&](int row) {
              const int y = y0 + row / kWgmmaTileW, x = tile_x + row % kWgmmaTileW;
              return y < g.h.result && x < g.w.result ? Pixel{y, x} : Pixel{-1, 0};
            });
      }
      cp_async_wait_all();
      fence_proxy_async();
      sync_warpgroup();  // the next halo has landed, and the place of this one is free
      unsigned char* const free = halo;
      halo = next_halo;
      next_halo = free;
    }
    __syncthreads();  // nobody needs this kernel and its biases any more
  }
#else
  __trap();
#endif
}

}  // namespace dasr
