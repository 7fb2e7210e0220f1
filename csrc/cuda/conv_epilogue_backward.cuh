// What the kernels of conv_epilogue_backward.cu share, and the one for tensors of any layout.
#pragma once

#include "conv_epilogue_backward.h"
#include "convert.cuh"

namespace dasr {
namespace epilogue_backward {

using Params = ConvEpilogueBackwardParams;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 4096;      // elements: channels (up to 64) x pixels (64 and more)
constexpr int kMinChannels = 8;  // of a tile
constexpr int64_t kMaxBlocks = 2048;

// Channels that one thread loads or stores together.
template <class acc_t>
constexpr int kVector = sizeof(acc_t) == 4 ? 8 : 4;

constexpr int kPackX = 4;  // pixels that one thread loads together

// What the lanes of a warp run along while they load grad_output.
enum class Lanes { kX, kPacks, kChannels };

// How a launch divides its work: by the sizes alone, the workspace and the order of sums do.
struct Geometry {
  int tile_channels, tile_pixels;  // powers of two
  int channel_tiles;
  int64_t pixels, pixel_tiles, tiles_per_split, splits;
  Lanes lanes;
  bool stores_vectors;
};

// The part of one block. Channel tiles of the same pixels share cache lines: they are neighbours.
struct Part {
  int64_t b, split, first_tile, end_tile;
  int first_channel, n_channels;

  __device__ Part(const Params& p, const Geometry& g) {
    const int64_t rest = blockIdx.x / g.channel_tiles;
    first_channel = static_cast<int>(blockIdx.x % g.channel_tiles) * g.tile_channels;
    n_channels =
        p.channels - first_channel < g.tile_channels ? p.channels - first_channel : g.tile_channels;
    b = rest / g.splits;
    split = rest % g.splits;
    first_tile = split * g.tiles_per_split;
    end_tile = first_tile + g.tiles_per_split < g.pixel_tiles ? first_tile + g.tiles_per_split
                                                              : g.pixel_tiles;
  }
  template <class acc_t>
  __device__ void store_sum(const Params& p, const Geometry& g, int channel, acc_t sum) const {
    acc_t* const to = static_cast<acc_t*>(g.splits == 1 ? p.grad_bias : p.workspace);
    to[(split * p.batch + b) * p.channels + first_channel + channel] = sum;
  }
};

template <class acc_t>
__device__ __forceinline__ acc_t through(const Params& p, acc_t grad, bool positive) {
  grad *= static_cast<acc_t>(p.residual_scale);
  return positive ? grad : grad * static_cast<acc_t>(p.negative_slope);
}

// ---- any layout: through shared memory ----

// Where the first of kPack neighbours along x lies in grad_output; c < 0: nowhere.
struct Spot {
  int c, y, x;

  __device__ int64_t offset(int64_t b, const int64_t (&stride)[4]) const {
    return b * stride[0] + c * stride[1] + y * stride[2] + x * stride[3];
  }
};

template <class T, int kPack>
__device__ __forceinline__ Pack<T, kPack> load_neighbours(const void* data, int64_t offset) {
  const T* const from = static_cast<const T*>(data) + offset;
  if constexpr (kPack > 1) {
    return load_pack<T, kPack>(from);
  } else {
    return {*from};
  }
}

// Calls put(i, v, value) for neighbour v at spot i of kSpots, all of them loaded together.
template <class acc_t, int kPack, int kSpots, class Put>
__device__ __forceinline__ void load_spots(const Params& p, int64_t b, const Spot (&spots)[kSpots],
                                           Put put) {
  static_assert(kPack * kSpots <= 32);
  unsigned positive = p.activation ? 0 : ~0u;
  if (p.activation && p.mask != nullptr) {
#pragma unroll
    for (int i = 0; i < kSpots; ++i) {
      if (spots[i].c < 0) continue;
      const int64_t bit = spots[i].offset(b, p.output.stride);
      const unsigned bits = p.mask[bit / 8] >> (bit % 8);
      positive |= (bits & ((1u << kPack) - 1)) << (i * kPack);
    }
  } else if (p.activation) {
    with_type<acc_t>(p.output.type, [&](auto t) {
      using T = decltype(t);
      Pack<T, kPack> raw[kSpots] = {};
#pragma unroll
      for (int i = 0; i < kSpots; ++i) {
        if (spots[i].c < 0) continue;
        raw[i] = load_neighbours<T, kPack>(p.output.data, spots[i].offset(b, p.output.stride));
      }
#pragma unroll
      for (int i = 0; i < kSpots * kPack; ++i) {
        positive |= unsigned(widen(raw[i / kPack].values[i % kPack]) > 0) << i;
      }
    });
  }
  with_type<acc_t>(p.grad_output.type, [&](auto t) {
    using T = decltype(t);
    Pack<T, kPack> raw[kSpots] = {};
#pragma unroll
    for (int i = 0; i < kSpots; ++i) {
      if (spots[i].c < 0) continue;
      raw[i] =
          load_neighbours<T, kPack>(p.grad_output.data, spots[i].offset(b, p.grad_output.stride));
    }
#pragma unroll
    for (int i = 0; i < kSpots * kPack; ++i) {
      if (spots[i / kPack].c < 0) continue;
      put(i / kPack, i % kPack,
          through<acc_t>(p, widen(raw[i / kPack].values[i % kPack]), positive >> i & 1));
    }
  });
}

// Fills the tile, lanes along x: o = (c * r + i) * r + j lies in row y * r + i, so that "rows"
// c * r + i hold r channels each.
template <class acc_t, int kPack>
__device__ __forceinline__ void fill_along_x(const Params& p, const Geometry& g, const Part& part,
                                             const int2* places, acc_t* tile, int pitch) {
  constexpr int kSpots = kPack > 1 ? 4 : 8;
  const int tid = threadIdx.x, r = p.upscale, across = g.tile_pixels * r / kPack;
  const int first_row = part.first_channel / r;
  const int end_row = (part.first_channel + part.n_channels - 1) / r + 1;
  const int step = across < kThreads ? kThreads / across : 1;  // rows at a time
  const int begin = across < kThreads ? tid / across : 0;
  if (begin >= step) return;
  for (int q = across < kThreads ? tid % across : tid; q < across; q += kThreads) {
    int pixel[kPack], j[kPack];
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      pixel[v] = (q * kPack + v) / r;
      j[v] = (q * kPack + v) % r;
    }
    const int2 place = places[pixel[0]];
    if (place.y < 0) continue;
    int c = (first_row + begin) / r, i = (first_row + begin) % r;
    for (int row = first_row + begin; row < end_row; row += kSpots * step) {
      Spot spots[kSpots];
#pragma unroll
      for (int k = 0; k < kSpots; ++k) {
        spots[k] = {row + k * step < end_row ? c : -1, place.y * r + i, place.x * r + j[0]};
        c += step / r;
        i += step % r;
        if (i >= r) i -= r, ++c;
      }
      load_spots<acc_t, kPack>(p, part.b, spots, [&](int k, int v, acc_t value) {
        const int channel = (row + k * step) * r + j[v] - part.first_channel;
        if (channel >= 0 && channel < part.n_channels) tile[pixel[v] * pitch + channel] = value;
      });
    }
  }
}

// Fills the tile, lanes along channels of the shuffled image.
template <class acc_t>
__device__ __forceinline__ void fill_along_channels(const Params& p, const Geometry& g,
                                                    const Part& part, const int2* places,
                                                    acc_t* tile, int pitch) {
  constexpr int kSpots = 8;
  const int tid = threadIdx.x, r = p.upscale, end_channel = part.first_channel + part.n_channels;
  int lanes = g.tile_channels;
  while (lanes > 1 && lanes / 2 * r * r >= part.n_channels) lanes /= 2;
  const int step = kThreads / lanes;
  for (int c = part.first_channel / (r * r) + tid % lanes; c * r * r < end_channel; c += lanes) {
    for (int sub = 0; sub < r * r; ++sub) {
      const int channel = c * r * r + sub - part.first_channel;
      if (channel < 0 || channel >= part.n_channels) continue;
      for (int first = tid / lanes; first < g.tile_pixels; first += kSpots * step) {
        Spot spots[kSpots];
#pragma unroll
        for (int k = 0; k < kSpots; ++k) {
          const int pixel = first + k * step;
          const int2 place = pixel < g.tile_pixels ? places[pixel] : int2{0, -1};
          spots[k] = {place.y < 0 ? -1 : c, place.y * r + sub / r, place.x * r + sub % r};
        }
        load_spots<acc_t, 1>(p, part.b, spots, [&](int k, int, acc_t value) {
          tile[(first + k * step) * pitch + channel] = value;
        });
      }
    }
  }
}

template <class acc_t>
__global__ void __launch_bounds__(kThreads, 2)
    conv_epilogue_backward_kernel(const Params p, const Geometry g) {
  constexpr int kWide = kVector<acc_t>;
  DASR_SHARED(tile, acc_t[kTile + kTile / kMinChannels]);  // [pixel][channel], one column more
  DASR_SHARED(places, int2[kTile / kMinChannels]);         // .y < 0: outside
  DASR_SHARED(sums, acc_t[kThreads]);
  const int tid = threadIdx.x, pitch = g.tile_channels + 1;
  const Part part(p, g);
  acc_t sum = 0;
  for (int64_t t = part.first_tile; t < part.end_tile; ++t) {
    const int64_t first_pixel = t * g.tile_pixels;
    const int n_pixels = static_cast<int>(
        g.pixels - first_pixel < g.tile_pixels ? g.pixels - first_pixel : g.tile_pixels);
    __syncthreads();  // the previous tile has been read
    for (int i = tid; i < g.tile_pixels; i += kThreads) {
      const int64_t pixel = first_pixel + i;
      const int y = static_cast<int>(pixel / p.width);
      places[i] =
          i < n_pixels ? int2{static_cast<int>(pixel - int64_t{y} * p.width), y} : int2{0, -1};
    }
    __syncthreads();
    if (g.lanes == Lanes::kChannels) {
      fill_along_channels(p, g, part, places, tile, pitch);
    } else if (g.lanes == Lanes::kPacks) {
      fill_along_x<acc_t, kPackX>(p, g, part, places, tile, pitch);
    } else {
      fill_along_x<acc_t, 1>(p, g, part, places, tile, pitch);
    }
    __syncthreads();
    if (p.grad != nullptr) {
      const int64_t to = (part.b * g.pixels + first_pixel) * p.channels + part.first_channel;
      with_type<acc_t>(p.grad_type, [&](auto type) {
        using T = decltype(type);
        T* const grad = static_cast<T*>(p.grad) + to;
        if (g.stores_vectors) {
          const int per_row = g.tile_channels / kWide;
          for (int i = tid; i < n_pixels * per_row; i += kThreads) {
            const int pixel = i / per_row, channel = i % per_row * kWide;
            if (channel >= part.n_channels) continue;
            Pack<T, kWide> pack;
#pragma unroll
            for (int v = 0; v < kWide; ++v) {
              pack.values[v] = Narrow<T>::from(tile[pixel * pitch + channel + v]);
            }
            store_pack(grad + int64_t{pixel} * p.channels + channel, pack);
          }
        } else {
          for (int i = tid; i < n_pixels * part.n_channels; i += kThreads) {
            const int pixel = i / part.n_channels, channel = i % part.n_channels;
            grad[int64_t{pixel} * p.channels + channel] =
                Narrow<T>::from(tile[pixel * pitch + channel]);
          }
        }
      });
    }
    if (p.grad_bias != nullptr) {
      const int channel = tid % g.tile_channels, step = kThreads / g.tile_channels;
      if (channel >= part.n_channels) continue;
      for (int pixel = tid / g.tile_channels; pixel < n_pixels; pixel += step) {
        sum += tile[pixel * pitch + channel];
      }
    }
  }
  if (p.grad_bias == nullptr) return;
  sums[tid] = sum;
  __syncthreads();
  if (tid >= part.n_channels) return;
  for (int i = tid + g.tile_channels; i < kThreads; i += g.tile_channels) sum += sums[i];
  part.store_sum(p, g, tid, sum);
}

}  // namespace epilogue_backward
}  // namespace dasr
