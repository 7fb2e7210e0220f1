// Named barriers and wgmma, with the fragment and matrix layouts of the PTX manual.
//
// The hardware may read the operands at any time between issue and wait. Here they are checked at
// the issue and read at the wait, by each warp for its own sixteen rows; in between, the registers
// of the result are NaN.
#pragma once

#include "tensor.h"

namespace dasr::emulation {

inline void named_barrier(int id, int count, Where where) {
  machine.named_barrier(id, count, where,
                        [](const std::vector<int>& ids) { note_named_barrier(ids); });
}

// As on Hopper, a block's own memory starts behind 1 KB of the system's.
constexpr uint32_t kFirstSharedAddress = 1024;

inline uint32_t shared_address(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - machine.shared.dynamic();
  if (offset < 0 || static_cast<size_t>(offset) > machine.shared.dynamic_bytes()) {
    fail("wgmma: the operand is not in dynamic shared memory");
  }
  return kFirstSharedAddress + static_cast<uint32_t>(offset);
}

// Rows of sixteen elements, K-major without a swizzle.
class MatrixDescriptor {
 public:
  explicit MatrixDescriptor(uint64_t bits)
      : start_(field(bits)), k_stride_(field(bits >> 16)), row_stride_(field(bits >> 32)) {
    if (bits >> 62 != 0) fail("wgmma: swizzled operands are not emulated");
    if (bits >> 46 != 0 || (bits >> 14 & 3) != 0 || (bits >> 30 & 3) != 0) {
      fail("wgmma: the descriptor has bits outside of its fields");
    }
  }

  // Eight elements; half: 0 or 1.
  const unsigned char* row(int i, int half) const {
    return machine.shared.dynamic() + (static_cast<ptrdiff_t>(start_) - kFirstSharedAddress +
                                       half * k_stride_ + i / 8 * row_stride_ + i % 8 * 16);
  }
  template <class F>
  void for_each_row(int first, int n, F f) const {
    for (int i = first; i < first + n; ++i) {
      for (int half = 0; half < 2; ++half) f(row(i, half));
    }
  }

 private:
  static ptrdiff_t field(uint64_t bits) { return (bits & 0x3FFF) << 4; }

  ptrdiff_t start_, k_stride_, row_stride_;
};

constexpr int kWgmmaRows = 64, kWgmmaK = 16;

inline void wgmma_fence() { machine.current->registers_fenced = true; }

inline InFlight* find_in_flight(Thread& thread, const float* registers) {
  for (InFlight& entry : thread.in_flight) {
    if (entry.registers == registers) return &entry;
  }
  return nullptr;
}

template <int kN>
DASR_UNCHECKED void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate,
                          float (*value)(uint16_t)) {
  Thread& self = *machine.current;
  if (!self.registers_fenced) {
    fail("wgmma: no wgmma.fence since the registers were last the thread's own");
  }
  if (machine.n_threads() % 128 != 0) fail("wgmma needs whole warpgroups");
  const MatrixDescriptor a_matrix(a), b_matrix(b);
  if (self.lane == 0) {
    const auto note = [&](const unsigned char* row) {
      check_access(row, 16, Access::kRead, self.id);
      proxy_writers.check(row, 16);
    };
    a_matrix.for_each_row(self.warp % 4 * 16, 16, note);
    b_matrix.for_each_row(0, kN, note);
  }
  if (find_in_flight(self, d) == nullptr) self.in_flight.push_back({d, {d, d + kN / 2}});
  for (float& x : d) x = bit_cast<float>(0xFFFFFFFFu);
  self.wgmmas.push_back({a, b, d, accumulate, value});
  for (uint64_t part : {a, b, static_cast<uint64_t>(accumulate)}) {
    self.wgmma_hash = (self.wgmma_hash ^ part) * 0x9E3779B97F4A7C15u + 1;
  }
}

inline void wgmma_commit() {
  Thread& self = *machine.current;
  self.wgmma_ends.push_back(self.wgmmas.size());
}

// The rows of one warp. Products are exact and accumulate in fp32 in the order of k; the hardware's
// own order and rounding of the sum are not documented.
template <int kN, class Threads>
DASR_UNCHECKED void multiply_rows(Threads* threads, size_t op) {
  const Wgmma& wgmma = threads[0]->wgmmas[op];
  const MatrixDescriptor a_matrix(wgmma.a), b_matrix(wgmma.b);
  const int first = threads[0]->warp % 4 * 16;
  const auto read = [&](const MatrixDescriptor& matrix, int row, float (&values)[kWgmmaK])
                        DASR_UNCHECKED {
                          for (int half = 0; half < 2; ++half) {
                            uint16_t bits[8];
                            const unsigned char* from = matrix.row(row, half);
                            note_access(from, 16, Access::kRead, threads[0]->id);
                            std::memcpy(bits, from, 16);
                            for (int i = 0; i < 8; ++i) values[8 * half + i] = wgmma.value(bits[i]);
                          }
                        };
  static float b[kWgmmaK][kN];
  for (int n = 0; n < kN; ++n) {
    float values[kWgmmaK];
    read(b_matrix, n, values);
    for (int k = 0; k < kWgmmaK; ++k) b[k][n] = values[k];
  }
  float* registers[32];
  for (int lane = 0; lane < 32; ++lane) {
    registers[lane] = find_in_flight(*threads[lane], threads[lane]->wgmmas[op].d)->values.data();
  }
  for (int row = 0; row < 16; ++row) {
    float a[kWgmmaK], sums[kN];
    read(a_matrix, first + row, a);
    const auto at = [&](int n) -> float& {
      return registers[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
    };
    for (int n = 0; n < kN; ++n) sums[n] = wgmma.accumulate ? at(n) : 0.0f;
    for (int k = 0; k < kWgmmaK; ++k) {
      for (int n = 0; n < kN; ++n) sums[n] += a[k] * b[k][n];
    }
    for (int n = 0; n < kN; ++n) at(n) = sums[n];
  }
}

// The registers of products that are no longer in flight come back to the thread.
DASR_UNCHECKED inline void finish_wgmmas(Thread& thread, size_t n_groups, size_t n_ops) {
  thread.wgmmas.erase(thread.wgmmas.begin(), thread.wgmmas.begin() + n_ops);
  thread.wgmma_ends.erase(thread.wgmma_ends.begin(), thread.wgmma_ends.begin() + n_groups);
  for (size_t& end : thread.wgmma_ends) end -= n_ops;
  thread.registers_fenced = false;
  for (size_t i = thread.in_flight.size(); i-- > 0;) {
    const InFlight& entry = thread.in_flight[i];
    bool pending = false;
    for (const Wgmma& wgmma : thread.wgmmas) pending = pending || wgmma.d == entry.registers;
    if (pending) continue;
    for (size_t j = 0; j < entry.values.size(); ++j) {
      if (bit_cast<uint32_t>(entry.registers[j]) != 0xFFFFFFFFu) {
        fail("wgmma: a register was written while a product was in flight");
      }
      entry.registers[j] = entry.values[j];
    }
    thread.in_flight.erase(thread.in_flight.begin() + i);
  }
}

// Completes all groups but the `pending` most recent ones.
template <int kN>
void wgmma_wait(size_t pending, Where where) {
  machine.gather("wgmma.wait_group", ~0u, nullptr, where, [=](auto* threads, unsigned lanes) {
    if (lanes != ~0u) fail("wgmma.wait_group needs a full warp");
    const Thread& first = *threads[0];
    for (int lane = 1; lane < 32; ++lane) {
      if (threads[lane]->wgmmas == first.wgmmas && threads[lane]->wgmma_ends == first.wgmma_ends) {
        continue;
      }
      fail("wgmma: the lanes of a warp issued different products");
    }
    if (first.wgmma_ends.size() <= pending) return;
    const size_t n_groups = first.wgmma_ends.size() - pending;
    const size_t n_ops = first.wgmma_ends[n_groups - 1];
    for (size_t op = 0; op < n_ops; ++op) multiply_rows<kN>(threads, op);
    for (int lane = 0; lane < 32; ++lane) finish_wgmmas(*threads[lane], n_groups, n_ops);
  });
}

}  // namespace dasr::emulation
