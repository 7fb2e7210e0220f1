// Gradients of kernels by the adjoint Winograd transforms.
#pragma once

#include "convolve_winograd.h"
#include "weight_grad.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

template <typename W>
struct WinogradGrad {
  static constexpr int64_t kPoints = W::kIn * W::kIn;

  static Blocking blocking(const GradJob& job) {
    return {job.grad.height, job.grad.width, W::kOut, tiles_per_block(kPoints, job.in()),
            64 / W::kOut};
  }

  static WinogradPanels layout(const GradJob& job) {
    return {kPoints, job.in(), panels_of(job.out())};
  }

  static int64_t sum_floats(const GradJob& job) { return layout(job).floats(); }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    Cutter cutter{nullptr};
    WinogradScratch<W>(cutter, job.in(), blocking.th, blocking.tw);
    return max_of(cutter.used, 2 * kLanes * job.in() * job.taps() + kAlign);
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const int64_t th = ceil_div(block.rows, W::kOut);
    const int64_t tw = ceil_div(block.cols, W::kOut);
    const int64_t rows = th * W::kOut;
    const int64_t cols = tw * W::kOut;
    const int64_t channels = round_up(job.in(), kLanes);
    Cutter cutter{scratch};
    const WinogradScratch<W> buf(cutter, job.in(), th, tw);
    if (job.want_weight) {
      transform_block<W>(job.input, block.b, job.window(block, rows, cols), th, tw, buf.patch,
                         buf.input);
    }
    const WinogradPanels sum_layout = layout(job);
    for (int64_t p = 0; p < sum_layout.panels.count; ++p) {
      const int64_t vecs = sum_layout.panels.num_vecs(p);
      const int64_t first = sum_layout.panels.first_vec(p) * kLanes;
      const int64_t ld = vecs * kLanes;
      const int64_t last = min_of(first + ld, job.out());
      load_patch(job.grad, block.b, {block.y, block.x, rows, cols}, first, last, buf.patch, ld);
      add_bias_grad(buf.patch, rows * cols, ld, last - first, bias + first);
      if (!job.want_weight) {
        continue;
      }
      transform_grad(buf.patch, th, tw, ld, buf.panel);
      Gemm g;
      g.rows = job.in();
      g.cols = vecs;
      g.depth = th * tw;
      g.a_row = 1;
      g.a_depth = tile_stride(kPoints, channels);
      g.b_depth = tile_stride(kPoints, ld);
      g.c_row = ld;
      g.accumulate = !first_block;
      for (int64_t i = 0; i < kPoints; ++i) {
        g.a = buf.input + i * channels;
        g.b = buf.panel + i * ld;
        g.c = sums + sum_layout.offset(p) + i * sum_layout.point_stride(p);
        gemm(g);
      }
    }
  }

  static void transform_grad(const float* patch, int64_t th, int64_t tw, int64_t ld, float* dst) {
    const int64_t row = tw * W::kOut * ld;
    for (int64_t ty = 0; ty < th; ++ty) {
      for (int64_t tx = 0; tx < tw; ++tx) {
        const float* tile = patch + ty * W::kOut * row + tx * W::kOut * ld;
        for (int64_t n = 0; n < ld; n += kLanes) {
          transform_square<W::kOut, W::kIn, W::output_adjoint>(
              [&](int i, int j) { return load(tile + i * row + j * ld + n); },
              [&](int i, int j, vf v) { store(dst + (i * W::kIn + j) * ld + n, v); });
        }
        dst += tile_stride(kPoints, ld);
      }
    }
  }

  static void finish(const GradJob& job, const float* sums, float* weight, float* scratch) {
    const int64_t row = job.in() * job.taps();
    float* taps = scratch;
    float* rows = scratch + round_up(kLanes * row, kAlign);
    const WinogradPanels sum_layout = layout(job);
    for (int64_t v = 0; v < sum_layout.panels.vecs; ++v) {
      for (int64_t c = 0; c < job.in(); ++c) {
        int64_t stride;
        const float* src = sums + sum_layout.at(c, v, &stride);
        transform_square<W::kIn, W::kTaps, W::kernel_adjoint>(
            [&](int i, int j) { return load(src + (i * W::kIn + j) * stride); },
            [&](int i, int j, vf g) {
              store(taps + (c * job.taps() + i * W::kTaps + j) * kLanes, g);
            });
      }
      transpose(taps, kLanes, row, kLanes, rows, row);
      const int64_t count = min_of(kLanes, job.out() - v * kLanes);
      for (int64_t l = 0; l < count; ++l) {
        copy_floats(weight + job.grad.map.torch_channel(v * kLanes + l) * row, rows + l * row, row);
      }
    }
  }
};

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
