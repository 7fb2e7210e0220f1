#include "conv_weight_grad_kernels.cuh"

namespace dasr {

cudaError_t weight_grad_fp16(const ConvWeightGradParams& p, const WeightGradGeometry& g, bool halo,
                             cudaStream_t stream) {
  return halo ? launch_weight_grad_halo<__half, __half>(p, g, stream)
              : launch_weight_grad_gather<__half, __half>(p, g, stream);
}

}  // namespace dasr
