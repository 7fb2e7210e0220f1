#include "checks.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <vector>

namespace {

// Of the largest value, or of the root of its squared terms where the terms cancel. As
// docs/design.md says; precise convolutions are as exact as direct ones.
constexpr double kOutputBar = 3e-6;
constexpr double kPreciseBar = 1e-6;
constexpr double kGradientBar = 2e-6;  // RMS

// A Winograd tile mixes all taps with all of its pixels, so that its rounding errors do not shrink
// where most taps meet padding, as the values do.
double bar_of(double bar, const Reference& ref) {
  return ref.coverage > 0.0 ? bar / std::sqrt(ref.coverage) : bar;
}

__attribute__((format(printf, 1, 2))) std::string text(const char* format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  return line;
}

void record(Worst::Error& worst, double error, const Call& call) {
  if (error > worst.value) {
    worst = {error, call.seed};
  }
}

// From an element of a tensor in NCHW to the same in another layout.
int64_t relayout(Layout layout, int64_t channels, int64_t height, int64_t width, int64_t i) {
  return offset(layout, channels, height, width, i / (width * height * channels),
                i / (width * height) % channels, i / width % height, i % width);
}

int64_t output_at(const Call& call, int64_t i) {
  const Shape s(call.params);
  return relayout(call.params.output_layout, s.C, s.IH, s.IW, i);
}

int64_t grad_input_at(const Call& call, int64_t i) {
  const Shape s(call.params);
  return relayout(call.params.grad_input_layout, s.I, s.H, s.W, i);
}

// From an element of the output in NCHW to the pixel of the convolution that it comes from.
int64_t unshuffle(const Shape& s, int64_t i) {
  const int64_t col = i % s.IW;
  const int64_t row = i / s.IW % s.IH;
  const int64_t channel = i / (s.IW * s.IH) * s.r * s.r + row % s.r * s.r + col % s.r;
  return (channel * s.OH + row / s.r) * s.OW + col / s.r;
}

double largest(const Values& v) {
  double most = 0.0;
  for (size_t i = 0; i < v.value.size(); ++i) {
    most = std::max({most, std::abs(v.value[i]), v.size[i]});
  }
  return most;
}

std::string check_output(const Call& call, const Results& results, const Reference& ref,
                         Worst& worst) {
  double error = 0.0;
  for (int64_t i = 0; i < results.output.size(); ++i) {
    const double got = results.output.get()[output_at(call, i)];
    if (!std::isfinite(got)) {
      return text("element %lld of the output is %g", static_cast<long long>(i), got);
    }
    error = std::max(error, std::abs(got - ref.output.value[i]));
  }
  if (error == 0.0) {
    return "";
  }
  const bool precise = call.params.precise;
  const double bar = bar_of(precise ? kPreciseBar : kOutputBar, ref);
  error /= largest(ref.output);
  record(precise ? worst.precise : worst.output, error / bar, call);
  return error <= bar ? "" : text("output: error %.3g of the largest, the bar is %g", error, bar);
}

std::string check_signs(const Call& call, const Results& results, const Reference& ref) {
  const ConvBackwardParams& p = call.params;
  const Shape s(p);
  const double tolerance = kOutputBar * largest(ref.convolution);
  const bool shown = p.residual == nullptr && p.residual_scale > 0.0f &&
                     (p.activation == Activation::kNone || p.negative_slope >= 0.0f);
  for (int64_t i = 0; i < results.output.size(); ++i) {
    const int64_t at = output_at(call, i);
    const bool bit = (results.sign_mask.get()[at / 8] >> at % 8 & 1) != 0;
    const double before = ref.convolution.value[unshuffle(s, i)];
    const double output = results.output.get()[at];
    if ((bit != (before > 0.0) && std::abs(before) > tolerance) ||
        (shown && bit != (output > 0.0))) {
      return text("bit %lld of the sign mask is %d: %g before the activation, the output is %g",
                  static_cast<long long>(at), bit, before, output);
    }
  }
  return "";
}

template <typename At>
std::string check_gradient(const Call& call, const char* name, const Array<float>& got,
                           const Values& ref, double bar, Worst& worst, const At& at) {
  double error = 0.0;
  double value = 0.0;
  double size = 0.0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double g = got.get()[at(i)];
    if (!std::isfinite(g)) {
      return text("element %lld of %s is %g", static_cast<long long>(i), name, g);
    }
    error += (g - ref.value[i]) * (g - ref.value[i]);
    value += ref.value[i] * ref.value[i];
    size += ref.size[i] * ref.size[i];
  }
  if (error == 0.0) {
    return "";
  }
  error = std::sqrt(error / std::max(value, size));
  record(worst.gradient, error / bar, call);
  return error <= bar ? "" : text("%s: RMS error %.3g of the RMS, the bar is %g", name, error, bar);
}

// Which values are within so many rows and columns of one that is not finite.
std::vector<bool> neighbours(const std::vector<double>& values, int64_t height, int64_t width,
                             int64_t rows, int64_t cols) {
  std::vector<bool> near(values.size());
  for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
    if (std::isfinite(values[i])) {
      continue;
    }
    const int64_t x = i % width;
    const int64_t y = i / width % height;
    for (int64_t dy = std::max(-rows, -y); dy <= std::min(rows, height - 1 - y); ++dy) {
      for (int64_t dx = std::max(-cols, -x); dx <= std::min(cols, width - 1 - x); ++dx) {
        near[i + dy * width + dx] = true;
      }
    }
  }
  return near;
}

// `before`: the value before the activation.
bool right(double got, double wanted, double before, bool near, double tolerance) {
  if (std::isnan(before) || std::isnan(wanted)) {
    return std::isnan(got);
  }
  return (near && !std::isfinite(got)) || std::abs(got - wanted) <= tolerance;
}

double largest_finite(const Values& v) {
  double most = 0.0;
  for (size_t i = 0; i < v.value.size(); ++i) {
    if (std::isfinite(v.value[i]) && std::isfinite(v.size[i])) {
      most = std::max({most, std::abs(v.value[i]), v.size[i]});
    }
  }
  return most;
}

}  // namespace

std::string check_same_bits(const Results& alone, const Results& threads) {
  const auto check = [](const char* name, const auto& a, const auto& b) {
    const bool same = a.bytes() == 0 || std::memcmp(a.get(), b.get(), a.bytes()) == 0;
    return same ? std::string() : text("%s depends on the number of threads; ", name);
  };
  return check("output", alone.output, threads.output) +
         check("sign_mask", alone.sign_mask, threads.sign_mask) +
         check("grad_input", alone.grad_input, threads.grad_input) +
         check("grad_weight", alone.grad_weight, threads.grad_weight) +
         check("grad_routing", alone.grad_routing, threads.grad_routing) +
         check("grad_bias", alone.grad_bias, threads.grad_bias);
}

std::string check_values(const Call& call, const Results& results, const Reference& ref,
                         Worst& worst) {
  const auto same = [](int64_t i) { return i; };
  const auto grad_input = [&](int64_t i) { return grad_input_at(call, i); };
  std::string wrong = check_output(call, results, ref, worst);
  if (wrong.empty() && call.sign_mask) {
    wrong = check_signs(call, results, ref);
  }
  const auto check = [&](const char* name, const Array<float>& got, const Values& values,
                         const auto& at) {
    if (wrong.empty()) {
      wrong = check_gradient(call, name, got, values, bar_of(kGradientBar, ref), worst, at);
    }
  };
  check("grad_input", results.grad_input, ref.grad_input, grad_input);
  check("grad_weight", results.grad_weight, ref.grad_weight, same);
  check("grad_routing", results.grad_routing, ref.grad_routing, same);
  check("grad_bias", results.grad_bias, ref.grad_bias, same);
  return wrong;
}

std::string check_not_finite_output(const Call& call, const Results& results,
                                    const Reference& ref) {
  const ConvBackwardParams& p = call.params;
  const Shape s(p);
  const auto unit = [](const ConvAxis& a) { return a.stride == 1 && a.dilation == 1; };
  const bool winograd = p.y.kernel == p.x.kernel && (p.y.kernel == 3 || p.y.kernel == 5) &&
                        unit(p.y) && unit(p.x) && !p.depthwise();
  const int64_t reach = winograd ? 3 : 0;  // tiles are of 4 x 4 or 2 x 2
  const std::vector<bool> near = neighbours(ref.convolution.value, s.OH, s.OW, reach, reach);
  const double tolerance = 1e-5 * largest_finite(ref.output);
  for (int64_t i = 0; i < results.output.size(); ++i) {
    const int64_t pixel = unshuffle(s, i);
    const double before = ref.convolution.value[pixel];
    const double got = results.output.get()[output_at(call, i)];
    if (!right(got, ref.output.value[i], before, near[pixel], tolerance)) {
      return text("of input that is not finite, output %lld is %g, not %g (%g before activation)",
                  static_cast<long long>(i), got, ref.output.value[i], before);
    }
  }
  return "";
}

std::string check_not_finite_grad_input(const Call& call, const Results& results,
                                        const Reference& ref) {
  const ConvBackwardParams& p = call.params;
  const Shape s(p);
  // The pixels of the gradient's tiles lie a stride apart.
  std::vector<bool> near(ref.grad_input.value.size());
  for (int64_t i = 0; i < static_cast<int64_t>(ref.gradient.size()); ++i) {
    if (std::isfinite(ref.gradient[i])) {
      continue;
    }
    const auto range = [](const ConvAxis& a, int64_t output, int64_t& first, int64_t& last) {
      const int64_t at = output * a.stride - a.pad_before;
      first = std::max<int64_t>(at - (4 * a.stride - 1), 0);
      last = std::min(at + a.reach() + 4 * a.stride - 1, a.size);
    };
    int64_t y0, y1, x0, x1;
    range(p.y, i / s.OW % s.OH, y0, y1);
    range(p.x, i % s.OW, x0, x1);
    const int64_t plane = i / (s.OH * s.OW);
    const int64_t c0 = plane / s.O * s.I + plane % s.O / (s.O / s.G) * (s.I / s.G);
    for (int64_t c = c0; c < c0 + s.I / s.G; ++c) {
      for (int64_t y = y0; y < y1; ++y) {
        for (int64_t x = x0; x < x1; ++x) {
          near[(c * s.H + y) * s.W + x] = true;
        }
      }
    }
  }
  const double tolerance = 1e-5 * largest_finite(ref.grad_input);
  for (int64_t i = 0; i < results.grad_input.size(); ++i) {
    const double wanted = ref.grad_input.value[i];
    const double got = results.grad_input.get()[grad_input_at(call, i)];
    if (!right(got, wanted, wanted, near[i], tolerance)) {
      return text("of gradients that are not finite, grad_input %lld is %g, not %g",
                  static_cast<long long>(i), got, wanted);
    }
  }
  return "";
}
