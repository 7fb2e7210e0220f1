// Aggregates the experts of one sample and hands the kernels out as vectors of channels.
#pragma once

#include "source.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

struct KernelBank {
  const float* weight;   // [K, O, I / groups, taps], or [B, O, I / groups, taps] if experts == 0
  const float* bias;     // [K, O], or [B, O] if experts == 0; null: none
  const float* routing;  // [B, K]
  int64_t groups;        // that count as samples of their own, as for Strides
  int64_t experts;
  int64_t out_channels;  // O / groups
  int64_t in_channels;   // I / groups; 1 if depthwise
  int64_t taps;
  ChannelMap map;   // of the O channels
  bool transposed;  // hand out the kernels of the gradient: O -> I
  // Of a kernel with many taps the few that are wanted; null: all.
  const int64_t* wanted = nullptr;
  int64_t num_wanted = 0;

  int64_t row() const { return in_channels * taps; }
  int64_t to() const { return transposed ? in_channels : out_channels; }
};

constexpr int64_t kTransposedUnit = 16;
// Up to so many taps, all of them are mixed in vectors in less time than a few one by one.
constexpr int64_t kTapsOfARow = 32;

// The taps of one kernel for kLanes channels that follow each other.
struct Taps {
  const float* data;
  int64_t stride;

  vf operator[](int64_t t) const { return load(data + t * stride); }
};

// dst = sum_k routing[b,k] src[k]; without experts the row itself is returned. `group_stride`: from
// the values of one group to those of the next.
static const float* aggregate(const KernelBank& bank, const float* src, int64_t group_stride,
                              int64_t b, int64_t offset, int64_t n, float* dst) {
  if (bank.experts == 0) {
    return src + b * group_stride + offset;
  }
  const float* routing = bank.routing + b * bank.experts;
  if (bank.groups != 1) {
    routing = bank.routing + b / bank.groups * bank.experts;
    offset += b % bank.groups * group_stride;
  }
  bool first = true;
  for (int64_t k = 0; k < bank.experts; ++k) {
    const float a = routing[k];
    if (a == 0.0f) {
      continue;
    }
    const float* row = src + k * bank.groups * group_stride + offset;
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

// n values of the kernel of output channel o, from an offset.
static const float* aggregate_kernel(const KernelBank& bank, int64_t b, int64_t o, int64_t offset,
                                     int64_t n, float* dst) {
  const int64_t row = bank.row();
  return aggregate(bank, bank.weight, bank.out_channels * row, b,
                   bank.map.torch_channel(o) * row + offset, n, dst);
}

// dst[0 .. round_up(O, kLanes)), 0 where there is no channel.
static void aggregate_bias(const KernelBank& bank, int64_t b, float* dst) {
  const int64_t channels = bank.to();
  fill_zero(dst, round_up(channels, kLanes));
  if (bank.bias == nullptr) {
    return;
  }
  if (!bank.map.grouped) {
    const float* sum = aggregate(bank, bank.bias, bank.out_channels, b, 0, channels, dst);
    if (sum != dst) {
      copy_floats(dst, sum, channels);
    }
    return;
  }
  for (int64_t n = 0; n < channels; ++n) {
    float value;
    dst[n] =
        *aggregate(bank, bank.bias, bank.out_channels, b, bank.map.torch_channel(n), 1, &value);
  }
}

// At least one, of which the biases are a part, even where there is no channel to sum over.
DASR_OPS_INLINE int64_t pack_units(const KernelBank& bank) {
  return bank.transposed ? max_of(1, ceil_div(bank.out_channels, kTransposedUnit))
                         : ceil_div(bank.out_channels, kLanes);
}

DASR_OPS_INLINE int64_t pack_scratch(const KernelBank& bank) {
  const int64_t row = bank.row();
  return bank.transposed ? row + bank.taps * round_up(bank.in_channels, kLanes) + 4 * kAlign
                         : 2 * kLanes * row + 4 * kAlign;
}

// emit(c, v, taps): the taps from input channel c to the vector v of output channels.
template <typename Emit>
static void pack_vector(const KernelBank& bank, int64_t b, int64_t v, float* scratch,
                        const Emit& emit) {
  const int64_t row = bank.row();
  float* rows = scratch;
  float* taps = scratch + round_up(kLanes * row, kAlign);
  const int64_t first = v * kLanes;
  const int64_t count = min_of(kLanes, bank.out_channels - first);
  for (int64_t l = 0; l < count; ++l) {
    float* dst = rows + l * row;
    const float* src = aggregate_kernel(bank, b, first + l, 0, row, dst);
    if (src != dst) {
      copy_floats(dst, src, row);
    }
  }
  fill_zero(rows + count * row, (kLanes - count) * row);
  if (bank.wanted != nullptr) {
    for (int64_t c = 0; c < bank.in_channels; ++c) {
      for (int64_t i = 0; i < bank.num_wanted; ++i) {
        const int64_t at = c * bank.taps + bank.wanted[i];
        for (int64_t l = 0; l < kLanes; ++l) {
          taps[at * kLanes + l] = rows[l * row + at];
        }
      }
    }
  } else {
    transpose(rows, row, kLanes, row, taps, kLanes);
  }
  for (int64_t c = 0; c < bank.in_channels; ++c) {
    emit(c, v, Taps{taps + c * bank.taps * kLanes, kLanes});
  }
}

// The same of the gradient's kernels, for the rows [first, last) and the vectors [v0, v1).
template <typename Emit>
static void pack_transposed(const KernelBank& bank, int64_t b, int64_t first, int64_t last,
                            int64_t v0, int64_t v1, float* scratch, const Emit& emit) {
  const int64_t ld = (v1 - v0) * kLanes;
  const int64_t begin = v0 * kLanes;
  const int64_t count = min_of(v1 * kLanes, bank.in_channels) - begin;
  float* rows = scratch;
  float* taps = scratch + round_up(bank.row(), kAlign);
  fill_zero(taps, bank.taps * ld);
  for (int64_t o = first; o < last; ++o) {
    if (bank.wanted != nullptr && bank.taps <= kTapsOfARow) {
      const float* row = aggregate_kernel(bank, b, o, begin * bank.taps, count * bank.taps, rows);
      for (int64_t i = 0; i < bank.num_wanted; ++i) {
        const int64_t t = bank.wanted[i];
        for (int64_t c = 0; c < count; ++c) {
          taps[t * ld + c] = row[c * bank.taps + t];
        }
      }
    } else if (bank.wanted != nullptr) {
      for (int64_t i = 0; i < bank.num_wanted; ++i) {
        const int64_t t = bank.wanted[i];
        for (int64_t c = 0; c < count; ++c) {
          float value;
          taps[t * ld + c] = *aggregate_kernel(bank, b, o, (begin + c) * bank.taps + t, 1, &value);
        }
      }
    } else {
      const float* row = aggregate_kernel(bank, b, o, begin * bank.taps, count * bank.taps, rows);
      transpose(row, bank.taps, count, bank.taps, taps, ld);
    }
    for (int64_t v = v0; v < v1; ++v) {
      emit(o, v, Taps{taps + (v - v0) * kLanes, ld});
    }
  }
}

// One of pack_units(bank) parts of the packing of a sample's kernel.
template <typename Emit>
static void pack_unit(const KernelBank& bank, int64_t b, int64_t unit, float* scratch,
                      const Emit& emit) {
  if (!bank.transposed) {
    return pack_vector(bank, b, unit, scratch, emit);
  }
  pack_transposed(bank, b, unit * kTransposedUnit,
                  min_of((unit + 1) * kTransposedUnit, bank.out_channels), 0,
                  ceil_div(bank.in_channels, kLanes), scratch, emit);
}

// All that the vectors [v0, v1) of output channels need.
template <typename Emit>
static void pack_vectors(const KernelBank& bank, int64_t b, int64_t v0, int64_t v1, float* scratch,
                         const Emit& emit) {
  if (bank.transposed) {
    return pack_transposed(bank, b, 0, bank.out_channels, v0, v1, scratch, emit);
  }
  for (int64_t v = v0; v < v1; ++v) {
    pack_vector(bank, b, v, scratch, emit);
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
