// Any convolution: experts aggregated by us, one grouped convolution by ATen with the batch folded
// into the groups, and what follows it in one pass of our epilogue.
#pragma once

#include "ops/conv.h"

namespace dasr {

// Returns [B, O/r^2, H'*r, W'*r] in the compute type, dense in the memory format of the input.
Tensor conv_aten_forward(const Tensor& input, const Kernels& kernels,
                         const std::optional<Tensor>& residual, const ConvOptions& options,
                         uint8_t* mask);

Gradients conv_aten_backward(const Tensor& grad_output, const Tensor& input, const Kernels& kernels,
                             const Saved& saved, const ConvOptions& options, const Wanted& wanted);

}  // namespace dasr
