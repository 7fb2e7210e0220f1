// The race detector. With -fsanitize=thread the compiler announces every access to memory; libtsan
// is not linked, its hooks are defined here. For each byte of shared memory they keep the last
// writer and two readers, and report an access that nothing orders after one of them. __syncthreads
// orders all threads of a block, a named barrier its threads, __syncwarp the lanes in its mask;
// shuffles and votes order nothing, as in CUDA.
#pragma once

#include "proxy.h"

namespace dasr::emulation {

enum class Access { kRead, kWrite, kAtomic };

DASR_UNCHECKED inline void check_valid(const void* pointer, size_t bytes) {
  if (machine.shared.valid(pointer, bytes)) return;
  fail("shared memory out of bounds: access to " + std::to_string(bytes) + " bytes");
}

#ifdef DASR_EMULATION_RACE

class RaceDetector {
 public:
  DASR_UNCHECKED void access(const void* pointer, size_t bytes, Access access, int id) {
    if (!machine.shared.contains(pointer)) return;
    check_valid(pointer, bytes);
    start_block();
    const Mark mark = {machine.epoch, clocks_[id * 32 + id % 32], id, access == Access::kAtomic};
    Cell* cell = &cells_[machine.shared.offset(pointer)];
    for (Cell* end = cell + bytes; cell < end; ++cell) {
      check(cell->writer, mark, access == Access::kRead ? "read after write" : "write after write");
      if (access == Access::kRead) {
        if (ordered(cell->first_reader, mark)) {
          cell->first_reader = mark;
        } else {
          cell->last_reader = mark;
        }
      } else {
        check(cell->first_reader, mark, "write after read");
        check(cell->last_reader, mark, "write after read");
        cell->writer = mark;
      }
    }
    if (access != Access::kRead) proxy_writers.note(pointer, bytes, id);
  }

  // Whole warps, so that what lies beyond the own warp is known to all of its lanes alike.
  DASR_UNCHECKED void named_barrier(const std::vector<int>& ids) {
    start_block();
    uint32_t joint[1024] = {};
    for (int id : ids) {
      for (int other = 0; id % 32 == 0 && other < machine.n_threads(); ++other) {
        const uint32_t clock = warp_clocks_[id / 32 * 1024 + other];
        if (clock > joint[other]) joint[other] = clock;
      }
    }
    for (int id : ids) joint[id] = clocks_[id * 32 + id % 32];
    for (int id : ids) {
      if (id % 32 == 0) {
        std::memcpy(&warp_clocks_[id / 32 * 1024], joint, sizeof joint);
      }
      std::memcpy(&clocks_[id * 32], &joint[id / 32 * 32], 32 * sizeof(uint32_t));
      ++clocks_[id * 32 + id % 32];
    }
  }

  DASR_UNCHECKED void sync_warp(int warp, unsigned mask) {
    start_block();
    uint32_t* clocks = &clocks_[warp * 32 * 32];
    uint32_t joint[32] = {};
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      for (int i = 0; i < 32; ++i) {
        if (clocks[lane * 32 + i] > joint[i]) joint[i] = clocks[lane * 32 + i];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      for (int i = 0; i < 32; ++i) clocks[lane * 32 + i] = joint[i];
      ++clocks[lane * 32 + lane];
    }
  }

 private:
  struct Mark {
    uint64_t epoch;
    uint32_t clock;
    int id;
    bool atomic;
  };
  struct Cell {
    Mark writer, first_reader, last_reader;
  };

  DASR_UNCHECKED void start_block() {
    if (block_ == statistics.blocks) return;
    block_ = statistics.blocks;
    for (int i = 0; i < 1024 * 32; ++i) clocks_[i] = warp_clocks_[i] = 0;
    for (int id = 0; id < machine.n_threads(); ++id) clocks_[id * 32 + id % 32] = 1;
  }

  // Whether the earlier access happened before the current thread's present.
  DASR_UNCHECKED bool ordered(const Mark& before, const Mark& now) const {
    if (before.epoch < machine.epoch || before.id == now.id) return true;
    if (before.id / 32 != now.id / 32) {
      return warp_clocks_[now.id / 32 * 1024 + before.id] >= before.clock;
    }
    return clocks_[now.id * 32 + before.id % 32] >= before.clock;
  }

  DASR_UNCHECKED void check(const Mark& before, const Mark& now, const char* what) {
    if (ordered(before, now) || (before.atomic && now.atomic)) return;
    fail(std::string("race in shared memory: ") + what + " of thread " + std::to_string(before.id) +
         " without synchronisation");
  }

  Cell* cells_ = new Cell[SharedMemory::kArena]();
  uint32_t* clocks_ = new uint32_t[1024 * 32]();       // [thread, lane]: what it knows of its warp
  uint32_t* warp_clocks_ = new uint32_t[32 * 1024]();  // [warp, thread]: what it knows of others
  uint64_t block_ = 0;
};

inline RaceDetector race_detector;

DASR_UNCHECKED inline void note_access(const void* pointer, size_t bytes, Access access, int id) {
  race_detector.access(pointer, bytes, access, id);
}
DASR_UNCHECKED inline void note_sync_warp(int warp, unsigned mask) {
  race_detector.sync_warp(warp, mask);
}
DASR_UNCHECKED inline void note_named_barrier(const std::vector<int>& ids) {
  race_detector.named_barrier(ids);
}
DASR_UNCHECKED inline void hook(const void* pointer, size_t bytes, Access access) {
  if (machine.current == nullptr) return;
  race_detector.access(pointer, bytes, access, machine.current->id);
}

#else

inline void note_access(const void*, size_t, Access, int) {}
inline void note_sync_warp(int, unsigned) {}
inline void note_named_barrier(const std::vector<int>&) {}

#endif

// What the emulation itself does to shared memory for a thread.
DASR_UNCHECKED inline void check_access(const void* pointer, size_t bytes, Access access, int id) {
  check_valid(pointer, bytes);
  note_access(pointer, bytes, access, id);
}

inline void check_aligned(const void* pointer, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return;
  fail(std::string("misaligned address: ") + what + " needs a multiple of " +
       std::to_string(alignment) + " bytes");
}

}  // namespace dasr::emulation

#ifdef DASR_EMULATION_RACE
#define DASR_HOOK(NAME, BYTES, ACCESS)                                                  \
  extern "C" __attribute__((weak, no_sanitize("thread"))) void __tsan_##NAME(void* p) { \
    ::dasr::emulation::hook(p, BYTES, ::dasr::emulation::Access::ACCESS);               \
  }
#define DASR_HOOKS(BYTES)                          \
  DASR_HOOK(read##BYTES, BYTES, kRead)             \
  DASR_HOOK(write##BYTES, BYTES, kWrite)           \
  DASR_HOOK(unaligned_read##BYTES, BYTES, kRead)   \
  DASR_HOOK(unaligned_write##BYTES, BYTES, kWrite) \
  DASR_HOOK(volatile_read##BYTES, BYTES, kRead)    \
  DASR_HOOK(volatile_write##BYTES, BYTES, kWrite)
DASR_HOOKS(1)
DASR_HOOKS(2)
DASR_HOOKS(4)
DASR_HOOKS(8)
DASR_HOOKS(16)
#undef DASR_HOOKS
#undef DASR_HOOK
extern "C" {
__attribute__((weak, no_sanitize("thread"))) void __tsan_read_range(void* p, size_t n) {
  ::dasr::emulation::hook(p, n, ::dasr::emulation::Access::kRead);
}
__attribute__((weak, no_sanitize("thread"))) void __tsan_write_range(void* p, size_t n) {
  ::dasr::emulation::hook(p, n, ::dasr::emulation::Access::kWrite);
}
__attribute__((weak)) void __tsan_vptr_update(void**, void*) {}
__attribute__((weak)) void __tsan_init() {}
__attribute__((weak)) void __tsan_func_entry(void*) {}
__attribute__((weak)) void __tsan_func_exit() {}
}
#endif
