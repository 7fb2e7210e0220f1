// Convolutions in kernels of our own (csrc/cpu/kernels), where these are faster than ATen's.
#pragma once

#include "ops/conv.h"

namespace dasr {

bool conv_kernels_apply(const Tensor& input, const Kernels& kernels, const ConvOptions& options);

// `residual` and `output` are float32, `output` is dense.
void conv_kernels_forward(const Tensor& input, const Kernels& kernels,
                          const std::optional<Tensor>& residual, const ConvOptions& options,
                          const Switches& switches, const Tensor& output, uint8_t* mask);

Gradients conv_kernels_backward(const Tensor& grad_output, const Tensor& input,
                                const Kernels& kernels, const Saved& saved,
                                const ConvOptions& options, const Wanted& wanted,
                                const Switches& switches);

}  // namespace dasr
