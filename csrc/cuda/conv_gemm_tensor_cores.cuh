// The choice among the kernels of one operand type of the tensor cores.
#pragma once

#include "conv_gather.cuh"
#include "conv_gemm_kernels.cuh"
#include "conv_halo.cuh"

namespace dasr {

template <class T, class Math>
cudaError_t conv_gemm_tensor_cores(const ConvGemmParams& p, const GemmGeometry& g, GemmTile tile,
                                   cudaStream_t stream) {
  switch (tile) {
    case GemmTile::kGather64:
      return launch_gather<T, Math, 64>(p, g, stream);
    case GemmTile::kGather32:
      return launch_gather<T, Math, 32>(p, g, stream);
    case GemmTile::kGather8:
      return launch_gather<T, Math, 8>(p, g, stream);
    case GemmTile::kHalo256x64:
      return launch_halo<T, Math, 256, 64>(p, g, stream);
    case GemmTile::kHalo128x64:
      return launch_halo<T, Math, 128, 64>(p, g, stream);
    case GemmTile::kHalo256x8:
      return launch_halo<T, Math, 256, 8>(p, g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dasr
