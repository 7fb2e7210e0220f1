#include "conv_weight_grad.h"

#include <algorithm>

#include "conv_weight_grad_kernels.cuh"

namespace dasr {
namespace {

int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

constexpr int64_t kSharedLimit = 99 * 1024;  // of the smallest device, sm_86
// Two blocks for each of 132 multiprocessors; partial sums no larger than the L2 bears, unless one
// split alone is.
constexpr int64_t kBlocks = 264;
constexpr int64_t kMaxPartial = int64_t{64} << 20;

bool uses_halo(const ConvShape& s, DType type, bool allow_tf32) {
  if (s.stride_h != 1 || s.stride_w != 1 || s.taps() < 2) return false;
  if (type == DType::kFloat16 || type == DType::kBFloat16) {
    return weight_grad_halo_bytes<__half, __half>(s) <= kSharedLimit;
  }
  return type == DType::kFloat32 && allow_tf32 &&
         weight_grad_halo_bytes<float, Tf32>(s) <= kSharedLimit;
}

WeightGradGeometry geometry(const ConvShape& s, DType type, bool halo) {
  WeightGradGeometry g = {};
  g.row_tiles = divide_up(s.group_out(), kOuterRows);
  g.column_tiles = divide_up(s.group_in(), halo || type == DType::kFloat64 ? 32 : 64);
  g.tap_blocks = halo ? divide_up(s.taps(), kHaloTaps) : s.taps();
  const int64_t patch_height = 16 / static_cast<int>(size_of(type));
  g.patches_w = divide_up(s.out_width, kPatchWidth);
  g.patches = g.patches_w * divide_up(s.out_height, patch_height);
  return g;
}

}  // namespace

int64_t conv_weight_grad_splits(const ConvShape& s, DType type, bool allow_tf32) {
  const WeightGradGeometry g = geometry(s, type, uses_halo(s, type, allow_tf32));
  const int64_t blocks =
      std::max<int64_t>(s.batch * s.groups * g.row_tiles * g.column_tiles * g.tap_blocks, 1);
  const int64_t bytes = std::max<int64_t>(
      s.batch * s.out_channels * s.group_in() * s.taps() * (type == DType::kFloat64 ? 8 : 4), 1);
  const int64_t wanted =
      std::min<int64_t>((kBlocks + blocks - 1) / blocks, std::max<int64_t>(kMaxPartial / bytes, 1));
  const int64_t splits = std::clamp<int64_t>(wanted, 1, std::max(g.patches, 1));
  // Equal shares, none empty.
  return g.patches == 0 ? 1 : divide_up(g.patches, divide_up(g.patches, splits));
}

cudaError_t conv_weight_grad(const ConvWeightGradParams& p, cudaStream_t stream) {
  const ConvShape& s = p.shape;
  if (s.batch < 0 || s.groups < 1 || p.splits < 1 || p.grad.type != p.input.type) {
    return cudaErrorInvalidValue;
  }
  if (s.batch == 0 || s.out_channels == 0 || s.in_channels == 0) return cudaSuccess;
  const DType type = p.grad.type;
  const bool halo = uses_halo(s, type, p.allow_tf32);
  WeightGradGeometry g = geometry(s, type, halo);
  g.splits = static_cast<int>(p.splits);
  g.patches_per_split = divide_up(g.patches, g.splits);
  g.grad_vectors = holds_vectors(p.grad, s.group_out());
  g.input_vectors = holds_vectors(p.input, s.group_in());
  switch (type) {
    case DType::kFloat16:
      return weight_grad_fp16(p, g, halo, stream);
    case DType::kBFloat16:
      return weight_grad_bf16(p, g, halo, stream);
    case DType::kFloat32:
      return p.allow_tf32 ? weight_grad_tf32(p, g, halo, stream) : weight_grad_fp32(p, g, stream);
    case DType::kFloat64:
      return weight_grad_fp64(p, g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dasr
