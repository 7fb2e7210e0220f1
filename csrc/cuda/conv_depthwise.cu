#include "conv_depthwise.h"

#include <algorithm>
#include <cstdlib>

#include "conv_depthwise_kernels.h"
#include "reduce_splits.h"

namespace dasr {
namespace {

// Blocks that keep any device busy; with more, each walks over more positions.
constexpr int64_t kEnoughBlocks = 1184;  // 8 for each of 148 multiprocessors

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool valid(const ConvShape& s) {
  return s.batch >= 0 && s.groups >= 1 && s.in_channels == s.groups &&
         s.out_channels % s.groups == 0 && s.kernel_h >= 1 && s.kernel_w >= 1 && s.stride_h >= 1 &&
         s.stride_w >= 1;
}

// Whether neighbouring channels are nearer to each other than neighbouring pixels are.
bool lanes_along_channels(const int64_t (&stride)[4], int channels) {
  return channels > 1 && std::abs(stride[1]) < std::abs(stride[3]);
}

bool aligned(const void* data, const int64_t (&stride)[4], DType type, int vector) {
  return reinterpret_cast<uintptr_t>(data) % (vector * size_of(type)) == 0 && stride[1] == 1 &&
         stride[0] % vector == 0 && stride[2] % vector == 0 && stride[3] % vector == 0;
}

// Chooses how many threads lie side by side; false if a column of the kernel does not fit.
bool choose_lanes(DepthwiseGeometry& g, size_t acc_size) {
  const int size =
      g.lanes_along_channels ? static_cast<int>(divide_up(g.channels, g.vector)) : g.positions;
  g.lanes = 32;
  // Few threads without work, but 32 bytes of neighbours in memory.
  while (g.lanes > 8 &&
         (g.lanes / 2 >= size || divide_up(size, g.lanes) * g.lanes * 7 > size * int64_t{8})) {
    g.lanes /= 2;
  }
  if (g.lanes_along_channels) {
    while (g.lanes > 1 && g.lanes / 2 >= size) g.lanes /= 2;
  }
  const auto column = [&] { return acc_size * g.h.taps * g.tile_channels(); };
  while (column() > kDepthwiseShared) {
    if (g.lanes_along_channels ? g.lanes == 1 : g.lanes == kDepthwiseThreads) return false;
    g.lanes = g.lanes_along_channels ? g.lanes / 2 : g.lanes * 2;
  }
  g.staged_columns = static_cast<int>(std::min<int64_t>(g.w.taps, kDepthwiseShared / column()));
  return true;
}

DepthwiseWeightGeometry divide(const ConvDepthwiseWeightParams& p) {
  const ConvShape& s = p.shape;
  DepthwiseWeightGeometry g = {};
  g.multiplier = s.out_channels / s.groups;
  const bool square = s.kernel_h == s.kernel_w && s.stride_h == 1 && s.dilation_h == 1;
  const bool unrolled = s.kernel_h == 3 || s.kernel_h == 5 || s.kernel_h == 7;
  g.taps = square && unrolled && p.grad.type != DType::kFloat64 ? s.kernel_h : 0;
  g.chunks = g.taps > 0 ? 1 : static_cast<int>(divide_up(s.taps(), kTapChunk));
  g.lanes_along_channels = lanes_along_channels(p.grad.stride, s.out_channels);
  g.channel_tiles = static_cast<int>(divide_up(s.out_channels, g.lanes_along_channels ? 32 : 8));
  g.positions =
      static_cast<int>(divide_up(s.out_height, depthwise_weight_run(g.taps)) * s.out_width);
  // A warp's sums are to cost little beside the walk over its positions.
  const int64_t least = g.lanes_along_channels ? 8 * 8 : 8 * 32;
  const int64_t blocks = std::max<int64_t>(s.batch * g.channel_tiles * g.chunks, 1);
  const int64_t splits =
      std::clamp<int64_t>(kEnoughBlocks / blocks, 1, std::max<int64_t>(g.positions / least, 1));
  g.positions_per_split = static_cast<int>(std::max<int64_t>(divide_up(g.positions, splits), 1));
  g.splits = static_cast<int>(std::max<int64_t>(divide_up(g.positions, g.positions_per_split), 1));
  return g;
}

bool fits_int(int height, int width) { return int64_t{height} * width <= 0x7FFFFFFF / 2; }

// Output channels per group from which on a tile of a matrix product (8 columns) is full.
constexpr int kMaxMultiplier = 8;

}  // namespace

bool conv_is_depthwise(const ConvShape& s) {
  // One channel's column of the kernel fits, with the fewest lanes, and positions are ints.
  return valid(s) && s.group_out() <= kMaxMultiplier &&
         sizeof(double) * 2 * s.kernel_h <= kDepthwiseShared &&
         fits_int(std::max(s.in_height, s.out_height) + 16 * s.stride_h,
                  std::max(s.in_width, s.out_width));
}

cudaError_t conv_depthwise(const ConvDepthwiseParams& p, cudaStream_t stream) {
  const ConvShape& s = p.shape;
  if (!valid(s) || (p.weight_type != p.source.type && p.weight_type != DType::kFloat32)) {
    return cudaErrorInvalidValue;
  }
  const DType type = p.source.type;
  DepthwiseGeometry g = {};
  g.h = gemm_axis(p.transposed, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h, s.in_height,
                  s.out_height);
  g.w = gemm_axis(p.transposed, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w, s.in_width,
                  s.out_width);
  g.channels = p.transposed ? s.in_channels : s.out_channels;
  g.multiplier = s.out_channels / s.groups;
  if (s.batch == 0 || g.channels == 0 || g.h.result == 0 || g.w.result == 0) return cudaSuccess;
  if (!fits_int(g.h.result + 16 * g.h.phases, g.w.result)) return cudaErrorInvalidValue;

  const bool unrolled = s.kernel_h == 3 || s.kernel_h == 5 || s.kernel_h == 7;
  g.taps =
      unrolled && s.stride_h == 1 && s.dilation_h == 1 && type != DType::kFloat64 ? s.kernel_h : 0;
  // Of the result: there is no cache that gathers stores.
  const bool plain = p.epilogue.upscale == 1;
  g.lanes_along_channels = lanes_along_channels(p.out_stride, plain ? g.channels : 1);
  const int vector = type == DType::kFloat64 ? 2 : 4;
  const bool loads_vectors = g.lanes_along_channels && g.multiplier == 1 &&
                             g.channels % vector == 0 &&
                             aligned(p.source.data, p.source.stride, type, vector);
  g.vector = loads_vectors ? vector : 1;
  const ConvTensor& residual = p.epilogue.residual;
  g.stores_vectors =
      loads_vectors && plain && p.epilogue.mask == nullptr &&
      aligned(p.out, p.out_stride, type, vector) &&
      (residual.data == nullptr ||
       (residual.type == type && aligned(residual.data, residual.stride, type, vector)));
  const int64_t runs =
      g.h.phases * divide_up(divide_up(g.h.result, g.h.phases), depthwise_run(g.vector));
  g.positions = static_cast<int>(runs * g.w.result);
  if (!choose_lanes(g, type == DType::kFloat64 ? 8 : 4)) return cudaErrorInvalidValue;
  g.channel_tiles = static_cast<int>(divide_up(g.channels, g.tile_channels()));
  const int64_t tiles = divide_up(g.positions, g.tile_positions());
  g.steps = static_cast<int>(
      std::clamp<int64_t>(s.batch * g.channel_tiles * tiles / kEnoughBlocks, 1, 8));
  g.position_tiles = static_cast<int>(divide_up(tiles, g.steps));
  switch (type) {
    case DType::kFloat32:
      return conv_depthwise_fp32(p, g, stream);
    case DType::kFloat16:
      return conv_depthwise_fp16(p, g, stream);
    case DType::kBFloat16:
      return conv_depthwise_bf16(p, g, stream);
    case DType::kFloat64:
      return conv_depthwise_fp64(p, g, stream);
  }
  return cudaErrorInvalidValue;
}

size_t conv_depthwise_weight_workspace_size(const ConvDepthwiseWeightParams& p) {
  if (!valid(p.shape)) return 0;
  const int64_t splits = divide(p).splits;
  if (splits <= 1) return 0;
  return splits * p.shape.batch * p.shape.out_channels * p.shape.taps() *
         (p.grad.type == DType::kFloat64 ? 8 : 4);
}

cudaError_t conv_depthwise_weight(const ConvDepthwiseWeightParams& p, cudaStream_t stream) {
  const ConvShape& s = p.shape;
  if (!valid(s) || p.input.type != p.grad.type || !fits_int(s.out_height + 4, s.out_width)) {
    return cudaErrorInvalidValue;
  }
  if (s.batch == 0 || s.out_channels == 0) return cudaSuccess;
  const DepthwiseWeightGeometry g = divide(p);
  const auto sum = [&] {
    switch (p.grad.type) {
      case DType::kFloat32:
        return conv_depthwise_weight_fp32(p, g, stream);
      case DType::kFloat16:
        return conv_depthwise_weight_fp16(p, g, stream);
      case DType::kBFloat16:
        return conv_depthwise_weight_bf16(p, g, stream);
      case DType::kFloat64:
        return conv_depthwise_weight_fp64(p, g, stream);
    }
    return cudaErrorInvalidValue;
  };
  const cudaError_t error = sum();
  if (error != cudaSuccess || g.splits == 1) return error;
  const int64_t n = s.batch * s.out_channels * s.taps();
  const DType type = p.grad.type == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  return reduce_splits({p.workspace, type, g.splits, n, p.grad_weight, type}, stream);
}

}  // namespace dasr
