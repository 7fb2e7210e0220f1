#include "denormals.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "cpu/kernels/conv.h"

namespace {

using namespace dasr::cpu;

struct Layer {
  const char* name;
  int64_t in, out, kernel;
  bool depthwise, precise;
};

constexpr Layer kLayers[] = {
    {"3x3 64->64", 64, 64, 3, false, false},   {"3x3 64->64 precise", 64, 64, 3, false, true},
    {"5x5 32->32", 32, 32, 5, false, false},   {"1x1 64->64", 64, 64, 1, false, false},
    {"3x3 3->64", 3, 64, 3, false, false},     {"3x3 64->3", 64, 3, 3, false, false},
    {"3x3 depthwise", 64, 64, 3, true, false},
};

std::vector<float> filled(int64_t size, float scale) {
  std::vector<float> v(size);
  uint32_t state = 1;
  for (float& x : v) {
    state = state * 1664525u + 1013904223u;
    x = scale * (static_cast<float>(state >> 8) / (1 << 23) - 1.0f);
  }
  return v;
}

// Milliseconds of a forward and a backward, the fastest of several.
void time_layer(const Layer& layer, float data_scale, float weight_scale, double (&ms)[2]) {
  constexpr int64_t kSide = 48;
  const int64_t group = layer.depthwise ? 1 : layer.in;
  const std::vector<float> input = filled(layer.in * kSide * kSide, data_scale);
  const std::vector<float> grad = filled(layer.out * kSide * kSide, data_scale);
  const std::vector<float> weight =
      filled(layer.out * group * layer.kernel * layer.kernel, weight_scale);
  const float routing[1] = {1.0f};
  std::vector<float> output(grad.size());
  std::vector<float> grad_input(input.size());
  std::vector<float> grad_weight(weight.size());
  ConvBackwardParams p;
  p.batch = 1;
  p.in_channels = layer.in;
  p.out_channels = layer.out;
  p.experts = 1;
  p.groups = layer.depthwise ? layer.in : 1;
  p.precise = layer.precise;
  for (ConvAxis* axis : {&p.y, &p.x}) {
    axis->size = kSide;
    axis->kernel = layer.kernel;
    axis->pad_before = axis->pad_after = layer.kernel / 2;
  }
  const int64_t in_strides[4] = {0, kSide * kSide, kSide, 1};
  std::copy(in_strides, in_strides + 4, p.input_strides);
  std::copy(in_strides, in_strides + 4, p.grad_output_strides);
  p.input = input.data();
  p.weight = weight.data();
  p.routing = routing;
  p.output = output.data();
  p.grad_output = grad.data();
  p.grad_input = grad_input.data();
  p.grad_weight = grad_weight.data();
  for (int run = 0; run < 15; ++run) {
    for (int i = 0; i < 2; ++i) {
      const auto start = std::chrono::steady_clock::now();
      if (i == 0) {
        conv_forward(p, ThreadPool());
      } else {
        conv_backward(p, ThreadPool());
      }
      const std::chrono::duration<double, std::milli> took =
          std::chrono::steady_clock::now() - start;
      ms[i] = run == 0 ? took.count() : std::min(ms[i], took.count());
    }
  }
}

}  // namespace

int time_denormals() {
  std::printf(
      "%-20s %9s %9s   forward, backward as multiples of these: denormal data;"
      " denormal weights; denormal products\n",
      "", "fw ms", "bw ms");
  for (const Layer& layer : kLayers) {
    double normal[2];
    time_layer(layer, 1.0f, 1.0f, normal);
    std::printf("%-20s %9.3f %9.3f ", layer.name, normal[0], normal[1]);
    const float scales[][2] = {{1e-40f, 1.0f}, {1.0f, 1e-40f}, {1e-20f, 1e-20f}};
    for (const auto& s : scales) {
      double ms[2];
      time_layer(layer, s[0], s[1], ms);
      std::printf("  %5.2f %5.2f;", ms[0] / normal[0], ms[1] / normal[1]);
    }
    std::printf("\n");
  }
  return 0;
}
