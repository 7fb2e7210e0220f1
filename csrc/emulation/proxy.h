// Whose writes to shared memory the async proxy (wgmma) may not see yet: those of threads that have
// executed no fence.proxy.async since. cp.async announces its writes itself; ordinary stores are
// seen by the race detector's hooks alone.
#pragma once

#include "block.h"

namespace dasr::emulation {

class ProxyWriters {
 public:
  DASR_UNCHECKED void note(const void* pointer, size_t bytes, int id) {
    if (!machine.shared.contains(pointer) || bytes == 0) return;
    const size_t begin = machine.shared.offset(pointer);
    const Mark mark = {statistics.blocks, machine.thread(id).proxy_fences, id};
    for (size_t i = begin / kBytes; i <= (begin + bytes - 1) / kBytes; ++i) marks_[i] = mark;
  }

  DASR_UNCHECKED void check(const void* pointer, size_t bytes) const {
    const size_t begin = machine.shared.offset(pointer);
    for (size_t i = begin / kBytes; i <= (begin + bytes - 1) / kBytes; ++i) {
      const Mark& mark = marks_[i];
      if (mark.block != statistics.blocks) continue;
      if (machine.thread(mark.id).proxy_fences > mark.fences) continue;
      fail("wgmma reads what thread " + std::to_string(mark.id) +
           " wrote to shared memory and has not followed by fence.proxy.async");
    }
  }

 private:
  struct Mark {
    uint64_t block;
    uint32_t fences;
    int id;
  };
  static constexpr size_t kBytes = 4;
  Mark* marks_ = new Mark[SharedMemory::kArena / kBytes + 1]();
};

inline ProxyWriters proxy_writers;

inline void fence_proxy_async() { ++machine.current->proxy_fences; }

}  // namespace dasr::emulation
