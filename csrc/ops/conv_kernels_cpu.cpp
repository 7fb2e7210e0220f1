#include "ops/conv_kernels_cpu.h"

#include <algorithm>
#include <cstdlib>

#include "cpu/kernels/conv.h"
#include "cpu/kernels/huge_pages.h"
#include "cpu/kernels/isa.h"
#include "ops/status.h"

namespace dasr {
namespace {

// About 10 us of work: a thread is done with less before another would have begun.
constexpr int64_t kLittleWork = 1 << 18;
constexpr int64_t kPackingWork = 8;  // of an element of a kernel, beside its mixing

int64_t work_of(const cpu::ConvParams& p) {
  const int64_t kernel = p.out_channels * (p.in_channels / p.groups) * p.y.kernel * p.x.kernel;
  return p.batch * kernel * (p.experts + kPackingWork + p.y.output() * p.x.output());
}

cpu::ThreadPool thread_pool(const cpu::ConvParams& p) {
  const char* error = cpu::isa_choice().error;
  STD_TORCH_CHECK(error == nullptr, "dasr_ops: ", error, ", got ", std::getenv("DASR_OPS_CPU_ISA"));
  cpu::ThreadPool pool;
  if (work_of(p) < kLittleWork) return pool;
  pool.num_threads = static_cast<int>(torch::stable::get_num_threads());
  pool.parallel_for = [](int64_t begin, int64_t end, int64_t grain,
                         void (*fn)(int64_t, int64_t, void*), void* ctx) {
    check_status(torch_parallel_for(begin, end, grain, fn, ctx), "torch_parallel_for");
  };
  return pool;
}

cpu::Layout layout(bool channels_last) {
  return channels_last ? cpu::Layout::kNHWC : cpu::Layout::kNCHW;
}

void copy_strides(const Tensor& tensor, int64_t* strides) {
  const auto from = tensor.strides();
  std::copy(from.begin(), from.end(), strides);
}

const float* data(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

// Kernels that reach further would need patches larger than a cache.
constexpr int64_t kMaxReach = 32;

int64_t reach(const Tensor& weight, const ConvOptions& options, int d) {
  return options.dilation[d] * (weight.size(3 + d) - 1) + 1;
}

// Whether kernels of our own were measured to be faster than ATen's: not where groups are narrower
// than a vector and there is much to do, nor for much of 1x1 convolutions in NCHW.
bool is_faster(const Tensor& input, const Kernels& kernels, const ConvOptions& options) {
  const int64_t out_channels = kernels.weight.size(1);
  const bool depthwise = options.groups == input.size(1) && options.groups == out_channels;
  if (options.groups == 1 || depthwise) return true;
  const bool narrow = kernels.weight.size(2) < 16 || out_channels / options.groups < 16;
  const int64_t pixels = input.size(0) * conv_extent(input, kernels.weight, options, 0) *
                         conv_extent(input, kernels.weight, options, 1);
  if (kernels.weight.size(3) * kernels.weight.size(4) == 1) {
    return pixels <= 2048 || (!narrow && is_channels_last(input));
  }
  return pixels <= 256 || !narrow;
}

// The tensors in float32, kept alive as long as a kernel's parameters point into them.
struct Operands {
  Tensor input, weight;
  std::optional<Tensor> routing, bias;
  // Of the input as it came: a cast makes other strides of tensors that overlap, such as expanded
  // ones, and outputs and gradients are allocated by the original.
  cpu::Layout output_layout;

  Operands(const Tensor& input_, const Kernels& kernels)
      : input(cast(input_, ScalarType::Float)),
        weight(contiguous(kernels.weight, ScalarType::Float)),
        routing(contiguous(kernels.routing, ScalarType::Float)),
        bias(contiguous(kernels.bias, ScalarType::Float)),
        output_layout(layout(is_channels_last(input_))) {}

  void fill(const ConvOptions& options, const Switches& switches, cpu::ConvParams& params) const {
    params.batch = input.size(0);
    params.in_channels = input.size(1);
    params.out_channels = weight.size(1);
    params.y = axis(options, 0);
    params.x = axis(options, 1);
    params.groups = options.groups;
    params.experts = routing ? weight.size(0) : 0;
    params.upscale_factor = options.upscale_factor;
    if (options.negative_slope) {
      params.activation = cpu::Activation::kLeakyRelu;
      params.negative_slope = static_cast<float>(*options.negative_slope);
    }
    params.precise = !switches.fast_fp32;
    params.residual_scale = static_cast<float>(options.residual_scale);
    params.output_layout = output_layout;
    params.input = input.const_data_ptr<float>();
    copy_strides(input, params.input_strides);
    params.weight = weight.const_data_ptr<float>();
    params.routing = data(routing);
    params.bias = data(bias);
  }

  cpu::ConvAxis axis(const ConvOptions& options, int d) const {
    return {input.size(2 + d),   weight.size(3 + d),     options.stride[d],
            options.dilation[d], options.padding[2 * d], options.padding[2 * d + 1]};
  }
};

}  // namespace

bool conv_kernels_apply(const Tensor& input, const Kernels& kernels, const ConvOptions& options) {
  const auto is_double = [](const std::optional<Tensor>& tensor) {
    return tensor && tensor->scalar_type() == ScalarType::Double;
  };
  if (is_double(input) || is_double(kernels.weight) || is_double(kernels.routing) ||
      is_double(kernels.bias)) {
    return false;
  }
  const int64_t shuffled = options.upscale_factor * options.upscale_factor;
  return kernels.weight.size(1) % (options.groups * shuffled) == 0 &&
         reach(kernels.weight, options, 0) <= kMaxReach &&
         reach(kernels.weight, options, 1) <= kMaxReach && is_faster(input, kernels, options);
}

void conv_kernels_forward(const Tensor& input, const Kernels& kernels,
                          const std::optional<Tensor>& residual, const ConvOptions& options,
                          const Switches& switches, const Tensor& output, uint8_t* mask) {
  const Operands operands(input, kernels);
  cpu::ConvParams params;
  operands.fill(options, switches, params);
  params.residual = data(residual);
  if (residual) copy_strides(*residual, params.residual_strides);
  params.output = output.mutable_data_ptr<float>();
  params.sign_mask = mask;
  cpu::conv_forward(params, thread_pool(params));
}

Gradients conv_kernels_backward(const Tensor& grad_output, const Tensor& input,
                                const Kernels& kernels, const Saved& saved,
                                const ConvOptions& options, const Wanted& wanted,
                                const Switches& switches) {
  const Operands operands(input, kernels);
  const Tensor grad = cast(grad_output, ScalarType::Float);
  const std::optional<Tensor> saved_output = cast(saved.output, ScalarType::Float);
  cpu::ConvBackwardParams params;
  operands.fill(options, switches, params);
  params.grad_output = grad.const_data_ptr<float>();
  copy_strides(grad, params.grad_output_strides);
  params.saved_output = data(saved_output);
  params.saved_sign_mask = saved.mask ? saved.mask->const_data_ptr<uint8_t>() : nullptr;
  params.grad_input_layout = params.output_layout;

  Gradients grads;
  const auto allocate = [&](bool want, std::optional<Tensor>& grad, const Tensor& like,
                            bool channels_last = false) -> float* {
    if (!want) return nullptr;
    grad = empty_like_device(like, size_vector(like), ScalarType::Float, channels_last);
    cpu::advise_huge_pages(grad->mutable_data_ptr(), 4 * grad->numel());
    return grad->mutable_data_ptr<float>();
  };
  params.grad_input = allocate(wanted.input, grads.input, input, is_channels_last(input));
  params.grad_weight = allocate(wanted.weight, grads.weight, kernels.weight);
  if (kernels.routing) {
    params.grad_routing = allocate(wanted.routing, grads.routing, *kernels.routing);
  }
  if (kernels.bias) params.grad_bias = allocate(wanted.bias, grads.bias, *kernels.bias);
  cpu::conv_backward(params, thread_pool(params));
  return grads;
}

}  // namespace dasr
