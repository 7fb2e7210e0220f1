#include "conv_depthwise.cuh"
#include "conv_depthwise_weight.cuh"

namespace dasr {

cudaError_t conv_depthwise_fp64(const ConvDepthwiseParams& p, const DepthwiseGeometry& g,
                                cudaStream_t stream) {
  return launch_depthwise<double>(p, g, stream);
}

cudaError_t conv_depthwise_weight_fp64(const ConvDepthwiseWeightParams& p,
                                       const DepthwiseWeightGeometry& g, cudaStream_t stream) {
  return launch_depthwise_weight<double>(p, g, stream);
}

}  // namespace dasr
