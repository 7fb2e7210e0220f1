// The kernel of conv_depthwise: a thread sums a run of pixels, one below the other, so that each
// element that it loads serves all rows of the kernel. Lanes run along x or along channels,
// whichever are neighbours in memory; what neighbouring columns share comes from the L1.
#pragma once

#include "conv_depthwise_kernels.h"

namespace dasr {

// Adds one column of the kernel, which meets column x of the source, to the sums of pixels y, y + 1
// ... of a phase. weight_of(ty, v) is the kernel's element for channel v.
template <class T, int kVector, int kTaps, int kRun, class acc_t, class WeightOf>
__device__ __forceinline__ void sum_column(const ConvDepthwiseParams& p, const GemmAxis& h,
                                           const T* source, int y, int phase, int x,
                                           WeightOf weight_of, acc_t (&sum)[kRun][kVector]) {
  const T* const column = source + x * p.source.stride[3];
  const auto load = [&](int row) {
    Pack<T, kVector> pack = {};
    if (static_cast<unsigned>(row) < static_cast<unsigned>(h.source)) {
      const T* const from = column + row * p.source.stride[2];
      if constexpr (kVector > 1) {
        pack = load_pack<T, kVector>(from);
      } else {
        pack.values[0] = *from;
      }
    }
    return pack;
  };
  if constexpr (kTaps > 0) {
    // Of a convolution of stride and dilation 1: the rows of its gradient run backwards.
    const int first = y + h.base - (p.transposed ? kTaps - 1 : 0);
    Pack<T, kVector> rows[kRun + kTaps - 1];
#pragma unroll
    for (int r = 0; r < kRun + kTaps - 1; ++r) rows[r] = load(first + r);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const acc_t weight = weight_of(p.transposed ? kTaps - 1 - t : t, v);
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          sum[k][v] = fma(weight, static_cast<acc_t>(widen(rows[k + t].values[v])), sum[k][v]);
        }
      }
    }
  } else {
    for (int t = 0; t < h.taps; ++t) {
      if (!h.hits(phase, t)) continue;
      const int first = y * h.step + h.offset(phase, t);
      Pack<T, kVector> rows[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) rows[k] = load(first + k * h.step);
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        const acc_t weight = weight_of(t, v);
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          sum[k][v] = fma(weight, static_cast<acc_t>(widen(rows[k].values[v])), sum[k][v]);
        }
      }
    }
  }
}

// kVector channels of one pixel, all of which exist.
template <class T, int kVector, class acc_t>
__device__ __forceinline__ void store_channels(const ConvDepthwiseParams& p, bool vectors,
                                               int64_t b, int channel, int y, int x,
                                               const acc_t (&sum)[kVector]) {
  T* const out = static_cast<T*>(p.out);
  if constexpr (kVector > 1) {
    if (vectors) {
      const ConvEpilogue& e = p.epilogue;
      const auto offset = [&](const int64_t (&s)[4]) {
        return b * s[0] + channel + y * s[2] + x * s[3];
      };
      Pack<T, kVector> residual = {}, result;
      if (e.residual.data != nullptr) {
        residual = load_pack<T, kVector>(static_cast<const T*>(e.residual.data) +
                                         offset(e.residual.stride));
      }
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        acc_t c = activate(e, sum[v]);
        if (e.residual.data != nullptr) {
          c = fma(static_cast<acc_t>(e.residual_scale), c,
                  static_cast<acc_t>(widen(residual.values[v])));
        }
        result.values[v] = Narrow<T>::from(c);
      }
      store_pack(out + offset(p.out_stride), result);
      return;
    }
  }
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    store_output(p.epilogue, out, p.out_stride, b, channel + v, y, x, sum[v]);
  }
}

template <class T, int kVector, int kTaps>
__global__ void __launch_bounds__(kDepthwiseThreads, kTaps > 3 ? 2 : 3)
    conv_depthwise_kernel(const ConvDepthwiseParams p, const DepthwiseGeometry g) {
  using acc_t = decltype(widen(T{}));
  constexpr int kRun = depthwise_run(kVector);
  DASR_DYNAMIC_SHARED(memory);
  DASR_SHARED(bias, acc_t[kMaxTileChannels]);
  acc_t* const staged = reinterpret_cast<acc_t*>(memory);  // [column][row][channel]

  const int tid = threadIdx.x, n_channels = g.tile_channels();
  const int lane = tid % g.lanes, other = tid / g.lanes;
  const int first_channel = static_cast<int>(blockIdx.x % g.channel_tiles) * n_channels;
  const int place = static_cast<int>(blockIdx.x / g.channel_tiles % g.position_tiles);
  const int64_t b = blockIdx.x / g.channel_tiles / g.position_tiles;
  const int own = (g.lanes_along_channels ? lane : other) * kVector;  // channel of the tile
  const int channel = first_channel + own;

  const auto stage = [&](int multiple, int first_column, int n_columns) {
    const int n = g.h.taps * n_columns;
    for (int i = tid; i < n_channels * n; i += kDepthwiseThreads) {
      const int c = i / n, row = i % n / n_columns, column = i % n_columns;
      acc_t weight = 0;
      if (first_channel + c < g.channels) {
        const int64_t o =
            p.transposed ? int64_t{first_channel + c} * g.multiplier + multiple : first_channel + c;
        const int64_t at = (b * p.shape.out_channels + o) * g.h.taps * g.w.taps + row * g.w.taps +
                           first_column + column;
        weight = load_element<acc_t>(p.weight, p.weight_type, at);
      }
      staged[(column * g.h.taps + row) * n_channels + c] = weight;
    }
  };
  for (int c = tid; c < n_channels; c += kDepthwiseThreads) {
    bias[c] = first_channel + c < g.channels
                  ? mixed_bias<acc_t>(p.epilogue.bias, g.channels, b, first_channel + c)
                  : acc_t(0);
  }
  const int multiples = p.transposed ? g.multiplier : 1;
  const bool stages_once = multiples == 1 && g.staged_columns >= g.w.taps;

  for (int s = 0; s < g.steps; ++s) {
    const int position =
        (place * g.steps + s) * g.tile_positions() + (g.lanes_along_channels ? other : lane);
    const int run = position / g.w.result, x = position - run * g.w.result;
    const int phase = run % g.h.phases, y = run / g.h.phases * kRun;
    const int phase_x = x % g.w.phases;
    const bool exists = channel < g.channels && position < g.positions;
    acc_t sum[kRun][kVector] = {};
    for (int multiple = 0; multiple < multiples; ++multiple) {
      const int from = p.transposed ? channel * g.multiplier + multiple : channel / g.multiplier;
      const T* const source =
          static_cast<const T*>(p.source.data) + b * p.source.stride[0] + from * p.source.stride[1];
      for (int first = 0; first < g.w.taps; first += g.staged_columns) {
        const int end = first + g.staged_columns < g.w.taps ? first + g.staged_columns : g.w.taps;
        if (!stages_once || s == 0) {
          __syncthreads();  // the previous columns have been read
          stage(multiple, first, end - first);
          __syncthreads();
        }
        if (!exists) continue;
        for (int tx = first; tx < end; ++tx) {
          if (!g.w.hits(phase_x, tx)) continue;
          const int from_x = x / g.w.phases * g.w.step + g.w.offset(phase_x, tx);
          if (static_cast<unsigned>(from_x) >= static_cast<unsigned>(g.w.source)) continue;
          const acc_t* const weights = staged + (tx - first) * g.h.taps * n_channels + own;
          sum_column<T, kVector, kTaps, kRun>(
              p, g.h, source, y, phase, from_x,
              [&](int ty, int v) { return weights[ty * n_channels + v]; }, sum);
        }
      }
    }
    if (!exists) continue;
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      const int row = (y + k) * g.h.phases + phase;
      if (row >= g.h.result) break;
#pragma unroll
      for (int v = 0; v < kVector; ++v) sum[k][v] += bias[own + v];
      store_channels<T, kVector>(p, g.stores_vectors, b, channel, row, x, sum[k]);
    }
  }
}

template <class T, int kVector, int kTaps>
cudaError_t launch_depthwise(const ConvDepthwiseParams& p, const DepthwiseGeometry& g,
                             cudaStream_t stream) {
  using acc_t = decltype(widen(T{}));
  const size_t shared = sizeof(acc_t) * g.staged_columns * g.h.taps * g.tile_channels();
  return launch(&conv_depthwise_kernel<T, kVector, kTaps>,
                p.shape.batch * g.channel_tiles * g.position_tiles, kDepthwiseThreads, shared,
                stream, p, g);
}

template <class T, int kVector>
cudaError_t launch_depthwise(const ConvDepthwiseParams& p, const DepthwiseGeometry& g,
                             cudaStream_t stream) {
  if constexpr (sizeof(T) < 8) {
    if (g.taps == 3) return launch_depthwise<T, kVector, 3>(p, g, stream);
    if (g.taps == 5) return launch_depthwise<T, kVector, 5>(p, g, stream);
    if (g.taps == 7) return launch_depthwise<T, kVector, 7>(p, g, stream);
  }
  return launch_depthwise<T, kVector, 0>(p, g, stream);
}

template <class T>
cudaError_t launch_depthwise(const ConvDepthwiseParams& p, const DepthwiseGeometry& g,
                             cudaStream_t stream) {
  if (g.vector > 1) return launch_depthwise<T, sizeof(T) < 8 ? 4 : 2>(p, g, stream);
  return launch_depthwise<T, 1>(p, g, stream);
}

}  // namespace dasr
