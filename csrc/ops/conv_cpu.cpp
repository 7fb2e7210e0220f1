// dynamic_conv2d and per_sample_conv2d for CPU tensors: entry points and choice of implementation.

#include "cpu/kernels/huge_pages.h"
#include "ops/conv_aten_cpu.h"
#include "ops/conv_kernels_cpu.h"
#include "ops/conv_operators.h"

namespace dasr {
namespace {

Output forward(const Tensor& input, const Kernels& kernels, const std::optional<Tensor>& residual_,
               const ConvOptions& options, bool save_mask, const Switches& switches) {
  const ScalarType type = compute_type(input);
  const std::vector<int64_t> size = output_size(input, kernels.weight, options);
  const int64_t numel = size[0] * size[1] * size[2] * size[3];
  std::optional<Tensor> mask;
  if (save_mask) mask = empty_like_device(input, {(numel + 7) / 8}, ScalarType::Byte);
  uint8_t* bits = save_mask ? mask->mutable_data_ptr<uint8_t>() : nullptr;
  const std::optional<Tensor> residual = cast(residual_, type);
  if (numel == 0 || conv_kernels_apply(input, kernels, options)) {
    const Tensor output = empty_like_device(input, size, type, is_channels_last(input));
    cpu::advise_huge_pages(output.mutable_data_ptr(), numel * output.element_size());
    if (numel > 0) conv_kernels_forward(input, kernels, residual, options, switches, output, bits);
    return {cast(output, input.scalar_type()), mask};
  }
  const Tensor output = conv_aten_forward(input, kernels, residual, options, bits);
  return {cast(output, input.scalar_type()), mask};
}

Gradients backward(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                   const Saved& saved, const ConvOptions& options, const Wanted& wanted,
                   const Switches& switches) {
  if (conv_kernels_apply(input, kernels, options)) {
    return conv_kernels_backward(grad_output, input, kernels, saved, options, wanted, switches);
  }
  return conv_aten_backward(grad_output, input, kernels, saved, options, wanted);
}

using Operators = ConvOperators<forward, backward>;

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dasr_ops, CPU, m) {
  m.impl("conv2d_inference", TORCH_BOX(&Operators::conv2d_inference));
  m.impl("dynamic_conv2d", TORCH_BOX(&Operators::dynamic_conv2d));
  m.impl("dynamic_conv2d_backward", TORCH_BOX(&Operators::dynamic_conv2d_backward));
  m.impl("per_sample_conv2d", TORCH_BOX(&Operators::per_sample_conv2d));
  m.impl("per_sample_conv2d_backward", TORCH_BOX(&Operators::per_sample_conv2d_backward));
}

}  // namespace dasr
