// Aggregates the experts of one sample and hands the kernels out as vectors of channels.
#pragma once

#include "source.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct KernelBank {
  const float* weight;   // [K, O, I, 3, 3], or [B, O, I, 3, 3] if experts == 0
  const float* bias;     // [K, O], or [B, O] if experts == 0; may be null
  const float* routing;  // [B, K]
  int64_t experts;
  int64_t out_channels;  // O
  int64_t in_channels;   // I
  ChannelMap map;        // of the O channels
  bool transposed;       // hand out the kernels of the gradient: O -> I, flipped

  int64_t from() const { return transposed ? out_channels : in_channels; }
  int64_t to() const { return transposed ? in_channels : out_channels; }
};

constexpr int64_t kTransposedUnit = 16;

// dst = sum_k routing[b,k] src[k]; without experts the row itself is returned.
static const float* aggregate(const KernelBank& bank, const float* src, int64_t expert_stride,
                              int64_t b, int64_t offset, int64_t n, float* dst) {
  if (bank.experts == 0) {
    return src + b * expert_stride + offset;
  }
  bool first = true;
  for (int64_t k = 0; k < bank.experts; ++k) {
    const float a = bank.routing[b * bank.experts + k];
    if (a == 0.0f) {
      continue;
    }
    const float* row = src + k * expert_stride + offset;
    if (first) {
      for (int64_t i = 0; i < n; ++i) {
        dst[i] = a * row[i];
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        dst[i] += a * row[i];
      }
    }
    first = false;
  }
  if (first) {
    fill_zero(dst, n);
  }
  return dst;
}

static const float* aggregate_kernel(const KernelBank& bank, int64_t b, int64_t o, float* dst) {
  const int64_t row = bank.in_channels * 9;
  return aggregate(bank, bank.weight, bank.out_channels * row, b, bank.map.torch_channel(o) * row,
                   row, dst);
}

// dst[0 .. round_up(O, kLanes)), 0 where there is no channel.
static void aggregate_bias(const KernelBank& bank, int64_t b, float* dst) {
  const int64_t channels = bank.to();
  fill_zero(dst, round_up(channels, kLanes));
  if (bank.bias == nullptr || bank.transposed) {
    return;
  }
  for (int64_t n = 0; n < channels; ++n) {
    float value;
    dst[n] =
        *aggregate(bank, bank.bias, bank.out_channels, b, bank.map.torch_channel(n), 1, &value);
  }
}

DASR_OPS_INLINE int64_t pack_units(const KernelBank& bank) {
  return bank.transposed ? ceil_div(bank.out_channels, kTransposedUnit)
                         : ceil_div(bank.out_channels, kLanes);
}

DASR_OPS_INLINE int64_t pack_scratch(const KernelBank& bank) {
  const int64_t row = bank.in_channels * 9;
  return bank.transposed ? row + 9 * (bank.in_channels + kLanes) + 4 * kAlign
                         : 2 * kLanes * row + 4 * kAlign;
}

// emit(c, v, w): the nine taps from input channel c to the vector v of output channels.
template <typename Emit>
static void pack_unit(const KernelBank& bank, int64_t b, int64_t unit, float* scratch,
                      const Emit& emit) {
  const int64_t in = bank.in_channels;
  const int64_t row = in * 9;
  vf w[9];
  if (!bank.transposed) {
    float* rows = scratch;
    float* taps = scratch + round_up(kLanes * row, kAlign);
    const int64_t first = unit * kLanes;
    const int64_t count = min_of(kLanes, bank.out_channels - first);
    for (int64_t l = 0; l < count; ++l) {
      float* dst = rows + l * row;
      const float* src = aggregate_kernel(bank, b, first + l, dst);
      if (src != dst) {
        copy_floats(dst, src, row);
      }
    }
    fill_zero(rows + count * row, (kLanes - count) * row);
    transpose(rows, row, kLanes, row, taps, kLanes);
    for (int64_t c = 0; c < in; ++c) {
      for (int t = 0; t < 9; ++t) {
        w[t] = load(taps + (c * 9 + t) * kLanes);
      }
      emit(c, unit, w);
    }
    return;
  }
  const int64_t ld = round_up(in, kLanes);
  float* rows = scratch;
  float* taps = scratch + round_up(row, kAlign);
  fill_zero(taps, 9 * ld);
  const int64_t last = min_of((unit + 1) * kTransposedUnit, bank.out_channels);
  for (int64_t o = unit * kTransposedUnit; o < last; ++o) {
    transpose(aggregate_kernel(bank, b, o, rows), 9, in, 9, taps, ld);
    for (int64_t v = 0; v * kLanes < in; ++v) {
      for (int t = 0; t < 9; ++t) {
        w[t] = load(taps + (8 - t) * ld + v * kLanes);
      }
      emit(o, v, w);
    }
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
