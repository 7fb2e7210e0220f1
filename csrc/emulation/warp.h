// Warp shuffles, votes, __syncwarp and the block barrier, under CUDA's own names.
#pragma once

#include <cstring>
#include <type_traits>

#include "race.h"

namespace dasr::emulation {

// source(lane) is the lane to read from, or the lane itself where the source lies outside its
// section. CUDA leaves the value undefined if the source does not take part; here that is an error.
template <class T, class Source>
T shuffle(const char* name, unsigned mask, T value, Where where, int width, Source source) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail("shuffle: bad width");
  struct Operands {
    T in, out;
    int source;
  };
  const int lane = machine.current->lane;
  Operands self = {value, value, source(lane, lane & ~(width - 1))};
  machine.gather(name, mask, &self, where, [&](auto* threads, unsigned lanes) {
    for (int i = 0; i < 32; ++i) {
      if ((lanes >> i & 1) == 0) continue;
      auto* operands = static_cast<Operands*>(threads[i]->operands);
      if ((lanes >> operands->source & 1) == 0) {
        fail(std::string(name) + ": lane " + std::to_string(i) + " reads lane " +
             std::to_string(operands->source) + ", which does not take part");
      }
      operands->out = static_cast<Operands*>(threads[operands->source]->operands)->in;
    }
  });
  return self.out;
}

inline unsigned vote(const char* name, unsigned mask, bool predicate, Where where) {
  struct Operands {
    bool in;
    unsigned out;
  } self = {predicate, 0};
  machine.gather(name, mask, &self, where, [](auto* threads, unsigned lanes) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i) {
      if (lanes >> i & 1) {
        ballot |= unsigned(static_cast<Operands*>(threads[i]->operands)->in) << i;
      }
    }
    for (int i = 0; i < 32; ++i) {
      if (lanes >> i & 1) static_cast<Operands*>(threads[i]->operands)->out = ballot;
    }
  });
  return self.out;
}

}  // namespace dasr::emulation

inline void __syncthreads(dasr::emulation::Where where = dasr::emulation::Where::here()) {
  dasr::emulation::machine.barrier(where);
}

inline void __syncwarp(unsigned mask = ~0u,
                       dasr::emulation::Where where = dasr::emulation::Where::here()) {
  using namespace dasr::emulation;
  machine.gather("__syncwarp", mask, nullptr, where,
                 [](auto* threads, unsigned lanes) { note_sync_warp(threads[0]->warp, lanes); });
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::shuffle("__shfl_sync", mask, value, where, width,
                                  [=](int, int first) { return first + (source & (width - 1)); });
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::shuffle(
      "__shfl_up_sync", mask, value, where, width,
      [=](int lane, int first) { return lane - int(delta) >= first ? lane - int(delta) : lane; });
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::shuffle(
      "__shfl_down_sync", mask, value, where, width, [=](int lane, int first) {
        return lane + int(delta) < first + width ? lane + int(delta) : lane;
      });
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::shuffle("__shfl_xor_sync", mask, value, where, width,
                                  [=](int lane, int first) {
                                    const int other = lane ^ lane_mask;
                                    return other < first + width ? other : lane;
                                  });
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::vote("__ballot_sync", mask, predicate != 0, where);
}

inline int __any_sync(unsigned mask, int predicate,
                      dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::vote("__any_sync", mask, predicate != 0, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate,
                      dasr::emulation::Where where = dasr::emulation::Where::here()) {
  return dasr::emulation::vote("__all_sync", mask, predicate == 0, where) == 0;
}

template <class T>
DASR_UNCHECKED T atomicAdd(T* address, T value) {
  using namespace dasr::emulation;
  check_aligned(address, sizeof(T), "atomicAdd");
  check_access(address, sizeof(T), Access::kAtomic, machine.current->id);
  const T old = *address;
  *address = old + value;
  return old;
}

DASR_UNCHECKED inline unsigned atomicOr(unsigned* address, unsigned value) {
  using namespace dasr::emulation;
  check_aligned(address, sizeof(unsigned), "atomicOr");
  check_access(address, sizeof(unsigned), Access::kAtomic, machine.current->id);
  const unsigned old = *address;
  *address = old | value;
  return old;
}
