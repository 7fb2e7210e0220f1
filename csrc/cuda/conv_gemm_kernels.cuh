// The instantiations of conv_gather.cuh and conv_halo.cuh, one file for each operand type.
#pragma once

#include "conv_gemm.cuh"

namespace dasr {

// Pixels x channels of a block; gathered pixels are always 128.
enum class GemmTile { kGather64, kGather32, kGather8, kHalo256x64, kHalo128x64, kHalo256x8 };

cudaError_t conv_gemm_fp16(const ConvGemmParams&, const GemmGeometry&, GemmTile, cudaStream_t);
cudaError_t conv_gemm_bf16(const ConvGemmParams&, const GemmGeometry&, GemmTile, cudaStream_t);
cudaError_t conv_gemm_tf32(const ConvGemmParams&, const GemmGeometry&, GemmTile, cudaStream_t);
// No halo.
cudaError_t conv_gemm_fp32(const ConvGemmParams&, const GemmGeometry&, GemmTile, cudaStream_t);
cudaError_t conv_gemm_fp64(const ConvGemmParams&, const GemmGeometry&, GemmTile, cudaStream_t);

}  // namespace dasr
