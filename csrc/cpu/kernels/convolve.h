// A convolution as a job: blocks of the output, computed by one of several algorithms.
#pragma once

#include "gemm.h"
#include "kernel_bank.h"
#include "sink.h"
#include "tasks.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct ConvJob {
  int64_t batch;
  int64_t pad_y;  // output (y, x) reads input (y - pad_y + 0..2, x - pad_x + 0..2); may be negative
  int64_t pad_x;
  Source src;
  Sink dst;
  KernelBank bank;

  int64_t in() const { return src.channels; }
  int64_t out() const { return dst.channels; }
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

// Algorithm: blocking(job), kernel_floats(job), scratch_floats(job, blocking),
//   emit(job, kernels, c, v, taps): takes the kernels of a sample as KernelBank hands them out,
//   run(job, block, kernels, bias, scratch): computes and stores one block.
template <typename Algorithm>
static void convolve(const ConvJob& job, const ThreadPool& pool) {
  if (job.batch == 0 || job.dst.height <= 0 || job.dst.width <= 0 || job.out() == 0) {
    return;
  }
  const Blocking blocking = Algorithm::blocking(job);
  const int64_t blocks = blocking.count();
  const int64_t units = pack_units(job.bank);
  const int64_t slots = num_slots(pool);
  const int64_t whole = job.batch - job.batch % slots;
  const int64_t rest = job.batch - whole;
  const int64_t kernel_floats = round_up(Algorithm::kernel_floats(job), kAlign);
  const int64_t bias_floats = round_up(job.out(), kLanes) + kAlign;
  const Workspace kernels(min_of(slots, job.batch), kernel_floats + bias_floats);
  const Workspace scratch(min_of(slots, max_of(whole, rest * max_of(units, blocks))),
                          max_of(pack_scratch(job.bank), Algorithm::scratch_floats(job, blocking)));

  auto pack = [&](int64_t b, int64_t unit, float* into, float* tmp) {
    if (unit == 0) {
      aggregate_bias(job.bank, b, into + kernel_floats);
    }
    pack_unit(job.bank, b, unit, tmp, [&](int64_t c, int64_t v, const vf* taps) {
      Algorithm::emit(job, into, c, v, taps);
    });
  };
  run_tasks(pool, whole, [&](int64_t slot, int64_t b) {
    float* own = kernels.part(slot);
    for (int64_t u = 0; u < units; ++u) {
      pack(b, u, own, scratch.part(slot));
    }
    for (int64_t i = 0; i < blocks; ++i) {
      Algorithm::run(job, blocking.at(b, i), own, own + kernel_floats, scratch.part(slot));
    }
  });
  run_tasks(pool, rest * units, [&](int64_t slot, int64_t task) {
    const int64_t sample = task / units;
    pack(whole + sample, task % units, kernels.part(sample), scratch.part(slot));
  });
  run_tasks(pool, rest * blocks, [&](int64_t slot, int64_t task) {
    const float* own = kernels.part(task / blocks);
    Algorithm::run(job, blocking.at(whole + task / blocks, task % blocks), own, own + kernel_floats,
                   scratch.part(slot));
  });
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
