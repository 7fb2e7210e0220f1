// Aggregation of expert kernels straight into the PackedKernels (conv.h) that convolutions read,
// for many layers that share one routing vector in one launch.
//
// The calls are asynchronous on `stream`, allocate nothing and never synchronise, so they can be
// captured in a CUDA graph. The caller makes the tensors' device current and checks shapes; a
// launcher returns the error of its own launches. Inputs and outputs must not overlap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "runtime_api.h"

namespace dasr {

// One layer: weight [K, O, I/g, taps] becomes, for sample b and tap t, a matrix of rows n whose
// element k lies at out + b * batch_stride + t * tap_stride + n * row_stride + k. For a forward
// convolution n is the output channel and k the input channel within its group; transposed, for the
// input's gradient, n is the input channel (over all groups) and k the output channel within the
// group.
struct PackExpertsLayer {
  const void* weight = nullptr;  // dense, at any address that suits its type
  DType weight_type = DType::kFloat32;
  // Rows start at multiples of 16 bytes and are filled with zeros from the last k to the next such
  // multiple, for which row_stride must have room; nothing else is written. Dense: rows start
  // anywhere and have exactly their elements.
  bool dense = false;
  void* out = nullptr;
  int64_t batch_stride = 0, tap_stride = 0, row_stride = 0;  // in elements
  int64_t out_channels = 0;                                  // O, over all groups
  int64_t group_in = 0;                                      // I/g
  int64_t groups = 1;                                        // must divide O
  int taps = 1;                                              // kh * kw
};

// out = sum_k routing[b, k] * weight[k]. Sums run in fp32 in the order of k (in fp64 if weight,
// routing or out is float64) and are rounded once to out_type. An expert whose routing weight is
// exactly 0 is not read for that sample: its NaN or Inf do not reach the result.
struct PackExpertsParams {
  const PackExpertsLayer* layers = nullptr;  // in host memory
  int64_t n_layers = 0;
  const void* routing = nullptr;  // [B, K]; null: weights are [B, O, I/g, taps], only rearranged
  DType routing_type = DType::kFloat32;
  int64_t batch = 0;    // B
  int64_t experts = 0;  // K >= 1, without routing of no account
  DType out_type = DType::kFloat32;
  bool transposed = false;
};

// One launch for each 32 layers (and one more where layers differ in whether they sum in fp64).
cudaError_t pack_experts(const PackExpertsParams& params, cudaStream_t stream);

}  // namespace dasr
