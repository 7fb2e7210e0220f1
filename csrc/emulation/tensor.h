// cp.async, ldmatrix and mma.sync, with the fragment layouts of the PTX manual.
#pragma once

#include <cstdint>
#include <cstring>

#include "numeric.h"
#include "race.h"

namespace dasr::emulation {

// The hardware may write the destination at any time between issue and wait. So that nobody counts
// on either, it turns to NaN at the issue and holds the data from the wait on; the race detector
// sees a write at both.
DASR_UNCHECKED inline void cp_async(void* shared, const void* global, unsigned bytes,
                                    unsigned from_bytes) {
  if (!machine.shared.contains(shared)) fail("cp.async: the destination is not shared memory");
  if (from_bytes > bytes) fail("cp.async: source size above the copy size");
  check_aligned(shared, bytes, "cp.async");
  check_aligned(global, bytes, "cp.async");
  Thread& self = *machine.current;
  check_access(shared, bytes, Access::kWrite, self.id);
  std::memset(shared, 0xFF, bytes);
  self.copies.push_back({static_cast<unsigned char*>(shared),
                         static_cast<const unsigned char*>(global), bytes, from_bytes});
}

inline void cp_async_commit() {
  Thread& self = *machine.current;
  self.group_ends.push_back(self.copies.size());
}

// Completes all groups but the `pending` most recent ones.
DASR_UNCHECKED inline void cp_async_wait(size_t pending) {
  Thread& self = *machine.current;
  if (self.group_ends.size() <= pending) return;
  const size_t n_groups = self.group_ends.size() - pending;
  const size_t n_copies = self.group_ends[n_groups - 1];
  for (size_t i = 0; i < n_copies; ++i) {
    const Copy& copy = self.copies[i];
    note_access(copy.to, copy.bytes, Access::kWrite, self.id);
    proxy_writers.note(copy.to, copy.bytes, self.id);
    unsigned char data[16] = {};
    std::memcpy(data, copy.from, copy.from_bytes);
    std::memcpy(copy.to, data, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + n_copies);
  self.group_ends.erase(self.group_ends.begin(), self.group_ends.begin() + n_groups);
  for (size_t& end : self.group_ends) end -= n_copies;
}

inline void cp_async_wait_all() {
  cp_async_commit();
  cp_async_wait(0);
}

// kMatrices 8x8 matrices of 16-bit elements; lane 8 * i + r gives the address of row r of matrix i.
template <int kMatrices, bool kTranspose>
DASR_UNCHECKED void ldmatrix(uint32_t (&registers)[kMatrices], const void* row, Where where) {
  struct Operands {
    const unsigned char* row;
    uint32_t* registers;
  } self = {static_cast<const unsigned char*>(row), registers};
  if (machine.current->lane < 8 * kMatrices) {
    if (!machine.shared.contains(row)) fail("ldmatrix: the source is not shared memory");
    check_aligned(row, 16, "ldmatrix");
    check_valid(row, 16);
  }
  machine.gather(kTranspose ? "ldmatrix.trans" : "ldmatrix", ~0u, &self, where,
                 [](auto* threads, unsigned lanes) __attribute__((no_sanitize("thread"))) {
                   if (lanes != ~0u) fail("ldmatrix needs a full warp");
                   for (int lane = 0; lane < 32; ++lane) {
                     for (int i = 0; i < kMatrices; ++i) {
                       uint16_t pair[2];
                       for (int j = 0; j < 2; ++j) {
                         const int r = kTranspose ? lane % 4 * 2 + j : lane / 4;
                         const int c = kTranspose ? lane / 4 : lane % 4 * 2 + j;
                         const unsigned char* from =
                             static_cast<Operands*>(threads[8 * i + r]->operands)->row + 2 * c;
                         note_access(from, 2, Access::kRead, threads[lane]->id);
                         std::memcpy(&pair[j], from, 2);
                       }
                       static_cast<Operands*>(threads[lane]->operands)->registers[i] =
                           pair[0] | static_cast<uint32_t>(pair[1]) << 16;
                     }
                   }
                 });
}

// The k elements that each lane's register r of an operand holds, and where: A is [16, K] with rows
// lane / 4 (+ 8), B is [K, 8] with columns lane / 4. A register holds two 16-bit elements (K = 16)
// or one tf32 (K = 8).
struct Half {
  static constexpr int kK = 16;
  static float value(uint32_t bits, int i) { return half_value(bits >> 16 * i & 0xFFFF); }
};
struct Bfloat16 {
  static constexpr int kK = 16;
  static float value(uint32_t bits, int i) { return bfloat16_value(bits >> 16 * i & 0xFFFF); }
};
struct Tf32 {
  static constexpr int kK = 8;
  // The multiplier does not read the low 13 bits.
  static float value(uint32_t bits, int) { return bit_cast<float>(bits & 0xFFFFE000u); }
};

// d += a * b. Products are exact and accumulate in fp32 in the order of k; the hardware's own order
// and rounding of the sum are not documented.
template <class Type>
void mma(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         Where where) {
  struct Operands {
    float* d;
    const uint32_t* a;
    const uint32_t* b;
  } self = {d, a, b};
  machine.gather(name, ~0u, &self, where, [](auto* threads, unsigned lanes) {
    if (lanes != ~0u) fail("mma.sync needs a full warp");
    constexpr int kK = Type::kK, kPacked = kK / 8;
    float a[16][kK], b[kK][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto* operands = static_cast<Operands*>(threads[lane]->operands);
      const int group = lane / 4, k = lane % 4 * kPacked;
      for (int i = 0; i < kPacked; ++i) {
        for (int r = 0; r < 4; ++r) {
          a[group + r % 2 * 8][k + r / 2 * (kK / 2) + i] = Type::value(operands->a[r], i);
        }
        for (int r = 0; r < 2; ++r) {
          b[k + r * (kK / 2) + i][group] = Type::value(operands->b[r], i);
        }
      }
    }
    for (int row = 0; row < 16; ++row) {
      float sum[8];
      for (int n = 0; n < 8; ++n) {
        sum[n] =
            static_cast<Operands*>(threads[row % 8 * 4 + n / 2]->operands)->d[row / 8 * 2 + n % 2];
      }
      for (int k = 0; k < kK; ++k) {
        for (int n = 0; n < 8; ++n) sum[n] += a[row][k] * b[k][n];
      }
      for (int n = 0; n < 8; ++n) {
        static_cast<Operands*>(threads[row % 8 * 4 + n / 2]->operands)->d[row / 8 * 2 + n % 2] =
            sum[n];
      }
    }
  });
}

// cvt.rna.tf32.f32: to nearest, ties away from zero.
inline uint32_t to_tf32(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7F800000) == 0x7F800000)
    return (bits & 0xFFFFE000u) | (value != value ? 1u << 22 : 0);
  return (bits + 0x1000) & 0xFFFFE000u;
}

}  // namespace dasr::emulation
