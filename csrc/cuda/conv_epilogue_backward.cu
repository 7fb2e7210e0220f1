#include "conv_epilogue_backward.h"

#include <algorithm>
#include <cstdlib>

#include "conv_epilogue_backward.cuh"
#include "reduce_splits.h"

namespace dasr {
namespace {

using namespace epilogue_backward;

// ---- channels_last throughout: vectors, from memory to memory ----

template <class acc_t>
__global__ void __launch_bounds__(kThreads, sizeof(acc_t) == 8 ? 1 : 2)
    conv_epilogue_backward_vectors_kernel(const Params p, const Geometry g) {
  constexpr int kWide = kVector<acc_t>, kPixels = kTile / kWide / kThreads;  // of a thread
  DASR_SHARED(sums, acc_t[kWarps][64]);
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const Part part(p, g);
  const int lanes = g.tile_channels / kWide, step = kThreads / lanes;
  const int channel = tid % lanes * kWide;
  const bool exists = channel < part.n_channels;
  acc_t sum[kWide] = {};
  int64_t pixel = part.first_tile * g.tile_pixels + tid / lanes;
  int y = static_cast<int>(pixel / p.width);
  int x = static_cast<int>(pixel - int64_t{y} * p.width);
  const int step_y = step / p.width, step_x = step % p.width;
  for (int64_t t = part.first_tile; t < part.end_tile; ++t) {
    int64_t from[kPixels], sign[kPixels], to[kPixels];  // < 0: no such pixel
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const auto offset = [&](const int64_t (&s)[4]) {
        return part.b * s[0] + y * s[2] + x * s[3] + part.first_channel + channel;
      };
      from[i] = offset(p.grad_output.stride);
      sign[i] = offset(p.output.stride);
      to[i] = exists && pixel < g.pixels
                  ? (part.b * g.pixels + pixel) * p.channels + part.first_channel + channel
                  : -1;
      pixel += step, y += step_y, x += step_x;
      if (x >= p.width) x -= p.width, ++y;
    }
    unsigned positive[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) positive[i] = p.activation ? 0 : ~0u;
    if (p.activation && p.mask != nullptr) {
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (to[i] >= 0) positive[i] = p.mask[sign[i] / 8] >> (sign[i] % 8);
      }
    } else if (p.activation) {
      with_type<acc_t>(p.output.type, [&](auto type) {
        using T = decltype(type);
        Pack<T, kWide> raw[kPixels] = {};
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
          if (to[i] >= 0) {
            raw[i] = load_pack<T, kWide>(static_cast<const T*>(p.output.data) + sign[i]);
          }
        }
#pragma unroll
        for (int i = 0; i < kPixels; ++i) {
#pragma unroll
          for (int v = 0; v < kWide; ++v) {
            positive[i] |= unsigned(widen(raw[i].values[v]) > 0) << v;
          }
        }
      });
    }
    acc_t values[kPixels][kWide];
    with_type<acc_t>(p.grad_output.type, [&](auto type) {
      using T = decltype(type);
      Pack<T, kWide> raw[kPixels] = {};
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (to[i] >= 0) {
          raw[i] = load_pack<T, kWide>(static_cast<const T*>(p.grad_output.data) + from[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
#pragma unroll
        for (int v = 0; v < kWide; ++v) {
          values[i][v] = through<acc_t>(p, widen(raw[i].values[v]), positive[i] >> v & 1);
        }
      }
    });
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
#pragma unroll
      for (int v = 0; v < kWide; ++v) sum[v] += to[i] >= 0 ? values[i][v] : acc_t(0);
    }
    if (p.grad == nullptr) continue;
    with_type<acc_t>(p.grad_type, [&](auto type) {
      using T = decltype(type);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        Pack<T, kWide> pack;
#pragma unroll
        for (int v = 0; v < kWide; ++v) pack.values[v] = Narrow<T>::from(values[i][v]);
        if (to[i] >= 0) store_pack(static_cast<T*>(p.grad) + to[i], pack);
      }
    });
  }
  if (p.grad_bias == nullptr) return;
  for (int offset = 16; offset >= lanes; offset /= 2) {
#pragma unroll
    for (int v = 0; v < kWide; ++v) sum[v] += __shfl_xor_sync(~0u, sum[v], offset);
  }
  if (lane < lanes) {
#pragma unroll
    for (int v = 0; v < kWide; ++v) sums[warp][channel + v] = sum[v];
  }
  __syncthreads();
  if (tid >= part.n_channels) return;
  acc_t total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w][tid];
  part.store_sum(p, g, tid, total);
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool accumulates_in_double(const Params& p) {
  return p.grad_output.type == DType::kFloat64 || p.grad_type == DType::kFloat64 ||
         (p.activation && p.mask == nullptr && p.output.type == DType::kFloat64);
}

bool valid(const Params& p) {
  return p.batch >= 0 && p.channels >= 0 && p.height >= 0 && p.width >= 0 && p.upscale >= 1 &&
         p.channels % (int64_t{p.upscale} * p.upscale) == 0;
}

Geometry divide(const Params& p) {
  Geometry g = {};
  g.tile_channels = kMinChannels;
  while (g.tile_channels < 64 && g.tile_channels < p.channels) g.tile_channels *= 2;
  g.tile_pixels = kTile / g.tile_channels;
  g.channel_tiles = static_cast<int>(divide_up(p.channels, g.tile_channels));
  g.pixels = int64_t{p.height} * p.width;
  g.pixel_tiles = divide_up(g.pixels, g.tile_pixels);
  const int64_t tiles = p.batch * g.channel_tiles * g.pixel_tiles;
  g.tiles_per_split = std::max<int64_t>(divide_up(tiles, kMaxBlocks), 1);
  g.splits = divide_up(g.pixel_tiles, g.tiles_per_split);
  return g;
}

// Whether `width` neighbours along a dimension, from multiples of width on, can be loaded together
// from grad_output and from what the signs come from.
bool loads_packs(const Params& p, int dimension, int width) {
  const auto can = [&](const ConvTensor& t, const void* data) {
    const size_t bytes = std::min<size_t>(width * size_of(t.type), 16);
    for (int d = 0; d < 4; ++d) {
      if (d == dimension ? t.stride[d] != 1 : t.stride[d] % width != 0) return false;
    }
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
  };
  return can(p.grad_output, p.grad_output.data) &&
         (!p.activation || can(p.output, p.mask == nullptr ? p.output.data : nullptr));
}

// Whether neighbouring channels are nearer to each other than neighbouring pixels are.
bool lanes_along_channels(const Params& p) {
  if (p.channels == p.upscale * p.upscale) return false;
  for (const ConvTensor* t : {&p.grad_output, &p.output}) {
    const int64_t c = std::abs(t->stride[1]), x = std::abs(t->stride[3]);
    if (c != x) return c < x;
  }
  return true;
}

template <class acc_t>
cudaError_t launch_all(const Params& p, cudaStream_t stream) {
  constexpr int kWide = kVector<acc_t>;
  Geometry g = divide(p);
  if (g.splits > 0) {
    if (lanes_along_channels(p)) {
      g.lanes = Lanes::kChannels;
    } else {
      const bool whole = int64_t{p.width} * p.upscale % kPackX == 0;
      g.lanes = whole && loads_packs(p, 3, kPackX) ? Lanes::kPacks : Lanes::kX;
    }
    g.stores_vectors = p.channels % kWide == 0 && reinterpret_cast<uintptr_t>(p.grad) % 16 == 0;
    const bool vectors = p.upscale == 1 && g.stores_vectors && loads_packs(p, 1, kWide);
    const cudaError_t error =
        launch(vectors ? &conv_epilogue_backward_vectors_kernel<acc_t>
                       : &conv_epilogue_backward_kernel<acc_t>,
               p.batch * g.splits * g.channel_tiles, kThreads, 0, stream, p, g);
    if (error != cudaSuccess) return error;
  }
  if (p.grad_bias == nullptr || g.splits == 1) return cudaSuccess;
  const DType type = sizeof(acc_t) == 8 ? DType::kFloat64 : DType::kFloat32;
  return reduce_splits({p.workspace, type, g.splits, p.batch * p.channels, p.grad_bias, type},
                       stream);
}

}  // namespace

size_t conv_epilogue_backward_workspace_size(const Params& p) {
  if (p.grad_bias == nullptr || !valid(p)) return 0;
  const int64_t splits = divide(p).splits;
  return splits <= 1 ? 0 : splits * p.batch * p.channels * (accumulates_in_double(p) ? 8 : 4);
}

cudaError_t conv_epilogue_backward(const Params& p, cudaStream_t stream) {
  if (!valid(p)) return cudaErrorInvalidValue;
  if (p.batch == 0 || p.channels == 0 || (p.grad == nullptr && p.grad_bias == nullptr)) {
    return cudaSuccess;
  }
  return accumulates_in_double(p) ? launch_all<double>(p, stream) : launch_all<float>(p, stream);
}

}  // namespace dasr
