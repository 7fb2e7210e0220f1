// The shared memory of the one block that runs: poisoned with NaN at its start, surrounded by zones
// that nothing may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "fiber.h"

#if defined(__SANITIZE_THREAD__)
#define DASR_EMULATION_RACE 1
#endif

// For code that touches shared memory on behalf of the hardware, unseen by the race detector.
#define DASR_UNCHECKED __attribute__((no_sanitize("thread")))

namespace dasr::emulation {

[[noreturn]] void fail(const std::string& message);

class SharedMemory {
 public:
  static constexpr size_t kStaticLimit = 48 * 1024;
  static constexpr size_t kZone = 1024;
  static constexpr int kMaxArrays = 64;
  static constexpr size_t kStaticArena = 2 * kStaticLimit + 64 * kZone;
  static constexpr size_t kDynamicArena = 256 * 1024;
  static constexpr size_t kArena = kStaticArena + kDynamicArena + 4 * kZone;

  SharedMemory() : memory_(static_cast<unsigned char*>(std::aligned_alloc(kZone, kArena))) {
    forbid(memory_, kArena);
    dynamic_ = memory_ + kStaticArena + kZone;
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    allow(memory_, kArena);
    std::free(memory_);
  }

  DASR_UNCHECKED bool contains(const void* pointer) const { return offset(pointer) < kArena; }
  DASR_UNCHECKED size_t offset(const void* pointer) const {
    return reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(memory_);
  }

  void start_launch(size_t dynamic_bytes) {
    forbid(memory_, kArena);
    n_arrays_ = 0;
    static_bytes_ = 0;
    static_end_ = kZone;
    ++launch_;
    dynamic_bytes_ = dynamic_bytes;
    allow(dynamic_, dynamic_bytes);
  }

  void start_block() {
    for (int i = 0; i < n_arrays_; ++i) poison(arrays_[i].begin, arrays_[i].bytes);
    poison(dynamic_, dynamic_bytes_);
  }

  // A static array lies at an odd multiple of its own alignment: what an unstated stricter
  // alignment would need does not hold by luck.
  void* allocate_static(size_t bytes, size_t alignment, size_t limit) {
    static_bytes_ = (static_bytes_ + alignment - 1) / alignment * alignment + bytes;
    if (static_bytes_ > kStaticLimit || static_bytes_ + dynamic_bytes_ > limit) {
      fail("static shared memory exceeds the limit: " + std::to_string(static_bytes_) + " + " +
           std::to_string(dynamic_bytes_) + " dynamic bytes");
    }
    size_t begin = (static_end_ + 2 * alignment - 1) / (2 * alignment) * 2 * alignment + alignment;
    static_end_ = begin + bytes + 64;
    if (static_end_ + kZone > kStaticArena || n_arrays_ == kMaxArrays) {
      fail("too many static shared arrays");
    }
    unsigned char* pointer = memory_ + begin;
    arrays_[n_arrays_++] = {pointer, bytes};
    allow(pointer, bytes);
    poison(pointer, bytes);
    return pointer;
  }

  unsigned char* dynamic() const { return dynamic_; }
  size_t dynamic_bytes() const { return dynamic_bytes_; }
  uint64_t launch() const { return launch_; }

  // Whether all the bytes belong to the block. Pointers outside the arena are not ours to judge.
  DASR_UNCHECKED bool valid(const void* pointer, size_t bytes) const {
    const auto* begin = static_cast<const unsigned char*>(pointer);
    if (begin >= dynamic_ && begin + bytes <= dynamic_ + dynamic_bytes_) return true;
    for (int i = 0; i < n_arrays_; ++i) {
      if (begin >= arrays_[i].begin && begin + bytes <= arrays_[i].begin + arrays_[i].bytes) {
        return true;
      }
    }
    return !contains(pointer);
  }

  // Stray reads see NaN at once; stray writes are found here.
  void check_zones() const {
#ifndef DASR_EMULATION_ASAN
    const unsigned char* end = memory_ + kArena;
    const unsigned char* begin = memory_;
    for (int i = 0; i < n_arrays_; ++i) {
      check_zone(begin, arrays_[i].begin);
      begin = arrays_[i].begin + arrays_[i].bytes;
    }
    check_zone(begin, memory_ + static_end_ + kZone);
    check_zone(dynamic_ - kZone, dynamic_);
    begin = dynamic_ + dynamic_bytes_;
    check_zone(begin, end - begin > 4096 ? begin + 4096 : end);
#endif
  }

 private:
  struct Range {
    unsigned char* begin;
    size_t bytes;
  };
  static constexpr unsigned char kPoison = 0xFF;  // NaN in every floating-point type
  // 0xFFFD in every 16-bit word: another NaN.
  static unsigned char zone_byte(const unsigned char* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 2 == 0 ? 0xFD : 0xFF;
  }

  static void poison(unsigned char* begin, size_t bytes) { std::memset(begin, kPoison, bytes); }

  static void allow(unsigned char* begin, size_t bytes) {
#ifdef DASR_EMULATION_ASAN
    __asan_unpoison_memory_region(begin, bytes);
#else
    (void)begin, (void)bytes;
#endif
  }

  static void forbid(unsigned char* begin, size_t bytes) {
#ifdef DASR_EMULATION_ASAN
    __asan_poison_memory_region(begin, bytes);
#else
    for (size_t i = 0; i < bytes; ++i) begin[i] = zone_byte(begin + i);
#endif
  }

  void check_zone(const unsigned char* begin, const unsigned char* end) const {
    for (const unsigned char* byte = begin; byte < end; ++byte) {
      if (*byte == zone_byte(byte)) continue;
      const bool is_dynamic = byte >= dynamic_ - kZone;
      fail("shared memory out of bounds: a byte was written at " +
           (is_dynamic ? "dynamic offset " + std::to_string(byte - dynamic_) + " of " +
                             std::to_string(dynamic_bytes_)
                       : std::string("a place beside a static array")));
    }
  }

  unsigned char* memory_;
  unsigned char* dynamic_ = nullptr;
  size_t dynamic_bytes_ = 0;
  size_t static_bytes_ = 0;
  size_t static_end_ = kZone;
  uint64_t launch_ = 0;
  Range arrays_[kMaxArrays];
  int n_arrays_ = 0;
};

}  // namespace dasr::emulation
