#include "conv_depthwise.cuh"
#include "conv_depthwise_weight.cuh"

namespace dasr {

cudaError_t conv_depthwise_bf16(const ConvDepthwiseParams& p, const DepthwiseGeometry& g,
                                cudaStream_t stream) {
  return launch_depthwise<__nv_bfloat16>(p, g, stream);
}

cudaError_t conv_depthwise_weight_bf16(const ConvDepthwiseWeightParams& p,
                                       const DepthwiseWeightGeometry& g, cudaStream_t stream) {
  return launch_depthwise_weight<__nv_bfloat16>(p, g, stream);
}

}  // namespace dasr
