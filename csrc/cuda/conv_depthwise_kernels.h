// The instantiations of conv_depthwise.cuh and conv_depthwise_weight.cuh, one file for each type.
#pragma once

#include "conv_depthwise.h"
#include "conv_gemm.cuh"

namespace dasr {

constexpr int kDepthwiseThreads = 256;
constexpr int kDepthwiseShared = 40 * 1024;  // for the kernels of a block's channels
constexpr int kMaxTileChannels = 128;

// How a block divides its work. A position is a column of a few pixels of the result.
struct DepthwiseGeometry {
  GemmAxis h, w;
  int channels;    // of the result
  int multiplier;  // O / I
  int taps;        // rows of a kernel if they are unrolled, else 0
  int vector;      // channels of a thread
  bool stores_vectors;
  bool lanes_along_channels;  // else along positions
  int lanes;                  // threads in that direction, a power of two
  int channel_tiles, position_tiles;
  int positions, steps;  // of an image; that a thread walks, one tile's worth apart
  int staged_columns;    // of the kernels at a time

  __host__ __device__ int tile_channels() const {
    return (lanes_along_channels ? lanes : kDepthwiseThreads / lanes) * vector;
  }
  __host__ __device__ int tile_positions() const {
    return lanes_along_channels ? kDepthwiseThreads / lanes : lanes;
  }
};

struct DepthwiseWeightGeometry {
  int multiplier;
  int taps;  // rows and columns of a kernel if they are unrolled, else 0
  bool lanes_along_channels;
  int channel_tiles, chunks, positions;
  int splits, positions_per_split;
};

// Pixels of a position.
__host__ __device__ constexpr int depthwise_run(int vector) { return vector > 1 ? 4 : 8; }
__host__ __device__ constexpr int depthwise_weight_run(int taps) { return taps > 0 ? 4 : 1; }

// Taps that are summed together where they are not unrolled.
constexpr int kTapChunk = 9;

#define DASR_DEPTHWISE(type)                                                              \
  cudaError_t conv_depthwise_##type(const ConvDepthwiseParams&, const DepthwiseGeometry&, \
                                    cudaStream_t);                                        \
  cudaError_t conv_depthwise_weight_##type(const ConvDepthwiseWeightParams&,              \
                                           const DepthwiseWeightGeometry&, cudaStream_t)
DASR_DEPTHWISE(fp32);
DASR_DEPTHWISE(fp16);
DASR_DEPTHWISE(bf16);
DASR_DEPTHWISE(fp64);
#undef DASR_DEPTHWISE

}  // namespace dasr
