// Threads and scratch memory.
#pragma once

#include <new>

#include "conv.h"
#include "huge_pages.h"
#include "simd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// One allocation per phase, cut into equal parts that are not initialised.
class Workspace {
 public:
  Workspace(int64_t parts, int64_t floats)
      : stride_(round_up(floats, kAlign) + kAlign),
        data_(static_cast<float*>(
            ::operator new(static_cast<size_t>(parts * stride_) * 4, std::align_val_t(64)))) {
    advise_huge_pages(data_, static_cast<size_t>(parts * stride_) * 4);
  }
  ~Workspace() { ::operator delete(data_, std::align_val_t(64)); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* part(int64_t i) const { return data_ + i * stride_; }

 private:
  int64_t stride_;
  float* data_;
};

// Cuts a part of a workspace into aligned arrays; without a base it only counts.
struct Cutter {
  float* base;
  int64_t used = 0;

  float* take(int64_t floats) {
    float* p = base == nullptr ? nullptr : base + used;
    used += round_up(floats, kAlign);
    return p;
  }
};

// Numbers below 1.2e-38 are taken and stored as 0 inside of kernels, for some x86 processors take a
// hundred times longer for them.
class FlushDenormals {
#if defined(__x86_64__)
 public:
  FlushDenormals() : saved_(__builtin_ia32_stmxcsr()) {
    __builtin_ia32_ldmxcsr(saved_ | kFlushToZero | kDenormalsAreZero);
  }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8000;
  static constexpr unsigned kDenormalsAreZero = 0x0040;
  unsigned saved_;
#else
 public:
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

DASR_OPS_INLINE int64_t num_slots(const ThreadPool& pool) {
  return pool.parallel_for == nullptr ? 1 : max_of(pool.num_threads, 1);
}

// Calls fn(slot, task) for every task. A slot is a thread's place: it is never used by two threads
// at once, and takes the next task when it is free, so results must not depend on it.
template <typename Fn>
static void run_tasks(const ThreadPool& pool, int64_t tasks, const Fn& fn) {
  struct Shared {
    const Fn& fn;
    int64_t tasks;
    int64_t next;
  } shared{fn, tasks, 0};
  auto work = [](int64_t begin, int64_t end, void* ctx) {
    Shared& s = *static_cast<Shared*>(ctx);
    const FlushDenormals flush;
    for (int64_t slot = begin; slot < end; ++slot) {
      int64_t task;
      while ((task = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.tasks) {
        s.fn(slot, task);
      }
    }
  };
  const int64_t slots = min_of(num_slots(pool), tasks);
  if (slots > 1) {
    pool.parallel_for(0, slots, 1, work, &shared);
  } else if (slots == 1) {
    work(0, 1, &shared);
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
