// A convolution as a job: blocks of the output, computed by one of several algorithms.
#pragma once

#include "gemm.h"
#include "kernel_bank.h"
#include "sink.h"
#include "tasks.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// Along one dimension, output i reads input i * stride - pad + j * dilation for j in 0..taps-1, and
// multiplies it with tap first + j * step of a kernel. pad may be negative and taps 0.
struct JobAxis {
  int64_t kernel;  // taps of the kernel in memory
  int64_t taps;
  int64_t stride;
  int64_t dilation;
  int64_t pad;
  int64_t first = 0;
  int64_t step = 1;

  int64_t extent(int64_t outputs) const {
    return taps == 0 ? 0 : (outputs - 1) * stride + (taps - 1) * dilation + 1;
  }
  bool dense(int64_t taps_) const { return taps == taps_ && stride == 1 && dilation == 1; }

  // Without the taps at either end that meet nothing but padding.
  JobAxis cropped(int64_t inputs, int64_t outputs) const {
    JobAxis a = *this;
    for (; a.taps > 0 && (outputs - 1) * stride < a.pad; --a.taps) {
      a.pad -= dilation;
      a.first += step;
    }
    while (a.taps > 0 && (a.taps - 1) * dilation - a.pad >= inputs) {
      --a.taps;
    }
    return a;
  }
};

struct Geometry {
  JobAxis y, x;

  int64_t taps() const { return y.taps * x.taps; }
  bool dense(int64_t taps_) const { return y.dense(taps_) && x.dense(taps_); }
  // The input that rows x cols of the output from a block's origin on read.
  Window window(const Block& k, int64_t rows, int64_t cols) const {
    return {k.y * y.stride - y.pad, k.x * x.stride - x.pad, y.extent(rows), x.extent(cols)};
  }
};

struct ConvJob : Geometry {
  int64_t batch;
  Source src;
  Sink dst;
  KernelBank bank;

  int64_t in() const { return src.channels; }
  int64_t out() const { return dst.channels; }
  // Where tap (i, j) of the job stands in a kernel in memory.
  int64_t tap(int64_t i, int64_t j) const {
    return (y.first + i * y.step) * x.kernel + x.first + j * x.step;
  }
};

// A plane cut into blocks of up to max_tiles tiles and max_across tiles per row, evened out.
// It depends on the size of the work only, never on the number of threads.
struct Blocking {
  int64_t height, width;
  int64_t tile;    // pixels along each side
  int64_t th, tw;  // tiles of a block
  int64_t ny, nx;  // blocks

  Blocking(int64_t height_, int64_t width_, int64_t tile_, int64_t max_tiles, int64_t max_across)
      : height(height_), width(width_), tile(tile_) {
    const int64_t across = ceil_div(width, tile);
    const int64_t down = ceil_div(height, tile);
    tw = ceil_div(across, ceil_div(across, max_across));
    th = ceil_div(down, ceil_div(down, max_of(1, max_tiles / tw)));
    nx = ceil_div(across, tw);
    ny = ceil_div(down, th);
  }

  int64_t count() const { return ny * nx; }

  Block at(int64_t b, int64_t i) const {
    const int64_t y = i / nx * th * tile;
    const int64_t x = i % nx * tw * tile;
    return {b, y, x, min_of(th * tile, height - y), min_of(tw * tile, width - x)};
  }
};

// Kernels beyond this do not stay in the cache of a core.
constexpr int64_t kCachedKernelBytes = 512 << 10;

// Algorithm: blocking(job), kernel_floats(job, panels), scratch_floats(job, blocking),
//   emit(job, kernels, first, c, v, taps): takes the kernels of a sample as KernelBank hands them
//   out, into `kernels`, which begin with panel `first`,
//   run(job, block, panels, kernels, bias, scratch): computes and stores the output channels of
//   these panels in one block; `kernels` begin with the first of them,
//   kInputCost: of reading a float of the input, in floats of a kernel.
template <typename Algorithm>
static void convolve(const ConvJob& job, const ThreadPool& pool) {
  if (job.batch == 0 || job.dst.height <= 0 || job.dst.width <= 0 || job.out() == 0) {
    return;
  }
  const Blocking blocking = Algorithm::blocking(job);
  const int64_t blocks = blocking.count();
  const int64_t slots = num_slots(pool);
  const Panels panels = panels_of(job.out());
  const PanelRange all{0, panels.count};
  const int64_t kernel_floats = Algorithm::kernel_floats(job, all);
  const int64_t bias_floats = round_up(job.out(), kLanes) + kAlign;
  const int64_t scratch_floats =
      max_of(pack_scratch(job.bank), Algorithm::scratch_floats(job, blocking));
  auto emit = [&job](float* into, int64_t first) {
    return [&job, into, first](int64_t c, int64_t v, const Taps& taps) {
      Algorithm::emit(job, into, first, c, v, taps);
    };
  };

  // Panel by panel, kernels never leave the cache, and the experts of a panel are read again while
  // they are cached; but every panel reads the input anew.
  const int64_t input_floats = job.src.height * job.src.width * job.in();
  if (4 * kernel_floats > kCachedKernelBytes &&
      2 * kernel_floats > Algorithm::kInputCost * (panels.count - 1) * input_floats &&
      panels.count > 1 && job.batch * panels.count >= 2 * slots) {
    int64_t panel_floats = 0;
    for (int64_t p = 0; p < panels.count; ++p) {
      panel_floats = max_of(panel_floats, Algorithm::kernel_floats(job, {p, p + 1}));
    }
    const Workspace space(slots, panel_floats + bias_floats + scratch_floats + 2 * kAlign);
    run_tasks(pool, panels.count * job.batch, [&](int64_t slot, int64_t task) {
      const PanelRange panel{task / job.batch, task / job.batch + 1};
      const int64_t b = task % job.batch;
      Cutter cutter{space.part(slot)};
      float* kernels = cutter.take(panel_floats);
      float* bias = cutter.take(bias_floats);
      float* scratch = cutter.take(scratch_floats);
      aggregate_bias(job.bank, b, bias);
      pack_vectors(job.bank, b, panels.first_vec(panel.first), panels.first_vec(panel.last),
                   scratch, emit(kernels, panel.first));
      for (int64_t i = 0; i < blocks; ++i) {
        Algorithm::run(job, blocking.at(b, i), panel, kernels, bias, scratch);
      }
    });
    return;
  }

  const int64_t units = pack_units(job.bank);
  const int64_t whole = job.batch - job.batch % slots;
  const int64_t rest = job.batch - whole;
  const int64_t bias_at = round_up(kernel_floats, kAlign);
  const Workspace kernels(min_of(slots, job.batch), bias_at + bias_floats);
  const Workspace scratch(min_of(slots, max_of(whole, rest * max_of(units, blocks))),
                          scratch_floats);
  auto pack = [&](int64_t b, int64_t unit, float* into, float* tmp) {
    if (unit == 0) {
      aggregate_bias(job.bank, b, into + bias_at);
    }
    pack_unit(job.bank, b, unit, tmp, emit(into, 0));
  };
  run_tasks(pool, whole, [&](int64_t slot, int64_t b) {
    float* own = kernels.part(slot);
    for (int64_t u = 0; u < units; ++u) {
      pack(b, u, own, scratch.part(slot));
    }
    for (int64_t i = 0; i < blocks; ++i) {
      Algorithm::run(job, blocking.at(b, i), all, own, own + bias_at, scratch.part(slot));
    }
  });
  run_tasks(pool, rest * units, [&](int64_t slot, int64_t task) {
    const int64_t sample = task / units;
    pack(whole + sample, task % units, kernels.part(sample), scratch.part(slot));
  });
  run_tasks(pool, rest * blocks, [&](int64_t slot, int64_t task) {
    const float* own = kernels.part(task / blocks);
    Algorithm::run(job, blocking.at(whole + task / blocks, task % blocks), all, own, own + bias_at,
                   scratch.part(slot));
  });
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
