// Gradients of depthwise kernels: vectors run along the channels, sums over pixels.
#pragma once

#include "convolve_depthwise.h"
#include "weight_grad.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct DepthwiseGrad {
  static Blocking blocking(const GradJob& job) {
    return {job.grad.height, job.grad.width, 1, kDepthwiseRows * kDirectCols, kDirectCols};
  }

  // [vector of channels][tap][kLanes]
  static int64_t sum_floats(const GradJob& job) { return job.taps() * round_up(job.out(), kLanes); }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    const int64_t pixels = job.y.extent(blocking.th) * job.x.extent(blocking.tw);
    return (pixels + blocking.th * blocking.tw) * kDepthwiseVecs * kLanes;
  }

  // sums[kTaps][kLanes] += grad x input for the taps of a row that follow each other.
  template <int kTaps>
  static void add_taps(const GradJob& job, const Block& block, const float* input,
                       const ChannelPatch& patch, const float* grad, int64_t ld, bool overwrite,
                       float* sums) {
    vf acc[kTaps] = {};
    const int64_t tap = job.x.dilation * patch.col;
    for (int64_t y = 0; y < block.rows; ++y) {
      const float* x = input + y * job.y.stride * patch.row;
      for (int64_t p = 0; p < block.cols; ++p) {
        const vf g = load(grad);
        DASR_OPS_UNROLL
        for (int t = 0; t < kTaps; ++t) {
          acc[t] += load(x + t * tap) * g;
        }
        x += job.x.stride * patch.col;
        grad += ld;
      }
    }
    DASR_OPS_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      store(sums + t * kLanes, overwrite ? acc[t] : load(sums + t * kLanes) + acc[t]);
    }
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const Window window = job.window(block, block.rows, block.cols);
    float* copy = scratch;
    float* grad = copy + window.rows * window.cols * kDepthwiseVecs * kLanes;
    const int64_t vecs = ceil_div(job.out(), kLanes);
    const int64_t full = job.out() / kLanes;
    for (int64_t v = 0; v < vecs;) {
      const int64_t last = v < full ? min_of(v + kDepthwiseVecs, full) : vecs;
      const int64_t ld = (last - v) * kLanes;
      const int64_t c0 = v * kLanes;
      const int64_t c1 = min_of(last * kLanes, job.out());
      load_patch(job.grad, block.b, {block.y, block.x, block.rows, block.cols}, c0, c1, grad, ld);
      add_bias_grad(grad, block.rows * block.cols, ld, c1 - c0, bias + c0);
      if (job.want_weight) {
        const ChannelPatch patch(job.input, block.b, window, c0, c1, ld, copy);
        for (int64_t u = v; u < last; ++u) {
          add_vector(job, block, patch, (u - v) * kLanes, grad + (u - v) * kLanes, ld, first_block,
                     sums + u * job.taps() * kLanes);
        }
      }
      v = last;
    }
  }

  static void add_vector(const GradJob& job, const Block& block, const ChannelPatch& patch,
                         int64_t channel, const float* grad, int64_t ld, bool overwrite,
                         float* sums) {
    for (int64_t i = 0; i < job.y.taps; ++i) {
      const float* input = patch.data + channel + i * job.y.dilation * patch.row;
      for (int64_t j = 0; j < job.x.taps;) {
        const float* x = input + j * job.x.dilation * patch.col;
        const int64_t left = job.x.taps - j;
        if (left == 3) {
          add_taps<3>(job, block, x, patch, grad, ld, overwrite, sums);
        } else if (left >= 5) {
          add_taps<5>(job, block, x, patch, grad, ld, overwrite, sums);
        } else if (left >= 2) {
          add_taps<2>(job, block, x, patch, grad, ld, overwrite, sums);
        } else {
          add_taps<1>(job, block, x, patch, grad, ld, overwrite, sums);
        }
        const int64_t done = left == 3 ? 3 : left >= 5 ? 5 : left >= 2 ? 2 : 1;
        j += done;
        sums += done * kLanes;
      }
    }
  }

  static void finish(const GradJob& job, const float* sums, float* weight, float*) {
    const int64_t taps = job.taps();
    for (int64_t c = 0; c < job.out(); ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        weight[c * taps + t] = sums[(c / kLanes * taps + t) * kLanes + c % kLanes];
      }
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
