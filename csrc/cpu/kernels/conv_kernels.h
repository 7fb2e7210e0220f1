// The kernels of one instruction set: from the parameters to jobs and algorithms.
#pragma once

#include "convolve_depthwise.h"
#include "convolve_few_outputs.h"
#include "convolve_gemm.h"
#include "convolve_winograd.h"
#include "expert_grad.h"
#include "isa.h"
#include "weight_grad_depthwise.h"
#include "weight_grad_few_outputs.h"
#include "weight_grad_gemm.h"
#include "weight_grad_winograd.h"

namespace dasr {
namespace cpu {
namespace DASR_OPS_ISA {

// The stride of a dimension of size 1 means nothing; take that of the layout.
DASR_OPS_INLINE Strides strides_of(const int64_t (&s)[4], const Strides& dense, int64_t c,
                                   int64_t h, int64_t w) {
  return {s[0], c > 1 ? s[1] : dense.c, h > 1 ? s[2] : dense.y, w > 1 ? s[3] : dense.x};
}

DASR_OPS_INLINE Access access_of(const Strides& s) {
  return s.c == 1 ? Access::kRows : s.x == 1 ? Access::kPlanes : Access::kAny;
}

struct OutputShape {
  int64_t height, width;                        // of the convolution
  int64_t channels, image_height, image_width;  // after pixel shuffle, of all groups

  explicit OutputShape(const ConvParams& p)
      : height(p.y.output()),
        width(p.x.output()),
        channels(p.out_channels / (p.upscale_factor * p.upscale_factor)),
        image_height(height * p.upscale_factor),
        image_width(width * p.upscale_factor) {}
};

// Depthwise kernels take all channels at once.
DASR_OPS_INLINE int64_t groups_of(const ConvParams& p) { return p.depthwise() ? 1 : p.groups; }

static Source input_source(const ConvParams& p) {
  const int64_t groups = groups_of(p);
  Source s{};
  s.data = p.input;
  const bool nhwc = p.input_strides[1] == 1 || p.in_channels == 1;
  s.strides = strides_of(p.input_strides, dense_strides(nhwc, p.in_channels, p.y.size, p.x.size),
                         p.in_channels, p.y.size, p.x.size);
  s.channels = p.in_channels / groups;
  s.strides = s.strides.in_groups(groups, s.channels);
  s.height = p.y.size;
  s.width = p.x.size;
  s.map = {s.channels, 1, false};
  s.access = access_of(s.strides);
  return s;
}

static Source grad_source(const ConvBackwardParams& p) {
  const OutputShape shape(p);
  const int64_t r = p.upscale_factor;
  Source s{};
  s.data = p.grad_output;
  s.gate_strides = dense_strides(p.output_layout == Layout::kNHWC, shape.channels,
                                 shape.image_height, shape.image_width);
  s.strides = strides_of(p.grad_output_strides, s.gate_strides, shape.channels, shape.image_height,
                         shape.image_width);
  if (p.batch <= 1) {
    s.strides.b = s.gate_strides.b;
  }
  const int64_t groups = groups_of(p);
  s.strides = s.strides.in_groups(groups, shape.channels / groups);
  s.gate_strides = s.gate_strides.in_groups(groups, shape.channels / groups);
  s.channels = p.out_channels / groups;
  s.height = shape.height;
  s.width = shape.width;
  s.scale = p.residual_scale;
  if (p.activation == Activation::kLeakyRelu) {
    s.slope = p.negative_slope;
    s.gate = p.saved_output;
    s.gate_bits = p.saved_output != nullptr ? nullptr : p.saved_sign_mask;
  }
  const bool gate = s.gate != nullptr || s.gate_bits != nullptr;
  s.gated = gate || s.scale != 1.0f;
  s.access = access_of(s.strides);
  if ((gate && !s.strides.equal(s.gate_strides)) ||
      (s.access == Access::kPlanes && r > kMaxUpscale)) {
    s.access = Access::kAny;
  }
  s.map = {shape.channels / groups, r, r > 1 && s.access == Access::kRows};
  return s;
}

static KernelBank bank_of(const ConvParams& p, const ChannelMap& map, bool transposed) {
  return {p.weight,
          p.bias,
          p.routing,
          groups_of(p),
          p.experts,
          p.out_channels / groups_of(p),
          p.in_channels / p.groups,
          p.y.kernel * p.x.kernel,
          map,
          transposed};
}

DASR_OPS_INLINE JobAxis forward_axis(const ConvAxis& a) {
  return {a.kernel, a.kernel, a.stride, a.dilation, a.pad_before};
}

DASR_OPS_INLINE Geometry forward_geometry(const ConvParams& p) {
  return {forward_axis(p.y), forward_axis(p.x)};
}

constexpr int64_t kFewTaps = 64;

// Pixel i * stride + phase of the gradient of the input is a sum over the taps t for which
// i * stride + phase + pad - t * dilation is a multiple of the stride: every u-th tap, the last
// first, in steps of dilation / gcd(stride, dilation) pixels of the gradient of the output.
DASR_OPS_INLINE JobAxis backward_axis(const ConvAxis& a, int64_t phase) {
  int64_t gcd = a.stride;
  for (int64_t rest = a.dilation; rest != 0;) {
    const int64_t next = gcd % rest;
    gcd = rest;
    rest = next;
  }
  const int64_t u = a.stride / gcd;
  for (int64_t t = a.kernel - 1; t >= max_of(a.kernel - u, 0); --t) {
    const int64_t at = phase + a.pad_before - t * a.dilation;
    if (at % a.stride == 0) {
      return {a.kernel, t / u + 1, 1, a.dilation / gcd, -(at / a.stride), t, -u};
    }
  }
  return {a.kernel, 0, 1, 1, 0};
}

// Whether pixels depend on the same pixel of an image whose pixels all follow each other: it is as
// good as one long row.
static bool is_one_row(const Geometry& g, const Source& src, int64_t height, int64_t width) {
  return g.taps() == 1 && g.y.stride == 1 && g.x.stride == 1 && g.y.pad == 0 && g.x.pad == 0 &&
         src.height == height && src.width == width && src.map.r == 1 &&
         src.strides.y == width * src.strides.x;
}

DASR_OPS_INLINE void make_one_row(Source& src) {
  src.width *= src.height;
  src.height = 1;
}

// Whether fewer multiplications pay for the transforms of a kernel, per pair of channels: a direct
// 3x3 convolution multiplies 9 times a pixel, F(4x4,3x3) 36 times a tile. Transforming and reading
// 36 values was measured to cost as much as 150 multiplications more than 9 do, or 600 if the
// kernels of a panel overflow a cache of 4 MiB.
static bool winograd_pays(int64_t height, int64_t width, int64_t in_channels) {
  const int64_t tiles = ceil_div(height, 4) * ceil_div(width, 4);
  const int64_t panel_bytes = 4 * 36 * in_channels * kMaxPanelVecs * kLanes;
  return 9 * height * width > 36 * tiles + (panel_bytes > (4 << 20) ? 600 : 150);
}

static void run_convolution(ConvJob job, bool depthwise, bool precise, const ThreadPool& pool) {
  Sink& dst = job.dst;
  job.y = job.y.cropped(job.src.height, dst.height);
  job.x = job.x.cropped(job.src.width, dst.width);
  // Where few taps are left, all of them need not be laid out.
  int64_t wanted[kFewTaps];
  const int64_t worth = job.bank.transposed ? 8 : 4;
  if (job.taps() <= kFewTaps && worth * job.taps() <= job.bank.taps) {
    for (int64_t t = 0; t < job.taps(); ++t) {
      wanted[t] = job.tap(t / job.x.taps, t % job.x.taps);
    }
    job.bank.wanted = wanted;
    job.bank.num_wanted = job.taps();
  }
  const auto in_rows = [&](const Strides& s) { return s.y == dst.width * s.x; };
  if (is_one_row(job, job.src, dst.height, dst.width) && dst.map.r == 1 && in_rows(dst.strides) &&
      (dst.residual == nullptr || in_rows(dst.residual_strides))) {
    make_one_row(job.src);
    dst.width *= dst.height;
    dst.height = 1;
  }
  const bool unit_stride = job.y.stride == 1 && job.x.stride == 1;
  if (depthwise) {
    convolve<DepthwiseConv>(job, pool);
  } else if (job.in() <= kFewChannels) {
    convolve<GemmConv>(job, pool);
  } else if (job.out() <= kFewChannels && job.dense(3) && !precise) {
    convolve<FewOutputsWinograd<WinogradF4>>(job, pool);
  } else if (job.out() <= kFewChannels && unit_stride) {
    convolve<FewOutputsConv>(job, pool);
  } else if (job.dense(3) && winograd_pays(dst.height, dst.width, job.in())) {
    if (precise) {
      convolve<WinogradConv<WinogradF2>>(job, pool);
    } else {
      convolve<WinogradConv<WinogradF4>>(job, pool);
    }
  } else if (job.dense(5) && !precise) {
    convolve<WinogradConv<WinogradF2x5>>(job, pool);
  } else {
    convolve<GemmConv>(job, pool);
  }
}

void conv_forward(const ConvParams& p, const ThreadPool& pool) {
  const OutputShape shape(p);
  const int64_t r = p.upscale_factor;
  // The channels of a single pixel follow each other in any layout.
  const bool one_pixel = shape.image_height == 1 && shape.image_width == 1;
  const bool nhwc = p.output_layout == Layout::kNHWC || one_pixel;
  Sink sink{};
  sink.data = p.output;
  sink.nhwc = nhwc;
  sink.strides = dense_strides(nhwc, shape.channels, shape.image_height, shape.image_width);
  const int64_t groups = groups_of(p);
  const int64_t group_channels = shape.channels / groups;
  sink.channels = p.out_channels / groups;
  sink.height = shape.height;
  sink.width = shape.width;
  sink.map = {group_channels, r, r > 1 && nhwc};
  sink.activate = p.activation == Activation::kLeakyRelu;
  sink.slope = p.negative_slope;
  sink.scale = p.residual_scale;
  sink.residual = p.residual;
  if (p.residual != nullptr) {
    sink.residual_strides = strides_of(p.residual_strides, sink.strides, shape.channels,
                                       shape.image_height, shape.image_width);
    if (p.batch <= 1) {
      sink.residual_strides.b = sink.strides.b;
    }
    sink.residual_strides = sink.residual_strides.in_groups(groups, group_channels);
  }
  sink.strides = sink.strides.in_groups(groups, group_channels);
  sink.sign_bits = p.sign_mask;
  if (p.sign_mask != nullptr) {
    const int64_t numel = p.batch * shape.channels * shape.image_height * shape.image_width;
    __builtin_memset(p.sign_mask, 0, static_cast<size_t>(ceil_div(numel, 8)));
  }
  run_convolution(
      {forward_geometry(p), p.batch * groups, input_source(p), sink, bank_of(p, sink.map, false)},
      p.depthwise(), p.precise, pool);
}

static void input_grad(const ConvBackwardParams& p, const ThreadPool& pool) {
  const bool nhwc = p.grad_input_layout == Layout::kNHWC || (p.y.size == 1 && p.x.size == 1);
  const Source grad = grad_source(p);
  Sink sink{};
  sink.data = p.grad_input;
  sink.nhwc = nhwc;
  const int64_t groups = groups_of(p);
  sink.channels = p.in_channels / groups;
  sink.strides =
      dense_strides(nhwc, p.in_channels, p.y.size, p.x.size).in_groups(groups, sink.channels);
  sink.height = p.y.size;
  sink.width = p.x.size;
  sink.map = {sink.channels, 1, false};
  sink.scale = 1.0f;
  KernelBank bank = bank_of(p, grad.map, !p.depthwise());
  bank.bias = nullptr;
  for (int64_t y = 0; y < min_of(p.y.stride, p.y.size); ++y) {
    for (int64_t x = 0; x < min_of(p.x.stride, p.x.size); ++x) {
      Sink phase = sink;
      phase.data += y * sink.strides.y + x * sink.strides.x;
      phase.strides.y *= p.y.stride;
      phase.strides.x *= p.x.stride;
      phase.height = ceil_div(p.y.size - y, p.y.stride);
      phase.width = ceil_div(p.x.size - x, p.x.stride);
      run_convolution(
          {{backward_axis(p.y, y), backward_axis(p.x, x)}, p.batch * groups, grad, phase, bank},
          p.depthwise(), p.precise, pool);
    }
  }
}

// Enough segments to occupy many threads at small batches, few enough that they cost little in
// time (one segment has about 128 tiles of 4x4) and memory (64 MiB).
static int64_t num_segments(const GradJob& job, int64_t height, int64_t width) {
  const int64_t by_size = height * width / (128 * 16);
  const int64_t by_batch = 32 / max_of(job.batch, 1);
  const int64_t by_memory = (int64_t{64} << 20) / max_of(job.batch * 4 * job.kernel_floats(), 1);
  return max_of(1, min_of(by_size, min_of(by_batch, by_memory)));
}

static void parameter_grad(const ConvBackwardParams& p, const ThreadPool& pool) {
  GradJob job{};
  static_cast<Geometry&>(job) = forward_geometry(p);
  job.groups = groups_of(p);
  job.batch = p.batch * job.groups;
  job.input = input_source(p);
  job.grad = grad_source(p);
  job.depthwise = p.depthwise();
  job.segments = num_segments(job, job.grad.height, job.grad.width);
  const auto in_one_row = [&](const Source& s) {
    return is_one_row(job, s, job.grad.height, job.grad.width);
  };
  if (in_one_row(job.input) && in_one_row(job.grad)) {
    make_one_row(job.input);
    make_one_row(job.grad);
  }
  job.want_weight = p.grad_weight != nullptr || p.grad_routing != nullptr;
  const int64_t tasks = job.batch * job.segments;
  const Workspace space(
      1, (job.want_weight ? tasks * job.kernel_floats() : 0) + tasks * job.out() + 2 * kAlign);
  Cutter cutter{space.part(0)};
  job.bias = cutter.take(tasks * job.out());
  job.weight = cutter.take(0);
  if (p.depthwise()) {
    weight_grad<DepthwiseGrad>(job, pool);
  } else if (job.in() <= kFewChannels) {
    weight_grad<GemmGrad>(job, pool);
  } else if (job.out() <= kFewChannels) {
    weight_grad<FewOutputsGrad>(job, pool);
  } else if (job.dense(3) && winograd_pays(job.grad.height, job.grad.width, job.in())) {
    if (p.precise) {
      weight_grad<WinogradGrad<WinogradF2>>(job, pool);
    } else {
      weight_grad<WinogradGrad<WinogradF4>>(job, pool);
    }
  } else if (job.dense(5) && !p.precise) {
    weight_grad<WinogradGrad<WinogradF2x5>>(job, pool);
  } else {
    weight_grad<GemmGrad>(job, pool);
  }
  expert_grad(p, job, pool);
}

void conv_backward(const ConvBackwardParams& p, const ThreadPool& pool) {
  if (p.grad_input != nullptr) {
    input_grad(p, pool);
  }
  if (p.grad_weight != nullptr || p.grad_routing != nullptr || p.grad_bias != nullptr) {
    parameter_grad(p, pool);
  }
}

}  // namespace DASR_OPS_ISA
}  // namespace cpu
}  // namespace dasr
