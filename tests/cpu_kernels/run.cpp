#include "run.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <thread>
#include <vector>

// The kernels' scratch memory: exact, and NaN until something is written.
void* operator new(size_t bytes, std::align_val_t align) {
  void* p = nullptr;
  if (posix_memalign(&p, static_cast<size_t>(align), bytes) != 0) {
    throw std::bad_alloc();
  }
  return std::memset(p, 0xFF, bytes);
}
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }

namespace {

constexpr int kThreads = 3;
const Sabotage* pool_sabotage;

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*fn)(int64_t, int64_t, void*),
                  void* ctx) {
  const int64_t step = std::max(grain, (end - begin + kThreads - 1) / kThreads);
  std::vector<std::thread> threads;
  for (int64_t at = begin; at < end; at += step) {
    threads.emplace_back(fn, at, std::min(at + step, end), ctx);
    if (pool_sabotage->overlapping_pool) {
      threads.emplace_back(fn, at, std::min(at + step, end), ctx);
    }
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

}  // namespace

Results run(const Call& call, Threads threads, const Sabotage& sabotage) {
  dasr::cpu::ThreadPool pool;
  if (threads == Threads::kThree) {
    pool_sabotage = &sabotage;
    pool = {kThreads, parallel_for};
  }
  ConvBackwardParams p = call.params;
  const Shape s(p);
  Results results;
  const auto want = [&](auto& array, const char* name, int64_t size) {
    array = {sabotage, name, size};
    return array.get();
  };
  p.output = want(results.output, "output", s.output_size());
  if (call.sign_mask) {
    p.sign_mask = want(results.sign_mask, "sign_mask", (s.output_size() + 7) / 8);
  }
  dasr::cpu::conv_forward(p, pool);
  if (call.grad_input) {
    p.grad_input = want(results.grad_input, "grad_input", s.B * s.I * s.H * s.W);
  }
  if (call.grad_weight) {
    p.grad_weight = want(results.grad_weight, "grad_weight", s.kernels() * s.kernel);
  }
  if (call.grad_routing) {
    p.grad_routing = want(results.grad_routing, "grad_routing", s.B * s.K);
  }
  if (call.grad_bias) {
    p.grad_bias = want(results.grad_bias, "grad_bias", s.kernels() * s.O);
  }
  dasr::cpu::conv_backward(p, pool);
  if (sabotage.thread_dependent && threads == Threads::kThree && results.output.size() > 0) {
    results.output.get()[0] = std::nextafter(results.output.get()[0], 1e30f);
  }
  return results;
}
