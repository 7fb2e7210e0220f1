#include "conv_weight_grad_kernels.cuh"

namespace dasr {

cudaError_t weight_grad_tf32(const ConvWeightGradParams& p, const WeightGradGeometry& g, bool halo,
                             cudaStream_t stream) {
  return halo ? launch_weight_grad_halo<float, Tf32>(p, g, stream)
              : launch_weight_grad_gather<float, Tf32>(p, g, stream);
}

}  // namespace dasr
