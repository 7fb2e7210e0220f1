#include "conv_weight_grad_kernels.cuh"

namespace dasr {

cudaError_t weight_grad_fp32(const ConvWeightGradParams& p, const WeightGradGeometry& g,
                             cudaStream_t stream) {
  return launch_weight_grad_gather<float, Exact>(p, g, stream);
}

cudaError_t weight_grad_fp64(const ConvWeightGradParams& p, const WeightGradGeometry& g,
                             cudaStream_t stream) {
  return launch_weight_grad_gather<double, Exact>(p, g, stream);
}

}  // namespace dasr
