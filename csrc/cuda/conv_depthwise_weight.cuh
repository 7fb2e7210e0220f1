// The kernel of conv_depthwise_weight. A thread holds the sums of all taps of one channel and walks
// over positions: runs of pixels, one below the other. A block is 8 warps: they share 32 channels,
// one to each lane, or (lanes along x) have one channel each.
#pragma once

#include "conv_depthwise_kernels.h"

namespace dasr {

template <class T, int kTaps>
__global__ void __launch_bounds__(kDepthwiseThreads, kTaps == 7 ? 1 : 2)
    conv_depthwise_weight_kernel(const ConvDepthwiseWeightParams p,
                                 const DepthwiseWeightGeometry g) {
  using acc_t = decltype(widen(T{}));
  constexpr int kRun = depthwise_weight_run(kTaps), kWarps = kDepthwiseThreads / 32;
  constexpr int kSums = kTaps > 0 ? kTaps * kTaps : kTapChunk;
  DASR_SHARED(sums, acc_t[kWarps][kWarps][32]);  // [tap][warp][lane]

  const ConvShape& s = p.shape;
  const int all_taps = s.kernel_h * s.kernel_w;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  unsigned block = blockIdx.x;
  const auto next = [&](unsigned n) {
    const unsigned i = block % n;
    block /= n;
    return static_cast<int>(i);
  };
  const int first_tap = next(g.chunks) * kSums, tile = next(g.channel_tiles);
  const int split = next(g.splits);
  const int64_t b = block;
  const int channel = g.lanes_along_channels ? tile * 32 + lane : tile * kWarps + warp;
  const bool exists = channel < s.out_channels;
  const int n_taps = all_taps - first_tap < kSums ? all_taps - first_tap : kSums;

  const T* const grad =
      static_cast<const T*>(p.grad.data) + b * p.grad.stride[0] + channel * p.grad.stride[1];
  const T* const input = static_cast<const T*>(p.input.data) + b * p.input.stride[0] +
                         channel / g.multiplier * p.input.stride[1];
  // Zero outside of the image.
  const auto load = [](const T* column, int64_t stride, int y, int height) {
    return static_cast<unsigned>(y) < static_cast<unsigned>(height) ? column[y * stride]
                                                                    : zero<T>();
  };

  const int step = g.lanes_along_channels ? kWarps : 32;
  const int step_y = step / s.out_width, step_x = step % s.out_width;
  int position = split * g.positions_per_split + (g.lanes_along_channels ? warp : lane);
  const int end = g.positions - split * g.positions_per_split < g.positions_per_split
                      ? g.positions
                      : (split + 1) * g.positions_per_split;
  int run = position / s.out_width, x = position % s.out_width;

  acc_t sum[kSums] = {};
  for (; exists && position < end; position += step) {
    const int y = run * kRun;
    const T* const grad_column = grad + x * p.grad.stride[3];
    T grads[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      grads[k] = load(grad_column, p.grad.stride[2], y + k, s.out_height);
    }
    const int from_x = x * s.stride_w - s.pad_left;
    if constexpr (kTaps > 0) {
      // Stride and dilation 1 along y.
#pragma unroll
      for (int tx = 0; tx < kTaps; ++tx) {
        const int column = from_x + tx * s.dilation_w;
        const bool inside = static_cast<unsigned>(column) < static_cast<unsigned>(s.in_width);
        T rows[kRun + kTaps - 1];
#pragma unroll
        for (int r = 0; r < kRun + kTaps - 1; ++r) {
          rows[r] = inside ? load(input + column * p.input.stride[3], p.input.stride[2],
                                  y - s.pad_top + r, s.in_height)
                           : zero<T>();
        }
#pragma unroll
        for (int ty = 0; ty < kTaps; ++ty) {
#pragma unroll
          for (int k = 0; k < kRun; ++k) {
            acc_t& to = sum[ty * kTaps + tx];
            to = fma(static_cast<acc_t>(widen(grads[k])), static_cast<acc_t>(widen(rows[k + ty])),
                     to);
          }
        }
      }
    } else {
      int ty = first_tap / s.kernel_w, tx = first_tap % s.kernel_w;
      T elements[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int column = from_x + tx * s.dilation_w;
        const bool inside =
            i < n_taps && static_cast<unsigned>(column) < static_cast<unsigned>(s.in_width);
        elements[i] = inside ? load(input + column * p.input.stride[3], p.input.stride[2],
                                    y * s.stride_h - s.pad_top + ty * s.dilation_h, s.in_height)
                             : zero<T>();
        if (++tx == s.kernel_w) tx = 0, ++ty;
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sum[i] = fma(static_cast<acc_t>(widen(grads[0])), static_cast<acc_t>(widen(elements[i])),
                     sum[i]);
      }
    }
    run += step_y, x += step_x;
    if (x >= s.out_width) x -= s.out_width, ++run;
  }

  acc_t* const out = static_cast<acc_t*>(g.splits == 1 ? p.grad_weight : p.workspace) +
                     ((split * s.batch + b) * s.out_channels) * all_taps + first_tap;
  if (g.lanes_along_channels) {
#pragma unroll
    for (int first = 0; first < kSums; first += kWarps) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        if (first + i < kSums) sums[i][warp][lane] = sum[first + i < kSums ? first + i : 0];
      }
      __syncthreads();
      if (!exists || first + warp >= n_taps) continue;
      acc_t total = 0;
      for (int w = 0; w < kWarps; ++w) total += sums[warp][w][lane];
      out[static_cast<int64_t>(channel) * all_taps + first + warp] = total;
    }
  } else {
    acc_t kept[(kSums + 31) / 32] = {};
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      acc_t total = sum[i];
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        total += __shfl_xor_sync(~0u, total, offset);
      }
      if (lane == i % 32) kept[i / 32] = total;
    }
#pragma unroll
    for (int i = 0; i < (kSums + 31) / 32; ++i) {
      const int tap = i * 32 + lane;
      if (exists && tap < n_taps) out[static_cast<int64_t>(channel) * all_taps + tap] = kept[i];
    }
  }
}

template <class T, int kTaps>
cudaError_t launch_depthwise_weight(const ConvDepthwiseWeightParams& p,
                                    const DepthwiseWeightGeometry& g, cudaStream_t stream) {
  return launch(&conv_depthwise_weight_kernel<T, kTaps>,
                p.shape.batch * g.splits * g.channel_tiles * g.chunks, kDepthwiseThreads, 0, stream,
                p, g);
}

template <class T>
cudaError_t launch_depthwise_weight(const ConvDepthwiseWeightParams& p,
                                    const DepthwiseWeightGeometry& g, cudaStream_t stream) {
  if constexpr (sizeof(T) < 8) {
    if (g.taps == 3) return launch_depthwise_weight<T, 3>(p, g, stream);
    if (g.taps == 5) return launch_depthwise_weight<T, 5>(p, g, stream);
    if (g.taps == 7) return launch_depthwise_weight<T, 7>(p, g, stream);
  }
  return launch_depthwise_weight<T, 0>(p, g, stream);
}

}  // namespace dasr
