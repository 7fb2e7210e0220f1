// Compiled without sanitizers, which would make it the slowest part by far.
#include "reference.h"

#include <algorithm>
#include <cmath>

namespace {

// The sizes are squared until they are complete.
void take_roots(Values& v) {
  for (double& size : v.size) {
    size = std::sqrt(size);
  }
}

// sum_k routing[b,k] of[k], or of[b] without experts: [B, n].
Values mix(const Call& call, const float* of, int64_t n) {
  const Shape s(call.params);
  Values mixed(s.B * n);
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t k = 0; k < std::max<int64_t>(s.K, 1); ++k) {
      const double a = s.K == 0 ? 1.0 : call.params.routing[b * s.K + k];
      const float* row = of + (s.K == 0 ? b : k) * n;
      for (int64_t i = 0; i < n && a != 0.0; ++i) {
        mixed.value[b * n + i] += a * row[i];
        mixed.size[b * n + i] += a * a * row[i] * row[i];
      }
    }
  }
  return mixed;
}

// The adjoint: [B, n] -> gradients of the experts and of the routing weights.
void unmix(const Call& call, const Values& grad, const float* of, int64_t n, Values& grad_of,
           Values* grad_routing) {
  const Shape s(call.params);
  grad_of = Values(s.kernels() * n);
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t k = 0; k < std::max<int64_t>(s.K, 1); ++k) {
      const double a = s.K == 0 ? 1.0 : call.params.routing[b * s.K + k];
      const int64_t row = (s.K == 0 ? b : k) * n;
      for (int64_t i = 0; i < n; ++i) {
        const double g = grad.value[b * n + i];
        const double g2 = grad.size[b * n + i];
        grad_of.value[row + i] += a * g;
        grad_of.size[row + i] += a * a * g2;
        if (grad_routing != nullptr) {
          grad_routing->value[b * s.K + k] += g * of[row + i];
          grad_routing->size[b * s.K + k] += g2 * of[row + i] * of[row + i];
        }
      }
    }
  }
}

// fn(pixel of the convolution, its channel within the image, row, column), pixels as [B, O, H',
// W'].
template <typename Fn>
void for_each_pixel(const Shape& s, const Fn& fn) {
  int64_t at = 0;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t o = 0; o < s.O; ++o) {
      for (int64_t y = 0; y < s.OH; ++y) {
        for (int64_t x = 0; x < s.OW; ++x, ++at) {
          const int64_t sub = o % (s.r * s.r);
          fn(at, b, o / (s.r * s.r), y * s.r + sub / s.r, x * s.r + sub % s.r);
        }
      }
    }
  }
}

// fn(element of a kernel [B, O, I/g, kh, kw], first pixel of a row of the convolution, first of the
// input as [B, I, H, W], number of pixels)
template <typename Fn>
void for_each_product(const ConvBackwardParams& p, const Fn& fn) {
  const Shape s(p);
  const int64_t group = s.I / s.G;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t o = 0; o < s.O; ++o) {
      for (int64_t i = 0; i < group; ++i) {
        const int64_t channel = o / (s.O / s.G) * group + i;
        for (int64_t t = 0; t < s.taps; ++t) {
          const int64_t dy = t / p.x.kernel * p.y.dilation - p.y.pad_before;
          const int64_t dx = t % p.x.kernel * p.x.dilation - p.x.pad_before;
          int64_t first = 0;
          while (first < s.OW && first * p.x.stride + dx < 0) {
            ++first;
          }
          int64_t last = s.OW;
          while (last > first && (last - 1) * p.x.stride + dx >= s.W) {
            --last;
          }
          for (int64_t y = 0; y < s.OH; ++y) {
            const int64_t row = y * p.y.stride + dy;
            if (row >= 0 && row < s.H && first < last) {
              fn(((b * s.O + o) * group + i) * s.taps + t,
                 ((b * s.O + o) * s.OH + y) * s.OW + first,
                 ((b * s.I + channel) * s.H + row) * s.W + first * p.x.stride + dx, last - first);
            }
          }
        }
      }
    }
  }
}

std::vector<double> dense_input(const ConvBackwardParams& p) {
  const Shape s(p);
  std::vector<double> dense(s.B * s.I * s.H * s.W);
  int64_t at = 0;
  for (int64_t b = 0; b < s.B; ++b) {
    for (int64_t c = 0; c < s.I; ++c) {
      for (int64_t y = 0; y < s.H; ++y) {
        for (int64_t x = 0; x < s.W; ++x) {
          dense[at++] = p.input[offset(p.input_strides, b, c, y, x)];
        }
      }
    }
  }
  return dense;
}

void forward(const Call& call, const std::vector<double>& x, const Values& kernel, Reference& ref) {
  const ConvBackwardParams& p = call.params;
  const Shape s(p);
  Values& c = ref.convolution = Values(s.B * s.O * s.OH * s.OW);
  if (p.bias != nullptr) {
    const Values bias = mix(call, p.bias, s.O);
    for (size_t i = 0; i < c.value.size(); ++i) {
      c.value[i] = bias.value[i / (s.OH * s.OW)];
      c.size[i] = bias.size[i / (s.OH * s.OW)];
    }
  }
  int64_t inside = 0;
  for_each_product(p, [&](int64_t w, int64_t out, int64_t in, int64_t n) {
    inside += n;
    const double value = kernel.value[w];
    const double size = kernel.size[w];
    for (int64_t i = 0; i < n; ++i) {
      const double pixel = x[in + i * p.x.stride];
      c.value[out + i] += value * pixel;
      c.size[out + i] += size * pixel * pixel;
    }
  });
  const int64_t products = static_cast<int64_t>(kernel.value.size()) * s.OH * s.OW;
  ref.coverage = static_cast<double>(inside) / static_cast<double>(std::max<int64_t>(products, 1));
  take_roots(c);
  ref.output = Values(s.output_size());
  for_each_pixel(s, [&](int64_t at, int64_t b, int64_t o, int64_t row, int64_t col) {
    double v = c.value[at];
    // As PyTorch does: NaN passes through ReLU.
    if (p.activation == Activation::kLeakyRelu && v <= 0.0) {
      v = p.negative_slope == 0.0f ? 0.0 : v * p.negative_slope;
    }
    v *= p.residual_scale;
    if (p.residual != nullptr) {
      v += p.residual[offset(p.residual_strides, b, o, row, col)];
    }
    const int64_t to = offset(Layout::kNCHW, s.C, s.IH, s.IW, b, o, row, col);
    ref.output.value[to] = v;
    ref.output.size[to] = c.size[at] * std::abs(static_cast<double>(p.residual_scale));
  });
}

// The gradient of the convolution's result.
std::vector<double> gated_gradient(const ConvBackwardParams& p) {
  const Shape s(p);
  std::vector<double> g(s.B * s.O * s.OH * s.OW);
  for_each_pixel(s, [&](int64_t at, int64_t b, int64_t o, int64_t row, int64_t col) {
    double v = p.grad_output[offset(p.grad_output_strides, b, o, row, col)];
    v *= p.residual_scale;
    if (p.activation == Activation::kLeakyRelu) {
      const int64_t i = offset(p.output_layout, s.C, s.IH, s.IW, b, o, row, col);
      const bool open = p.saved_output != nullptr ? p.saved_output[i] > 0.0f
                                                  : (p.saved_sign_mask[i / 8] >> i % 8 & 1) != 0;
      if (!open) {
        v = p.negative_slope == 0.0f ? 0.0 : v * p.negative_slope;
      }
    }
    g[at] = v;
  });
  return g;
}

void backward(const Call& call, const std::vector<double>& x, const Values& kernel,
              Reference& ref) {
  const ConvBackwardParams& p = call.params;
  const Shape s(p);
  const std::vector<double>& g = ref.gradient = gated_gradient(p);
  Values& grad_input = ref.grad_input = Values(call.grad_input ? x.size() : 0);
  Values grad_kernel(s.B * s.kernel);
  for_each_product(p, [&](int64_t w, int64_t out, int64_t in, int64_t n) {
    if (call.grad_input) {
      for (int64_t i = 0; i < n; ++i) {
        grad_input.value[in + i * p.x.stride] += kernel.value[w] * g[out + i];
        grad_input.size[in + i * p.x.stride] += kernel.size[w] * g[out + i] * g[out + i];
      }
    }
    if (call.grad_weight || call.grad_routing) {
      double value = 0.0;
      double size = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        const double term = g[out + i] * x[in + i * p.x.stride];
        value += term;
        size += term * term;
      }
      grad_kernel.value[w] += value;
      grad_kernel.size[w] += size;
    }
  });
  Values grad_shift(s.B * s.O);
  for (size_t i = 0; i < g.size(); ++i) {
    grad_shift.value[i / (s.OH * s.OW)] += g[i];
    grad_shift.size[i / (s.OH * s.OW)] += g[i] * g[i];
  }
  ref.grad_routing = Values(s.B * s.K);
  Values* routing = call.grad_routing ? &ref.grad_routing : nullptr;
  unmix(call, grad_kernel, p.weight, s.kernel, ref.grad_weight, routing);
  unmix(call, grad_shift, p.bias, s.O, ref.grad_bias, p.bias != nullptr ? routing : nullptr);
  for (Values* v : {&ref.grad_input, &ref.grad_weight, &ref.grad_routing, &ref.grad_bias}) {
    take_roots(*v);
  }
}

}  // namespace

Reference compute_reference(const Call& call, const Sabotage& sabotage) {
  const std::vector<double> x = dense_input(call.params);
  Values kernel = mix(call, call.params.weight, Shape(call.params).kernel);
  if (sabotage.wrong_reference && !kernel.value.empty()) {
    kernel.value.back() *= 1.01;
  }
  Reference ref;
  forward(call, x, kernel, ref);
  if (call.backward()) {
    backward(call, x, kernel, ref);
  }
  return ref;
}
