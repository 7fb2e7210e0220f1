// The kernels of one instruction set: from the parameters to jobs and algorithms.
#pragma once

#include "expert_grad.h"
#include "isa.h"

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
  int64_t channels, image_height, image_width;  // after pixel shuffle

  explicit OutputShape(const Conv3x3Params& p)
      : height(p.height + p.pad_top + p.pad_bottom - 2),
        width(p.width + p.pad_left + p.pad_right - 2),
        channels(p.out_channels / (p.upscale_factor * p.upscale_factor)),
        image_height(height * p.upscale_factor),
        image_width(width * p.upscale_factor) {}
};

static Source input_source(const Conv3x3Params& p) {
  Source s{};
  s.data = p.input;
  const bool nhwc = p.input_strides[1] == 1 || p.in_channels == 1;
  s.strides = strides_of(p.input_strides, dense_strides(nhwc, p.in_channels, p.height, p.width),
                         p.in_channels, p.height, p.width);
  s.channels = p.in_channels;
  s.height = p.height;
  s.width = p.width;
  s.map = {p.in_channels, 1, false};
  s.access = access_of(s.strides);
  return s;
}

static Source grad_source(const Conv3x3BackwardParams& p) {
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
  s.channels = p.out_channels;
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
  s.map = {shape.channels, r, r > 1 && s.access == Access::kRows};
  return s;
}

static KernelBank bank_of(const Conv3x3Params& p, const ChannelMap& map, bool transposed) {
  return {p.weight, p.bias, p.routing, p.experts, p.out_channels, p.in_channels, map, transposed};
}

static void run_convolution(const ConvJob& job, bool precise, const ThreadPool& pool) {
  if (job.in() <= kFewChannels) {
    convolve<FewInputsConv>(job, pool);
  } else if (job.out() <= kFewChannels) {
    convolve<FewOutputsConv>(job, pool);
  } else if (precise) {
    convolve<WinogradConv<WinogradF2>>(job, pool);
  } else {
    convolve<WinogradConv<WinogradF4>>(job, pool);
  }
}

void conv3x3_forward(const Conv3x3Params& p, const ThreadPool& pool) {
  const OutputShape shape(p);
  const int64_t r = p.upscale_factor;
  const bool nhwc = p.output_layout == Layout::kNHWC;
  Sink sink{};
  sink.data = p.output;
  sink.nhwc = nhwc;
  sink.strides = dense_strides(nhwc, shape.channels, shape.image_height, shape.image_width);
  sink.channels = p.out_channels;
  sink.height = shape.height;
  sink.width = shape.width;
  sink.map = {shape.channels, r, r > 1 && nhwc};
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
  }
  sink.sign_bits = p.sign_mask;
  if (p.sign_mask != nullptr) {
    const int64_t numel = p.batch * shape.channels * shape.image_height * shape.image_width;
    __builtin_memset(p.sign_mask, 0, static_cast<size_t>(ceil_div(numel, 8)));
  }
  const ConvJob job{p.batch,         p.pad_top, p.pad_left,
                    input_source(p), sink,      bank_of(p, sink.map, false)};
  run_convolution(job, p.precise, pool);
}

static void input_grad(const Conv3x3BackwardParams& p, const ThreadPool& pool) {
  const bool nhwc = p.grad_input_layout == Layout::kNHWC;
  const Source grad = grad_source(p);
  Sink sink{};
  sink.data = p.grad_input;
  sink.nhwc = nhwc;
  sink.strides = dense_strides(nhwc, p.in_channels, p.height, p.width);
  sink.channels = p.in_channels;
  sink.height = p.height;
  sink.width = p.width;
  sink.map = {p.in_channels, 1, false};
  sink.scale = 1.0f;
  const ConvJob job{p.batch, 2 - p.pad_top, 2 - p.pad_left, grad, sink, bank_of(p, grad.map, true)};
  run_convolution(job, p.precise, pool);
}

// Enough segments to occupy many threads at small batches, few enough that they cost little in
// time (one segment has about 128 tiles of 4x4) and memory (64 MiB).
static int64_t num_segments(const Conv3x3Params& p) {
  const OutputShape shape(p);
  const int64_t kernel_bytes = 4 * 9 * p.in_channels * p.out_channels;
  const int64_t by_size = shape.height * shape.width / (128 * 16);
  const int64_t by_batch = 32 / max_of(p.batch, 1);
  const int64_t by_memory = (int64_t{64} << 20) / max_of(p.batch * kernel_bytes, 1);
  return max_of(1, min_of(by_size, min_of(by_batch, by_memory)));
}

static void parameter_grad(const Conv3x3BackwardParams& p, const ThreadPool& pool) {
  GradJob job{};
  job.batch = p.batch;
  job.pad_y = p.pad_top;
  job.pad_x = p.pad_left;
  job.input = input_source(p);
  job.grad = grad_source(p);
  job.want_weight = p.grad_weight != nullptr || p.grad_routing != nullptr;
  job.segments = num_segments(p);
  const int64_t tasks = p.batch * job.segments;
  const Workspace space(
      1, (job.want_weight ? tasks * job.kernel_floats() : 0) + tasks * job.out() + 2 * kAlign);
  Cutter cutter{space.part(0)};
  job.bias = cutter.take(tasks * job.out());
  job.weight = cutter.take(0);
  if (job.in() <= kFewChannels) {
    weight_grad<FewInputsGrad>(job, pool);
  } else if (job.out() <= kFewChannels) {
    weight_grad<FewOutputsGrad>(job, pool);
  } else if (p.precise) {
    weight_grad<WinogradGrad<WinogradF2>>(job, pool);
  } else {
    weight_grad<WinogradGrad<WinogradF4>>(job, pool);
  }
  expert_grad(p, job, pool);
}

void conv3x3_backward(const Conv3x3BackwardParams& p, const ThreadPool& pool) {
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
