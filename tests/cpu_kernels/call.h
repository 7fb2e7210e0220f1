// Random legal calls of the CPU kernels, every tensor in memory of exactly its size.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "cpu/kernels/conv.h"

using dasr::cpu::Activation;
using dasr::cpu::ConvAxis;
using dasr::cpu::ConvBackwardParams;
using dasr::cpu::Layout;

// The same numbers on every machine, unlike the distributions of <random>.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}

  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool chance(double p) { return uniform() < p; }
  // About normal, of variance 1.
  float normal() {
    return static_cast<float>((uniform() + uniform() + uniform() + uniform() - 2.0) * 1.7320508);
  }
  template <size_t n>
  int64_t pick(const int64_t (&values)[n]) {
    return values[below(n)];
  }

 private:
  uint64_t state_;
};

// What a run gets wrong on purpose, so that tests can see that it is noticed.
struct Sabotage {
  std::string shorten;            // this tensor is one element shorter than it should be
  bool wrong_reference = false;   // one tap of the reference's kernels is off by 1 %
  bool thread_dependent = false;  // with several threads a result has another last bit
  bool overlapping_pool = false;  // two threads of the pool get the same range
};

// A heap block of exactly `size` elements: AddressSanitizer sees the first one beyond.
template <typename T>
class Array {
 public:
  Array() = default;
  Array(const Sabotage& sabotage, const char* name, int64_t size)
      : size_(size - (size > 0 && sabotage.shorten == name ? 1 : 0)),
        data_(static_cast<T*>(std::malloc(static_cast<size_t>(size_) * sizeof(T)))) {
    std::memset(static_cast<void*>(data_.get()), 0xFF, static_cast<size_t>(size_) * sizeof(T));
  }

  T* get() const { return data_.get(); }
  int64_t size() const { return size_; }
  size_t bytes() const { return static_cast<size_t>(size_) * sizeof(T); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  int64_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

// The sizes of a call, with the names of conv.h.
struct Shape {
  int64_t B, I, O, K, G, H, W, OH, OW, r, C, IH, IW, taps, row, kernel;

  explicit Shape(const ConvBackwardParams& p)
      : B(p.batch),
        I(p.in_channels),
        O(p.out_channels),
        K(p.experts),
        G(p.groups),
        H(p.y.size),
        W(p.x.size),
        OH(p.y.output()),
        OW(p.x.output()),
        r(p.upscale_factor),
        C(O / (r * r)),
        IH(OH * r),
        IW(OW * r),
        taps(p.y.kernel * p.x.kernel),
        row(I / G * taps),
        kernel(O * row) {}

  int64_t kernels() const { return K == 0 ? B : K; }
  int64_t output_size() const { return B * C * IH * IW; }
};

// Parameters of a forward and a backward, and the memory of what they read. The pointers to results
// say what is wanted: null or not.
struct Call {
  uint64_t seed;
  ConvBackwardParams params;
  Array<float> input, weight, routing, bias, residual, grad_output, saved_output;
  Array<uint8_t> saved_sign_mask;
  bool sign_mask, grad_input, grad_weight, grad_routing, grad_bias;
  std::string description;

  Call(uint64_t seed, const Sabotage& sabotage);
  bool backward() const { return grad_input || grad_weight || grad_routing || grad_bias; }
};

// An element of a tensor with strides, in the order batch, channel, row, column.
inline int64_t offset(const int64_t (&s)[4], int64_t b, int64_t c, int64_t y, int64_t x) {
  return b * s[0] + c * s[1] + y * s[2] + x * s[3];
}

// An element of a dense tensor.
inline int64_t offset(Layout layout, int64_t channels, int64_t height, int64_t width, int64_t b,
                      int64_t c, int64_t y, int64_t x) {
  return layout == Layout::kNHWC ? ((b * height + y) * width + x) * channels + c
                                 : ((b * channels + c) * height + y) * width + x;
}
