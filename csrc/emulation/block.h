// Runs the blocks of a grid one after another, each as a set of fibers that change over only where
// a thread waits: at a barrier or at a warp operation. All threads that wait must make sense
// together; if they do not, the launch throws std::runtime_error and says who waits where.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "runtime_api.h"
#include "shared_memory.h"

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace dasr::emulation {

// As the default of a parameter: where the function is called.
struct Where {
  const char* file;
  int line;
  static Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// One cp.async, from its issue to the wait that makes it visible.
struct Copy {
  unsigned char* to;
  const unsigned char* from;
  unsigned bytes, from_bytes;
};

// One wgmma.mma_async of a thread, from its issue to the wait that makes it visible.
struct Wgmma {
  uint64_t a, b;  // descriptors
  const float* d;
  bool accumulate;
  float (*value)(uint16_t);  // of an operand's bits

  bool operator==(const Wgmma& other) const {
    return a == other.a && b == other.b && accumulate == other.accumulate && value == other.value;
  }
};

// Registers that the tensor cores own: what they will hold, while the thread sees NaN.
struct InFlight {
  float* registers;
  std::vector<float> values;
};

enum class State { kReady, kAtBarrier, kAtWarpOperation, kExited };

struct Thread {
  Fiber fiber;
  int id = 0, lane = 0, warp = 0;
  uint3 index;
  State state = State::kReady;
  // what it waits for
  const char* operation = nullptr;
  Where where = {"", 0};
  unsigned mask = 0;
  void* operands = nullptr;
  // cp.async in order of issue, and where each committed group ends
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
  // wgmma likewise
  std::vector<Wgmma> wgmmas;
  std::vector<size_t> wgmma_ends;
  std::vector<InFlight> in_flight;
  bool registers_fenced = false;
  uint64_t wgmma_hash = 0;    // of all that were issued
  uint32_t proxy_fences = 0;  // executed so far

  void start_block() {
    copies.clear();
    group_ends.clear();
    wgmmas.clear();
    wgmma_ends.clear();
    in_flight.clear();
    registers_fenced = false;
    wgmma_hash = 0;
    proxy_fences = 0;
  }
};

// Threads of one warp that have arrived at an operation which the others of the mask still miss.
struct Gathering {
  const char* operation;
  unsigned mask, arrived;
};

// bar.sync with a number of threads. Stricter than the hardware: once some have met there, only
// they may meet there in this block.
struct NamedBarrier {
  int count = 0;
  Where where = {"", 0};
  std::vector<int> arrived, members;
};

class Machine {
 public:
  dim3 grid, block;
  uint3 block_index;
  SharedMemory shared;
  Thread* current = nullptr;  // null: the launching thread runs
  uint64_t epoch = 0;         // block starts and block barriers so far

  int n_threads() const { return n_threads_; }
  Thread& thread(int id) { return *threads_[id]; }
  unsigned lanes(int warp) const {
    const int n = n_threads_ - 32 * warp;
    return n >= 32 ? ~0u : (1u << n) - 1;
  }

  // body(arguments) is what one thread does.
  void run_grid(dim3 grid_size, dim3 block_size, size_t dynamic_bytes, void (*body)(void*),
                void* arguments) {
    static std::mutex mutex;
    std::lock_guard<std::mutex> one_launch_at_a_time(mutex);
    grid = grid_size;
    block = block_size;
    body_ = body;
    arguments_ = arguments;
    n_threads_ = block.x * block.y * block.z;
    random_ = settings.seed * 2654435761u + 12345;
    shared.start_launch(dynamic_bytes);
    prepare_threads();
    ++statistics.launches;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          block_index = {x, y, z};
          run_block();
        }
      }
    }
  }

  void barrier(Where where) {
    Thread& self = *current;
    wait_at(self, State::kAtBarrier, "__syncthreads", where);
    if (n_exited_ > 0) fail("divergent barrier: " + describe());
    if (n_at_barrier_++ == 0) {
      barrier_at_ = where;
    } else if (barrier_at_.line != where.line) {
      fail("divergent barrier: " + describe());
    }
    if (n_at_barrier_ < n_threads_) return run_others();
    n_at_barrier_ = 0;
    ++epoch;
    enqueue_all();
    run_others();
  }

  // As barrier(), for `count` threads in whole warps; the last one calls complete(their ids).
  template <class Complete>
  void named_barrier(int id, int count, Where where, Complete complete) {
    Thread& self = *current;
    wait_at(self, State::kAtBarrier, "bar.sync", where);
    if (id < 1 || id >= kNamedBarriers) fail("bar.sync: no barrier " + std::to_string(id));
    if (count < 32 || count % 32 != 0 || count > n_threads_) {
      fail("bar.sync: bad number of threads " + std::to_string(count));
    }
    NamedBarrier& barrier = named_[id];
    if (barrier.arrived.empty()) {
      barrier.count = count;
      barrier.where = where;
    } else if (barrier.count != count || barrier.where.line != where.line) {
      fail("divergent barrier: " + describe());
    }
    barrier.arrived.push_back(self.id);
    if (static_cast<int>(barrier.arrived.size()) < count) return run_others();
    std::sort(barrier.arrived.begin(), barrier.arrived.end());
    for (int i = 0; i < count; i += 32) {
      if (barrier.arrived[i] % 32 != 0 || barrier.arrived[i + 31] != barrier.arrived[i] + 31) {
        fail("bar.sync: warps arrived in part; " + describe());
      }
    }
    if (barrier.members.empty()) barrier.members = barrier.arrived;
    if (barrier.members != barrier.arrived) {
      fail("bar.sync: barrier " + std::to_string(id) + " belongs to other threads; " + describe());
    }
    complete(barrier.arrived);
    if (settings.order == Order::kReverse) {
      std::reverse(barrier.arrived.begin(), barrier.arrived.end());
    }
    for (int thread : barrier.arrived) {
      threads_[thread]->state = State::kReady;
      enqueue(thread);
    }
    barrier.arrived.clear();
    run_others();
  }

  // Waits until every thread of the mask has called the same operation with the same mask; the last
  // one to arrive calls complete(), which works on the operands of all of them.
  template <class Complete>
  void gather(const char* operation, unsigned mask, void* operands, Where where,
              Complete complete) {
    Thread& self = *current;
    wait_at(self, State::kAtWarpOperation, operation, where);
    self.mask = mask;
    self.operands = operands;
    if ((mask >> self.lane & 1) == 0) fail("a lane is missing from its own mask: " + describe());
    mask &= lanes(self.warp);
    if (mask & exited_[self.warp]) fail("divergent warp operation: " + describe());
    auto& gatherings = gatherings_[self.warp];
    size_t i = 0;
    while (i < gatherings.size() &&
           (gatherings[i].operation != operation || gatherings[i].mask != mask)) {
      ++i;
    }
    if (i == gatherings.size()) gatherings.push_back({operation, mask, 0});
    gatherings[i].arrived |= 1u << self.lane;
    if (gatherings[i].arrived != mask) return run_others();
    gatherings.erase(gatherings.begin() + i);
    complete(&threads_[32 * self.warp], mask);
    for (int lane = 0; lane < 32; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      threads_[32 * self.warp + lane]->state = State::kReady;
      if (lane != self.lane) enqueue(32 * self.warp + lane);
    }
  }

  [[noreturn]] void stop(const std::string& message) {
    if (current == nullptr) throw std::runtime_error(message);
    error_ = message + place(*current);
    Thread& self = *current;
    current = nullptr;
    self.fiber.switch_to(launcher_);
    __builtin_unreachable();
  }

 private:
  void prepare_threads() {
    while (static_cast<int>(threads_.size()) < n_threads_) {
      threads_.push_back(std::make_unique<Thread>());
    }
    gatherings_.resize((n_threads_ + 31) / 32);
    exited_.resize(gatherings_.size());
    for (int id = 0; id < n_threads_; ++id) {
      Thread& thread = *threads_[id];
      thread.id = id;
      thread.lane = id % 32;
      thread.warp = id / 32;
      thread.index = {id % block.x, id / block.x % block.y, id / (block.x * block.y)};
      if (!thread.fiber.created()) thread.fiber.create(&Machine::thread_main);
    }
  }

  void run_block() {
    ++statistics.blocks;
    ++epoch;
    shared.start_block();
    n_at_barrier_ = n_exited_ = 0;
    for (auto& gatherings : gatherings_) gatherings.clear();
    for (unsigned& mask : exited_) mask = 0;
    for (NamedBarrier& barrier : named_) barrier = {};
    for (int id = 0; id < n_threads_; ++id) threads_[id]->start_block();
    first_ready_ = end_ready_ = 0;
    enqueue_all();
    error_.clear();
    current = take();
    launcher_.switch_to(current->fiber);
    if (error_.empty() && n_exited_ == n_threads_) return shared.check_zones();
    const std::string text =
        error_.empty() ? "divergence: no thread can go on; " + describe() + place(thread(0))
                       : error_;
    threads_.clear();  // their stacks stopped half-way
    throw std::runtime_error(text);
  }

  static void thread_main();

  void exit_thread() {
    Thread& self = *current;
    self.state = State::kExited;
    ++n_exited_;
    exited_[self.warp] |= 1u << self.lane;
    if (n_at_barrier_ > 0) fail("divergent barrier: " + describe());
    if (!self.wgmmas.empty()) fail("wgmma: the thread exits with products in flight");
    if (n_exited_ == n_threads_) check_warpgroups();
    run_others();
  }

  void check_warpgroups() {
    for (int id = 0; id < n_threads_; ++id) {
      if (threads_[id]->wgmma_hash == threads_[id / 128 * 128]->wgmma_hash) continue;
      fail("wgmma: the warps of a warpgroup issued different products");
    }
  }

  void wait_at(Thread& self, State state, const char* operation, Where where) {
    self.state = state;
    self.operation = operation;
    self.where = where;
  }

  // Continues the next thread that can run; returns when this one is continued.
  void run_others() {
    Thread& self = *current;
    current = take();
    if (current == &self) return;
    ++statistics.switches;
    self.fiber.switch_to(current == nullptr ? launcher_ : current->fiber);
  }

  void enqueue(int id) { ready_[end_ready_++ % kMaxThreads] = id; }

  void enqueue_all() {
    for (int id = 0; id < n_threads_; ++id) {
      threads_[id]->state = State::kReady;
      enqueue(settings.order == Order::kReverse ? n_threads_ - 1 - id : id);
    }
  }

  Thread* take() {
    if (first_ready_ == end_ready_) return nullptr;
    int& next = ready_[first_ready_ % kMaxThreads];
    if (settings.order == Order::kShuffled) {
      random_ = random_ * 1664525u + 1013904223u;
      const unsigned pick = (random_ >> 8) % (end_ready_ - first_ready_);
      std::swap(next, ready_[(first_ready_ + pick) % kMaxThreads]);
    }
    ++first_ready_;
    return threads_[next].get();
  }

  std::string place(const Thread& thread) const {
    return " [block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) +
           ", " + std::to_string(block_index.z) + ") thread " + std::to_string(thread.id) + "]";
  }

  // "threads 0-15 wait at __syncthreads (x.cu:10), 16-31 have exited"
  std::string describe() const {
    std::string text;
    for (int first = 0, id = 1; id <= n_threads_; ++id) {
      if (id < n_threads_ && status(id) == status(first)) continue;
      text += (first == 0 ? "threads " : ", ") + std::to_string(first) +
              (id - first > 1 ? "-" + std::to_string(id - 1) : "") + " " + status(first);
      first = id;
    }
    return text;
  }

  std::string status(int id) const {
    const Thread& thread = *threads_[id];
    if (thread.state == State::kExited) return "exited";
    if (thread.state == State::kReady) return "can run";
    std::string file = thread.where.file;
    std::string text = "at " + std::string(thread.operation) + " (" +
                       file.substr(file.rfind('/') + 1) + ":" + std::to_string(thread.where.line);
    if (thread.state == State::kAtWarpOperation) {
      char mask[24];
      snprintf(mask, sizeof mask, ", mask 0x%08x", thread.mask);
      text += mask;
    }
    return text + ")";
  }

  Fiber launcher_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<std::vector<Gathering>> gatherings_;  // per warp
  std::vector<unsigned> exited_;                    // per warp, a mask
  static constexpr int kNamedBarriers = 16;         // number 0 is that of __syncthreads
  NamedBarrier named_[kNamedBarriers];
  static constexpr unsigned kMaxThreads = 1024;
  int ready_[kMaxThreads];  // a ring: each thread is in it at most once
  unsigned first_ready_ = 0, end_ready_ = 0;
  void (*body_)(void*) = nullptr;
  void* arguments_ = nullptr;
  int n_threads_ = 0, n_at_barrier_ = 0, n_exited_ = 0;
  Where barrier_at_ = {"", 0};
  uint32_t random_ = 0;
  std::string error_;
};

inline Machine machine;

inline void Machine::thread_main() {
  for (;;) {
    machine.body_(machine.arguments_);
    machine.exit_thread();
  }
}

[[noreturn]] inline void fail(const std::string& message) { machine.stop(message); }

}  // namespace dasr::emulation
