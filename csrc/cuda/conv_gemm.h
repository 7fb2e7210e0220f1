// Convolution of each sample with its own, already aggregated kernel, as a matrix product over
// channels and taps: forward with what is fused behind it, or the gradient of the input.
//
// Rows of the product are pixels, columns are output channels. Two ways to the pixels' operand:
//   gather  each step of the reduction (one tap, 64 bytes of channels) fetches its own tile of
//           pixels: any stride, dilation, kernel and image; or, with few channels, the reduction
//           runs over channels and taps together (flat)
//   halo    stride 1: a patch of pixels with its halo is fetched once for all taps
// Operands are fp16, bf16 or tf32 on the tensor cores (mma.sync) with fp32 sums; fp32 and fp64 that
// may not be rounded are multiplied by fused multiply-adds in their own type. Sums run in an order
// that depends on nothing but the shape, and on which of the two ways is taken.
#pragma once

#include "conv.h"

namespace dasr {

struct ConvGemmParams {
  ConvShape shape;          // of the forward convolution, also for the input's gradient
  bool transposed = false;  // the gradient of the input
  bool allow_tf32 = false;  // fp32 operands may be rounded to tf32

  // The input [B, I, H, W] or, transposed, the gradient of the sums [B, O, H', W']. Its type is
  // that of the kernels and of the result.
  ConvTensor source;
  // Of the samples computed alone. As pack_experts writes them or, if conv_gemm_is_flat, dense
  // [n, O, I/g, kh, kw].
  PackedKernels kernels;
  // Forward only.
  ConvEpilogue epilogue;

  // [B, O / r^2, H' * r, W' * r] or, transposed, [B, I, H, W]: every element is written.
  void* out = nullptr;
  int64_t out_stride[4] = {};

  // shape.batch samples are computed, from this one of the tensors on.
  int64_t first_sample = 0;
  int multiprocessors = 132;  // to choose tiles by
  // The kernels come from the pack_experts just before on the stream, and nothing else that is read
  // does: start while it runs. sm_90 and up.
  bool chained = false;
};

// Whether the kernels are wanted dense. Few channels per group would be padded to 64 bytes.
bool conv_gemm_is_flat(const ConvShape& shape, bool transposed, DType type);

cudaError_t conv_gemm(const ConvGemmParams& params, cudaStream_t stream);

}  // namespace dasr
