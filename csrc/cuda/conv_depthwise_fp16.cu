#include "conv_depthwise.cuh"
#include "conv_depthwise_weight.cuh"

namespace dasr {

cudaError_t conv_depthwise_fp16(const ConvDepthwiseParams& p, const DepthwiseGeometry& g,
                                cudaStream_t stream) {
  return launch_depthwise<__half>(p, g, stream);
}

cudaError_t conv_depthwise_weight_fp16(const ConvDepthwiseWeightParams& p,
                                       const DepthwiseWeightGeometry& g, cudaStream_t stream) {
  return launch_depthwise_weight<__half>(p, g, stream);
}

}  // namespace dasr
