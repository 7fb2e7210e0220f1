#include "conv_gemm_tensor_cores.cuh"

namespace dasr {

cudaError_t conv_gemm_tf32(const ConvGemmParams& p, const GemmGeometry& g, GemmTile tile,
                           cudaStream_t stream) {
  return conv_gemm_tensor_cores<float, Tf32>(p, g, tile, stream);
}

}  // namespace dasr
