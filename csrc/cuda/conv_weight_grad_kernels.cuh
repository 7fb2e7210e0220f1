// The instantiations of conv_weight_grad.cuh, one file for each operand type.
#pragma once

#include "conv_weight_grad.cuh"

namespace dasr {

constexpr int kHaloTaps = 9;  // whose sums fit a thread's registers

template <class T, class Math>
int64_t weight_grad_halo_bytes(const ConvShape& s) {
  using Sizes = OuterSizes<T, Math, kHaloTaps, 1>;
  return Sizes::shared_bytes(
      (Sizes::kPatchHeight + static_cast<int64_t>(s.kernel_h - 1) * s.dilation_h) *
      (kPatchWidth + static_cast<int64_t>(s.kernel_w - 1) * s.dilation_w));
}

template <class T, class Math>
cudaError_t launch_weight_grad_halo(const ConvWeightGradParams& p, const WeightGradGeometry& g,
                                    cudaStream_t stream) {
  return launch_weight_grad(&weight_grad_halo_kernel<T, Math, kHaloTaps>, p, g,
                            static_cast<int>(weight_grad_halo_bytes<T, Math>(p.shape)), stream);
}

template <class T, class Math>
cudaError_t launch_weight_grad_gather(const ConvWeightGradParams& p, const WeightGradGeometry& g,
                                      cudaStream_t stream) {
  using Sizes = OuterSizes<T, Math, 1, sizeof(T) == 8 ? 1 : 2>;
  return launch_weight_grad(&weight_grad_gather_kernel<T, Math>, p, g,
                            static_cast<int>(Sizes::shared_bytes(Sizes::kPixels)), stream);
}

cudaError_t weight_grad_fp16(const ConvWeightGradParams&, const WeightGradGeometry&, bool halo,
                             cudaStream_t);
cudaError_t weight_grad_bf16(const ConvWeightGradParams&, const WeightGradGeometry&, bool halo,
                             cudaStream_t);
cudaError_t weight_grad_tf32(const ConvWeightGradParams&, const WeightGradGeometry&, bool halo,
                             cudaStream_t);
// No halo.
cudaError_t weight_grad_fp32(const ConvWeightGradParams&, const WeightGradGeometry&, cudaStream_t);
cudaError_t weight_grad_fp64(const ConvWeightGradParams&, const WeightGradGeometry&, cudaStream_t);

}  // namespace dasr
