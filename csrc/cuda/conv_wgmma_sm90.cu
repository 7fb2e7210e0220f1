#include "conv_wgmma.h"

#include <algorithm>

#include "conv_wgmma.cuh"

namespace dasr {
namespace {

constexpr int64_t kSharedLimit = 227 * 1024;
constexpr int64_t kStaticBytes = kWgmmaCols * sizeof(float);
// One warpgroup alone would have nobody to multiply while it stores.
constexpr int kMinWarpgroups = 2;
// Half of the rows of a product would be multiplied in vain below this.
constexpr int kMinChannels = 33;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  WgmmaGeometry g = {};
  int warpgroups = 0;
  int64_t blocks = 0;  // none if there is nothing to do

  int shared_bytes() const { return g.kernel_bytes + 2 * warpgroups * g.buffer_bytes; }
};

// Eight lanes write vectors of channels of one pixel, or of as many pixels as it takes: planes
// start where they meet different banks.
int64_t plane_bytes(int vectors, int64_t pixels) {
  const int64_t offset = vectors >= 8 ? 16 : vectors >= 4 ? 32 : 64;
  return divide_up(pixels * kVectorBytes - offset, 128) * 128 + offset;
}

// The blocks' shares of the work. All blocks sharing all tiles are balanced best, but some then
// need two kernels; loading one takes about as long as a tile.
void share_tiles(const ConvGemmParams& p, int64_t units, Plan* plan) {
  WgmmaGeometry& g = plan->g;
  const int64_t tiles = units * g.pixel_tiles;
  const int64_t all = std::min<int64_t>(std::max(p.multiprocessors, 1), tiles);
  const int64_t per_unit = std::min<int64_t>(all / units, g.pixel_tiles);
  const bool apart =
      per_unit > 0 && divide_up(g.pixel_tiles, per_unit) <= divide_up(tiles, all) + 1;
  g.sharers = static_cast<int>(apart ? per_unit : all);
  g.shared_tiles = apart ? g.pixel_tiles : tiles;
  plan->blocks = apart ? units * per_unit : all;
}

// Returns whether the convolution can be served at all.
bool make_plan(const ConvGemmParams& p, Plan* plan) {
  const ConvShape& s = p.shape;
  if (s.batch < 0 || s.groups < 1 || s.stride_h != 1 || s.stride_w != 1) return false;
  const DType type = p.source.type;
  if (type != DType::kFloat16 && type != DType::kBFloat16) return false;
  WgmmaGeometry& g = plan->g;
  g.h = gemm_axis(p.transposed, s.kernel_h, 1, s.pad_top, s.dilation_h, s.in_height, s.out_height);
  g.w = gemm_axis(p.transposed, s.kernel_w, 1, s.pad_left, s.dilation_w, s.in_width, s.out_width);
  g.groups = s.groups;
  g.k_size = p.transposed ? s.group_out() : s.group_in();
  g.n_size = p.transposed ? s.group_in() : s.group_out();
  if (g.k_size < 16 || g.k_size % 16 != 0 || g.n_size < kMinChannels) return false;
  if (g.h.taps < 1 || g.w.taps < 1 || !holds_vectors(p.source, g.k_size)) return false;

  g.vectors = g.k_size / kVectorChannels;
  const int64_t halo_h = kWgmmaTileH + static_cast<int64_t>(s.kernel_h - 1) * s.dilation_h;
  const int64_t halo_w = kWgmmaTileW + static_cast<int64_t>(s.kernel_w - 1) * s.dilation_w;
  const int64_t kernel_bytes =
      static_cast<int64_t>(s.taps()) * g.vectors * kWgmmaCols * kVectorBytes;
  if (halo_h > kSharedLimit || halo_w > kSharedLimit || kernel_bytes > kSharedLimit) return false;
  const int64_t plane = plane_bytes(g.vectors, halo_h * halo_w);
  const int64_t buffer = std::max<int64_t>(divide_up(g.vectors * plane, 128) * 128,
                                           tile_bytes<float, kStoredPixels, kWgmmaCols>());
  const int64_t fit = (kSharedLimit - kStaticBytes - kernel_bytes) / (2 * buffer);
  if (fit < kMinWarpgroups) return false;
  plan->warpgroups = static_cast<int>(std::min<int64_t>(fit, kMaxWarpgroups));
  g.halo_h = static_cast<int>(halo_h);
  g.halo_w = static_cast<int>(halo_w);
  g.plane_bytes = static_cast<int>(plane);
  g.buffer_bytes = static_cast<int>(buffer);
  g.kernel_bytes = static_cast<int>(kernel_bytes);
  g.stores_vectors = stores_vectors(p.epilogue, p.out, p.out_stride, type, g.n_size);

  g.n_tiles = static_cast<int>(divide_up(g.n_size, kWgmmaCols));
  const int64_t tiles_w = divide_up(g.w.result, kWgmmaTileW);
  const int64_t tiles = divide_up(g.h.result, kWgmmaTileH) * tiles_w;
  if (tiles > 0x7FFFFFFF - kMaxWarpgroups) return false;
  g.pixel_tiles_w = static_cast<int>(tiles_w);
  g.pixel_tiles = static_cast<int>(tiles);
  const int64_t units = s.batch * g.groups * g.n_tiles;
  if (units > 0 && tiles > 0) share_tiles(p, units, plan);
  return true;
}

template <class T, int kSteps>
cudaError_t launch_steps(const ConvGemmParams& p, const Plan& plan, cudaStream_t stream) {
  const auto kernel = &conv_wgmma_kernel<T, kSteps>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes());
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(plan.blocks));
  const int threads = plan.warpgroups * kWarpgroup, bytes = plan.shared_bytes();
  return p.chained ? launch_dependent(kernel, grid, threads, bytes, stream, p, plan.g)
                   : launch(kernel, grid, threads, bytes, stream, p, plan.g);
}

template <class T>
cudaError_t launch_wgmma(const ConvGemmParams& p, const Plan& plan, cudaStream_t stream) {
  return plan.g.k_size == 64 ? launch_steps<T, 4>(p, plan, stream)
                             : launch_steps<T, 0>(p, plan, stream);
}

// Whether the current device runs the code for sm_90a and the library has it. Of the shells for
// other architectures, PTX for newer ones included, it is told by its static shared memory.
bool is_hopper() {
#ifdef DASR_EMULATION
  return true;
#else
  int device = 0, major = 0, minor = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      major != 9 || minor != 0) {
    return false;
  }
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, &conv_wgmma_kernel<__nv_bfloat16, 4>) == cudaSuccess &&
         attributes.sharedSizeBytes > 0;
#endif
}

}  // namespace

bool conv_wgmma_serves(const ConvGemmParams& p) {
  Plan plan;
  return make_plan(p, &plan) && is_hopper();
}

cudaError_t conv_wgmma(const ConvGemmParams& p, cudaStream_t stream) {
  Plan plan;
  if (!make_plan(p, &plan) || !is_hopper()) return cudaErrorInvalidValue;
  if (plan.blocks == 0) return cudaSuccess;
  return p.source.type == DType::kFloat16 ? launch_wgmma<__half>(p, plan, stream)
                                          : launch_wgmma<__nv_bfloat16>(p, plan, stream);
}

}  // namespace dasr
