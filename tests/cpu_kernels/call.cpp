#include "call.h"

#include <algorithm>
#include <sstream>

namespace {

constexpr int64_t kSizes[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 65, 130};

int64_t draw_channels(Random& random) { return random.chance(0.03) ? 0 : random.pick(kSizes); }

void draw_axis(Random& random, ConvAxis& axis, int64_t kernel, bool plain) {
  axis.kernel = kernel;
  axis.stride = plain || random.chance(0.5) ? 1 : random.between(1, 3);
  axis.dilation = plain || random.chance(0.5) ? 1 : random.between(1, 3);
  if (random.chance(0.4)) {
    axis.pad_before = axis.pad_after = (axis.reach() - 1) / 2;
  } else if (random.chance(0.6)) {
    axis.pad_before = random.between(0, 3);
    axis.pad_after = random.between(0, 3);
  }
}

// A size that gives `outputs`, or more where the padding alone does.
void fit_axis(Random& random, ConvAxis& axis, int64_t outputs) {
  axis.size = (outputs - 1) * axis.stride + axis.reach() - axis.pad_before - axis.pad_after +
              random.below(axis.stride);
  axis.size = std::max<int64_t>(axis.size, 0);
}

// Strides of a tensor; returns the elements that it spans.
int64_t draw_strides(Random& random, const int64_t (&shape)[4], int64_t (&strides)[4]) {
  int order[4] = {0, 1, 2, 3};  // from the outermost
  double gaps = 0.0;
  const double kind = random.uniform();
  if (kind < 0.35) {
  } else if (kind < 0.7) {
    order[1] = 2, order[2] = 3, order[3] = 1;
  } else {
    gaps = 0.4;
    if (kind > 0.8) {
      for (int i = 3; i > 0; --i) {
        std::swap(order[i], order[random.below(i + 1)]);
      }
    } else if (random.chance(0.5)) {
      order[1] = 2, order[2] = 3, order[3] = 1;
    }
  }
  int64_t step = 1;
  for (int i = 3; i >= 0; --i) {
    const int d = order[i];
    if (random.chance(gaps)) {
      step += random.between(1, 3);
    }
    strides[d] = step;
    step *= std::max<int64_t>(shape[d], 1);
  }
  if (random.chance(0.05)) {
    strides[random.below(4)] = 0;  // as expand() makes them
  }
  int64_t span = 1;
  for (int d = 0; d < 4; ++d) {
    if (shape[d] == 0) {
      span = 0;
    }
    if (shape[d] == 1 && random.chance(0.3)) {
      strides[d] = random.pick({0, 1, 7, 100003});  // means nothing
    }
  }
  for (int d = 0; d < 4 && span > 0; ++d) {
    span += (shape[d] - 1) * strides[d];
  }
  return span;
}

// Gaps stay NaN.
Array<float> draw_tensor(Random& random, const Sabotage& sabotage, const char* name,
                         const int64_t (&shape)[4], int64_t (&strides)[4]) {
  const int64_t span = draw_strides(random, shape, strides);
  Array<float> array(sabotage, name, span);
  for (int64_t b = 0; b < shape[0]; ++b) {
    for (int64_t c = 0; c < shape[1]; ++c) {
      for (int64_t y = 0; y < shape[2]; ++y) {
        for (int64_t x = 0; x < shape[3]; ++x) {
          const int64_t at = offset(strides, b, c, y, x);
          const float value = random.normal();
          if (at < array.size()) {
            array.get()[at] = value;
          }
        }
      }
    }
  }
  return array;
}

Array<float> draw_dense(Random& random, const Sabotage& sabotage, const char* name, int64_t size,
                        float scale, double zeros = 0.0) {
  Array<float> array(sabotage, name, size);
  for (int64_t i = 0; i < array.size(); ++i) {
    array.get()[i] = random.chance(zeros) ? 0.0f : scale * random.normal();
  }
  return array;
}

void draw_sizes(Random& random, ConvBackwardParams& p) {
  const bool large = random.chance(0.1);  // kernels that convolve() takes panel by panel
  const double kind = random.uniform();
  const int64_t square = kind < 0.4 ? 3 : kind < 0.55 ? 5 : kind < 0.65 ? 1 : 0;
  const bool plain = square != 0 && random.chance(0.6);
  draw_axis(random, p.y, square != 0 ? square : random.between(1, 7), plain);
  draw_axis(random, p.x, square != 0 ? square : random.between(1, 7), plain);
  const bool depthwise = !large && random.chance(0.15);
  p.batch = large ? random.between(1, 4) : random.chance(0.04) ? 0 : random.between(1, 5);
  p.in_channels = large ? random.pick({65, 130}) : draw_channels(random);
  p.out_channels = large ? random.pick({65, 130}) : draw_channels(random);
  if (depthwise) {
    p.out_channels = p.in_channels;
    p.groups = std::max<int64_t>(p.in_channels, 1);
  } else if (!large && random.chance(0.25)) {
    p.upscale_factor = random.between(2, 3);
    p.out_channels = std::min<int64_t>(p.out_channels, 33) * p.upscale_factor * p.upscale_factor;
  }
  if (!depthwise && random.chance(0.2)) {
    p.groups = random.between(2, 5);
    p.in_channels *= p.groups;
    p.out_channels *= p.groups;
  }
  p.experts = random.chance(0.2) ? 0 : random.between(1, large ? 2 : 5);

  const int64_t row = p.in_channels / p.groups * p.y.kernel * p.x.kernel;
  const int64_t work = std::max<int64_t>(p.batch * p.out_channels * row, 1);
  const int64_t pixels = std::min<int64_t>((large ? 4000000 : 1200000) / work, 9000);
  // The logarithm is uniform, so that one block and many, a narrow and a wide one are all seen.
  const auto draw_length = [&](int64_t most) {
    int64_t length = 1 + random.below(8);
    while (length < most && random.chance(0.6)) {
      length += 1 + random.below(length);
    }
    return std::max<int64_t>(std::min(length, most), 1);
  };
  const int64_t width = draw_length(std::min<int64_t>(pixels, 200));
  const int64_t height = draw_length(std::min<int64_t>(pixels / width, 200));
  const bool tall = random.chance(0.5);
  fit_axis(random, p.y, tall ? width : height);
  fit_axis(random, p.x, tall ? height : width);
}

void draw_epilogue(Random& random, ConvBackwardParams& p) {
  const double kind = random.uniform();
  p.activation = kind < 0.3 ? Activation::kNone : Activation::kLeakyRelu;
  p.negative_slope = kind < 0.6 ? 0.0f : kind < 0.85 ? 0.2f : -0.3f;
  p.residual_scale = static_cast<float>(random.chance(0.5) ? 1.0 : random.chance(0.5) ? 0.1 : -0.7);
  p.precise = random.chance(0.3);
  p.output_layout = random.chance(0.5) ? Layout::kNHWC : Layout::kNCHW;
  p.grad_input_layout = random.chance(0.5) ? Layout::kNHWC : Layout::kNCHW;
}

template <size_t n>
std::string list(const int64_t (&values)[n]) {
  std::ostringstream s;
  for (size_t i = 0; i < n; ++i) {
    s << (i == 0 ? "[" : ", ") << values[i];
  }
  return s.str() + "]";
}

std::string text(const ConvAxis& a) {
  std::ostringstream s;
  s << "size " << a.size << " kernel " << a.kernel << " stride " << a.stride << " dilation "
    << a.dilation << " padding " << a.pad_before << "+" << a.pad_after << " output " << a.output();
  return s.str();
}

std::string describe(const Call& call) {
  const ConvBackwardParams& p = call.params;
  const auto name = [](Layout l) { return l == Layout::kNHWC ? "NHWC" : "NCHW"; };
  std::ostringstream s;
  s << "seed " << call.seed << ": batch " << p.batch << " channels " << p.in_channels << "->"
    << p.out_channels << " groups " << p.groups << " experts " << p.experts << " upscale "
    << p.upscale_factor << (p.precise ? " precise" : "") << "\n  y: " << text(p.y)
    << "\n  x: " << text(p.x) << "\n  activation "
    << (p.activation == Activation::kNone ? "none" : "slope ");
  if (p.activation != Activation::kNone) {
    s << p.negative_slope;
  }
  s << " scale " << p.residual_scale << (p.bias != nullptr ? " bias" : "") << " output "
    << name(p.output_layout) << " input " << list(p.input_strides);
  if (p.residual != nullptr) {
    s << " residual " << list(p.residual_strides);
  }
  s << (call.sign_mask ? " sign_mask" : "");
  if (call.backward()) {
    s << "\n  grad_output " << list(p.grad_output_strides)
      << (p.saved_output != nullptr ? " saved_output" : "")
      << (p.saved_sign_mask != nullptr ? " saved_sign_mask" : "") << "; wanted:";
    if (call.grad_input) {
      s << " grad_input " << name(p.grad_input_layout);
    }
    s << (call.grad_weight ? " grad_weight" : "") << (call.grad_routing ? " grad_routing" : "")
      << (call.grad_bias ? " grad_bias" : "");
  }
  return s.str();
}

}  // namespace

Call::Call(uint64_t seed_, const Sabotage& sabotage) : seed(seed_) {
  Random random(seed);
  ConvBackwardParams& p = params;
  draw_sizes(random, p);
  draw_epilogue(random, p);
  const Shape s(p);

  input = draw_tensor(random, sabotage, "input", {s.B, s.I, s.H, s.W}, p.input_strides);
  weight = draw_dense(random, sabotage, "weight", s.kernels() * s.kernel, 0.2f);
  routing = draw_dense(random, sabotage, "routing", s.B * s.K, 1.0f, 0.25);
  bias = draw_dense(random, sabotage, "bias", s.kernels() * s.O, 0.5f);
  residual = draw_tensor(random, sabotage, "residual", {s.B, s.C, s.IH, s.IW}, p.residual_strides);
  grad_output =
      draw_tensor(random, sabotage, "grad_output", {s.B, s.C, s.IH, s.IW}, p.grad_output_strides);
  saved_output = draw_dense(random, sabotage, "saved_output", s.output_size(), 1.0f, 0.2);
  saved_sign_mask = Array<uint8_t>(sabotage, "saved_sign_mask", (s.output_size() + 7) / 8);
  for (int64_t i = 0; i < saved_sign_mask.size(); ++i) {
    saved_sign_mask.get()[i] = static_cast<uint8_t>(random.next());
  }

  p.input = input.get();
  p.weight = weight.get();
  p.routing = s.K > 0 ? routing.get() : nullptr;
  p.bias = random.chance(0.6) ? bias.get() : nullptr;
  p.residual = random.chance(0.4) ? residual.get() : nullptr;
  sign_mask = random.chance(0.5);
  p.grad_output = grad_output.get();
  if (p.activation != Activation::kNone) {
    const bool shows_sign = p.residual_scale > 0.0f && p.negative_slope >= 0.0f;
    if (shows_sign && random.chance(0.6)) {
      p.saved_output = saved_output.get();
    } else {
      p.saved_sign_mask = saved_sign_mask.get();
    }
  }
  grad_input = random.chance(0.6);
  grad_weight = random.chance(0.6);
  grad_routing = s.K > 0 && random.chance(0.5);
  grad_bias = p.bias != nullptr && random.chance(0.6);
  description = describe(*this);
}
