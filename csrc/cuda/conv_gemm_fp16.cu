#include "conv_gemm_tensor_cores.cuh"

namespace dasr {

cudaError_t conv_gemm_fp16(const ConvGemmParams& p, const GemmGeometry& g, GemmTile tile,
                           cudaStream_t stream) {
  return conv_gemm_tensor_cores<__half, __half>(p, g, tile, stream);
}

}  // namespace dasr
