#include "conv_gather.cuh"
#include "conv_gemm_kernels.cuh"

namespace dasr {

cudaError_t conv_gemm_fp32(const ConvGemmParams& p, const GemmGeometry& g, GemmTile tile,
                           cudaStream_t stream) {
  switch (tile) {
    case GemmTile::kGather64:
      return launch_gather<float, Exact, 64>(p, g, stream);
    case GemmTile::kGather8:
      return launch_gather<float, Exact, 8>(p, g, stream);
    default:
      return launch_gather<float, Exact, 32>(p, g, stream);
  }
}

cudaError_t conv_gemm_fp64(const ConvGemmParams& p, const GemmGeometry& g, GemmTile tile,
                           cudaStream_t stream) {
  return tile == GemmTile::kGather8 ? launch_gather<double, Exact, 8>(p, g, stream)
                                    : launch_gather<double, Exact, 32>(p, g, stream);
}

}  // namespace dasr
