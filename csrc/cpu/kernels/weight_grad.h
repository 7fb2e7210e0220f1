// Gradients of the aggregated kernels and biases: partial sums over fixed segments of the image.
#pragma once

#include "convolve_direct.h"
#include "convolve_winograd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct GradJob {
  int64_t batch;
  int64_t pad_y;
  int64_t pad_x;
  Source input;
  Source grad;  // of the convolution's result
  bool want_weight;
  int64_t segments;  // of a sample
  float* weight;     // [B, segments, O, I, 3, 3]
  float* bias;       // [B, segments, O]

  int64_t in() const { return input.channels; }
  int64_t out() const { return grad.channels; }
  int64_t kernel_floats() const { return out() * in() * 9; }
  Window halo(const Block& k, int64_t rows, int64_t cols) const {
    return {k.y - pad_y, k.x - pad_x, rows + 2, cols + 2};
  }
};

// sums[n] += the sum over pixels; the sum of a block is formed first, so that errors stay small.
static void add_bias_grad(const float* patch, int64_t pixels, int64_t ld, int64_t n, float* sums) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    vf sum = {};
    for (int64_t p = 0; p < pixels; ++p) {
      sum += load(patch + p * ld + c);
    }
    store(sums + c, load(sums + c) + sum);
  }
  for (; c < n; ++c) {
    float sum = 0.0f;
    for (int64_t p = 0; p < pixels; ++p) {
      sum += patch[p * ld + c];
    }
    sums[c] += sum;
  }
}

// Algorithm: blocking(job), sum_floats(job), scratch_floats(job, blocking),
//   add(job, block, first, sums, bias, scratch): adds a block's contribution, or overwrites,
//   finish(job, sums, weight, scratch): writes [O, I, 3, 3].
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

  struct Buffers {
    float* patch;
    float* input;
    float* grad;
    int64_t floats;
  };

  static Buffers cut(const GradJob& job, int64_t th, int64_t tw, float* scratch) {
    const int64_t channels = round_up(job.in(), kLanes);
    const int64_t rows = th * W::kOut;
    const int64_t cols = tw * W::kOut;
    const int64_t panel = kMaxPanelVecs * kLanes;
    Cutter cutter{scratch};
    Buffers buf;
    buf.patch = cutter.take(max_of((rows + 2) * (cols + 2) * channels, rows * cols * panel));
    buf.input = cutter.take(th * tw * tile_stride(kPoints, channels));
    buf.grad = cutter.take(th * tw * tile_stride(kPoints, panel));
    buf.floats = cutter.used;
    return buf;
  }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    return max_of(cut(job, blocking.th, blocking.tw, nullptr).floats,
                  2 * kLanes * job.in() * 9 + kAlign);
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const int64_t th = ceil_div(block.rows, W::kOut);
    const int64_t tw = ceil_div(block.cols, W::kOut);
    const int64_t rows = th * W::kOut;
    const int64_t cols = tw * W::kOut;
    const int64_t channels = round_up(job.in(), kLanes);
    const Buffers buf = cut(job, th, tw, scratch);
    if (job.want_weight) {
      transform_block<W>(job.input, block.b, job.halo(block, rows, cols), th, tw, buf.patch,
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
      transform_grad(buf.patch, th, tw, ld, buf.grad);
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
        g.b = buf.grad + i * ld;
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
    const int64_t row = job.in() * 9;
    float* taps = scratch;
    float* rows = scratch + round_up(kLanes * row, kAlign);
    const WinogradPanels sum_layout = layout(job);
    for (int64_t v = 0; v < sum_layout.panels.vecs; ++v) {
      for (int64_t c = 0; c < job.in(); ++c) {
        int64_t stride;
        const float* src = sums + sum_layout.at(c, v, &stride);
        transform_square<W::kIn, 3, W::kernel_adjoint>(
            [&](int i, int j) { return load(src + (i * W::kIn + j) * stride); },
            [&](int i, int j, vf g) { store(taps + (c * 9 + i * 3 + j) * kLanes, g); });
      }
      transpose(taps, kLanes, row, kLanes, rows, row);
      const int64_t count = min_of(kLanes, job.out() - v * kLanes);
      for (int64_t l = 0; l < count; ++l) {
        copy_floats(weight + job.grad.map.torch_channel(v * kLanes + l) * row, rows + l * row, row);
      }
    }
  }
};

// Few input channels: the rows of the product are the taps and channels of one kernel row.
struct FewInputsGrad {
  static Blocking blocking(const GradJob& job) {
    return {job.grad.height, job.grad.width, 1, 8 * kDirectCols, kDirectCols};
  }

  static int64_t sum_floats(const GradJob& job) {
    return 9 * job.in() * round_up(job.out(), kLanes);
  }

  static int64_t patch_floats(const GradJob& job, int64_t rows, int64_t cols) {
    return round_up((rows + 2) * (cols + 2) * job.in(), kAlign);
  }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    return patch_floats(job, blocking.th, blocking.tw) +
           blocking.th * blocking.tw * kMaxPanelVecs * kLanes;
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const int64_t in = job.in();
    float* input = scratch;
    float* grad = scratch + patch_floats(job, block.rows, block.cols);
    if (job.want_weight) {
      load_patch(job.input, block.b, job.halo(block, block.rows, block.cols), 0, in, input, in);
    }
    const Panels panels = panels_of(job.out());
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t vecs = panels.num_vecs(p);
      const int64_t first = panels.first_vec(p) * kLanes;
      const int64_t ld = vecs * kLanes;
      const int64_t last = min_of(first + ld, job.out());
      const Window window{block.y, block.x, block.rows, block.cols};
      load_patch(job.grad, block.b, window, first, last, grad, ld);
      add_bias_grad(grad, block.rows * block.cols, ld, last - first, bias + first);
      if (!job.want_weight) {
        continue;
      }
      Gemm g;
      g.rows = 3 * in;
      g.cols = vecs;
      g.depth = block.cols;
      g.segments = block.rows;
      g.a_row = 1;
      g.a_depth = in;
      g.a_segment = (block.cols + 2) * in;
      g.b = grad;
      g.b_depth = ld;
      g.b_segment = block.cols * ld;
      g.c_row = ld;
      g.accumulate = !first_block;
      for (int64_t dy = 0; dy < 3; ++dy) {
        g.a = input + dy * g.a_segment;
        g.c = sums + 9 * in * first + dy * 3 * in * ld;
        gemm(g);
      }
    }
  }

  static void finish(const GradJob& job, const float* sums, float* weight, float*) {
    const int64_t in = job.in();
    const Panels panels = panels_of(job.out());
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.first_vec(p) * kLanes;
      const int64_t ld = panels.num_vecs(p) * kLanes;
      for (int64_t n = first; n < min_of(first + ld, job.out()); ++n) {
        float* dst = weight + job.grad.map.torch_channel(n) * in * 9;
        for (int64_t t = 0; t < 9; ++t) {
          for (int64_t c = 0; c < in; ++c) {
            dst[c * 9 + t] = sums[9 * in * first + (t * in + c) * ld + (n - first)];
          }
        }
      }
    }
  }
};

// Few output channels: the columns of the product are the input channels, once per tap.
struct FewOutputsGrad {
  static Blocking blocking(const GradJob& job) {
    const int64_t row_bytes = 4 * (kDirectCols + 2) * round_up(job.in(), kLanes);
    const int64_t rows = max_of(2, min_of((256 << 10) / row_bytes - 2, 8));
    return {job.grad.height, job.grad.width, 1, rows * kDirectCols, kDirectCols};
  }

  static int64_t sum_floats(const GradJob& job) {
    return 9 * job.out() * round_up(job.in(), kLanes);
  }

  static int64_t patch_floats(const GradJob& job, int64_t rows, int64_t cols) {
    return (rows + 2) * (cols + 2) * round_up(job.in(), kLanes) + kAlign;
  }

  static int64_t scratch_floats(const GradJob& job, const Blocking& blocking) {
    return patch_floats(job, blocking.th, blocking.tw) + blocking.th * blocking.tw * job.out();
  }

  static void add(const GradJob& job, const Block& block, bool first_block, float* sums,
                  float* bias, float* scratch) {
    const int64_t out = job.out();
    const int64_t ld = round_up(job.in(), kLanes);
    float* input = scratch;
    float* grad = scratch + patch_floats(job, block.rows, block.cols);
    load_patch(job.grad, block.b, {block.y, block.x, block.rows, block.cols}, 0, out, grad, out);
    add_bias_grad(grad, block.rows * block.cols, out, out, bias);
    if (!job.want_weight) {
      return;
    }
    load_patch(job.input, block.b, job.halo(block, block.rows, block.cols), 0, job.in(), input, ld);
    const Panels panels = panels_of(job.in());
    Gemm g;
    g.rows = out;
    g.depth = block.cols;
    g.segments = block.rows;
    g.a = grad;
    g.a_row = 1;
    g.a_depth = out;
    g.a_segment = block.cols * out;
    g.b_depth = ld;
    g.b_segment = (block.cols + 2) * ld;
    g.c_row = ld;
    g.accumulate = !first_block;
    for (int64_t t = 0; t < 9; ++t) {
      for (int64_t p = 0; p < panels.count; ++p) {
        const int64_t first = panels.first_vec(p) * kLanes;
        g.cols = panels.num_vecs(p);
        g.b = input + t / 3 * g.b_segment + t % 3 * ld + first;
        g.c = sums + t * out * ld + first;
        gemm(g);
      }
    }
  }

  static void finish(const GradJob& job, const float* sums, float* weight, float*) {
    const int64_t ld = round_up(job.in(), kLanes);
    for (int64_t n = 0; n < job.out(); ++n) {
      float* dst = weight + job.grad.map.torch_channel(n) * job.in() * 9;
      for (int64_t c = 0; c < job.in(); ++c) {
        for (int64_t t = 0; t < 9; ++t) {
          dst[c * 9 + t] = sums[(t * job.out() + n) * ld + c];
        }
      }
    }
  }
};

// Fills job.weight (if wanted) and job.bias.
template <typename Algorithm>
static void weight_grad(const GradJob& job, const ThreadPool& pool) {
  const Blocking blocking = Algorithm::blocking(job);
  const int64_t blocks = blocking.count();
  const int64_t tasks = job.batch * job.segments;
  const int64_t sum_floats = round_up(Algorithm::sum_floats(job), kAlign);
  const int64_t bias_floats = round_up(job.out(), kLanes) + kAlign;
  const Workspace space(min_of(num_slots(pool), tasks),
                        sum_floats + bias_floats + Algorithm::scratch_floats(job, blocking));
  run_tasks(pool, tasks, [&](int64_t slot, int64_t task) {
    float* sums = space.part(slot);
    float* bias = sums + sum_floats;
    float* scratch = bias + bias_floats;
    const int64_t segment = task % job.segments;
    const int64_t begin = segment * blocks / job.segments;
    const int64_t end = (segment + 1) * blocks / job.segments;
    fill_zero(bias, bias_floats);
    if (begin == end) {
      fill_zero(sums, sum_floats);
    }
    for (int64_t i = begin; i < end; ++i) {
      Algorithm::add(job, blocking.at(task / job.segments, i), i == begin, sums, bias, scratch);
    }
    if (job.want_weight) {
      Algorithm::finish(job, sums, job.weight + task * job.kernel_floats(), scratch);
    }
    for (int64_t n = 0; n < job.out(); ++n) {
      job.bias[task * job.out() + job.grad.map.torch_channel(n)] = bias[n];
    }
  });
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
