#include "conv_gemm.h"

#include "conv_gemm_kernels.cuh"
#include "conv_halo.cuh"

namespace dasr {
namespace {

int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

int patches(const GemmGeometry& g, int rows) {
  return divide_up(g.h.result, rows / kHaloWidth) * divide_up(g.w.result, kHaloWidth);
}

// How much of the pixels that blocks of 128 cover exists: in patches, in the order of memory.
double used_by_patches(const GemmGeometry& g) {
  return static_cast<double>(g.h.result) * g.w.result / (128.0 * patches(g, 128));
}
double used_in_order(const GemmGeometry& g) {
  const double n = static_cast<double>(g.h.result) * g.w.result;
  return n / (128.0 * divide_up(static_cast<int64_t>(n), 128));
}

constexpr int64_t kSharedLimit = 99 * 1024 - 256;  // of the smallest device, sm_86, less biases

// The table of choices. No row has been measured on a device yet; the reasons are arithmetic.
GemmTile choose_tile(const ConvGemmParams& p, const GemmGeometry& g, bool tensor_cores) {
  const int taps = g.h.taps * g.w.taps;
  const bool halo = tensor_cores && g.fetch != Fetch::kFlat && p.shape.stride_h == 1 &&
                    p.shape.stride_w == 1 && taps >= 3;
  // A halo is fetched once for all taps, gathered pixels once for each. Patches that hang over the
  // edges of a small image throw away more than that is worth.
  const bool patches_fit = used_by_patches(g) >= 0.6 * used_in_order(g);
  if (g.n_size <= 8) {
    // Bound by memory: as many pixels at a time as fit.
    if (halo && patches_fit && halo_shared_bytes<float, Tf32, 256, 8>(g) <= kSharedLimit) {
      return GemmTile::kHalo256x8;
    }
    return GemmTile::kGather8;
  }
  // Half of a 64-column tile would be multiplied in vain.
  if (g.n_size <= 32) return GemmTile::kGather32;
  if (halo && patches_fit) {
    // 64 x 64 sums per warp read half as much shared memory per product as 32 x 64; but the device
    // must be full.
    const int64_t blocks = p.shape.batch * g.groups * g.n_tiles * patches(g, 256);
    if (blocks >= 2 * p.multiprocessors &&
        halo_shared_bytes<float, Tf32, 256, 64>(g) <= kSharedLimit) {
      return GemmTile::kHalo256x64;
    }
    if (halo_shared_bytes<float, Tf32, 128, 64>(g) <= kSharedLimit) return GemmTile::kHalo128x64;
  }
  return GemmTile::kGather64;
}

int columns(GemmTile tile, DType type) {
  switch (tile) {
    case GemmTile::kGather8:
    case GemmTile::kHalo256x8:
      return 8;
    case GemmTile::kGather32:
      return 32;
    default:
      return type == DType::kFloat64 ? 32 : 64;
  }
}

}  // namespace

bool conv_gemm_is_flat(const ConvShape& shape, bool transposed, DType type) {
  const int channels = transposed ? shape.group_out() : shape.group_in();
  const int chunk = kChunkBytes / static_cast<int>(size_of(type));
  // Rows of channels and taps are padded less; but they are fetched one element at a time.
  return channels * static_cast<int64_t>(shape.taps()) <= 512 && channels <= chunk / 4;
}

cudaError_t conv_gemm(const ConvGemmParams& p, cudaStream_t stream) {
  const ConvShape& s = p.shape;
  if (s.batch < 0 || s.groups < 1) return cudaErrorInvalidValue;
  GemmGeometry g = {};
  g.h = gemm_axis(p.transposed, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h, s.in_height,
                  s.out_height);
  g.w = gemm_axis(p.transposed, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w, s.in_width,
                  s.out_width);
  g.groups = s.groups;
  g.k_size = p.transposed ? s.group_out() : s.group_in();
  g.n_size = p.transposed ? s.group_in() : s.group_out();
  if (s.batch == 0 || g.h.result == 0 || g.w.result == 0 || g.n_size == 0) return cudaSuccess;
  const DType type = p.source.type;
  if (conv_gemm_is_flat(s, p.transposed, type)) {
    g.fetch = Fetch::kFlat;
    g.group_stride = static_cast<int64_t>(s.group_out()) * s.group_in() * s.taps();
    g.n_stride = p.transposed ? s.taps() : static_cast<int64_t>(s.group_in()) * s.taps();
    g.c_stride = p.transposed ? static_cast<int64_t>(s.group_in()) * s.taps() : s.taps();
  } else {
    g.fetch = holds_vectors(p.source, g.k_size) ? Fetch::kVectors : Fetch::kElements;
  }
  g.stores_vectors = stores_vectors(p.epilogue, p.out, p.out_stride, type, g.n_size);

  const bool tensor_cores = type == DType::kFloat16 || type == DType::kBFloat16 ||
                            (type == DType::kFloat32 && p.allow_tf32);
  g.n_tiles = divide_up(g.n_size, 64);
  const GemmTile tile = choose_tile(p, g, tensor_cores);
  g.n_tiles = divide_up(g.n_size, columns(tile, type));
  const bool is_halo = tile >= GemmTile::kHalo256x64;
  if (is_halo) {
    g.pixel_tiles = patches(g, tile == GemmTile::kHalo128x64 ? 128 : 256);
    g.pixel_tiles_w = divide_up(g.w.result, kHaloWidth);
  } else {
    const int64_t pixels =
        static_cast<int64_t>(divide_up(g.h.result, g.h.phases)) * divide_up(g.w.result, g.w.phases);
    g.pixel_tiles = divide_up(pixels, 128);
  }
  switch (type) {
    case DType::kFloat16:
      return conv_gemm_fp16(p, g, tile, stream);
    case DType::kBFloat16:
      return conv_gemm_bf16(p, g, tile, stream);
    case DType::kFloat32:
      return p.allow_tf32 ? conv_gemm_tf32(p, g, tile, stream) : conv_gemm_fp32(p, g, tile, stream);
    case DType::kFloat64:
      return conv_gemm_fp64(p, g, tile, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dasr
