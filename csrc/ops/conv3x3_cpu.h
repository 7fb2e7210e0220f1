// Undilated 3x3 convolutions of stride 1 in one group, in kernels of our own (csrc/cpu/kernels).
#pragma once

#include "ops/conv.h"

namespace dasr {

bool conv3x3_applies(const Tensor& input, const Kernels& kernels, const ConvOptions& options);

// `residual` and `output` are float32, `output` is dense.
void conv3x3_forward(const Tensor& input, const Kernels& kernels,
                     const std::optional<Tensor>& residual, const ConvOptions& options,
                     const Switches& switches, const Tensor& output, uint8_t* mask);

Gradients conv3x3_backward(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                           const Saved& saved, const ConvOptions& options, const Wanted& wanted,
                           const Switches& switches);

}  // namespace dasr
