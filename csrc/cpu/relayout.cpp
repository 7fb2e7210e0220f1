#include "cpu/relayout.h"

#include <algorithm>

#include "ops/parallel.h"

// Memory is the limit: the vectors of any processor will do.
#pragma GCC diagnostic ignored "-Wunused-function"
#define DASR_OPS_ISA portable
#define DASR_OPS_LANES 4
#include "cpu/kernels/simd.h"

namespace dasr::cpu {
namespace {

constexpr int64_t kPixels = 64;
constexpr int64_t kChannels = 16;
constexpr int64_t kGrainElements = 16384;

// tile(first element of the image, first pixel, number of pixels, first channel, number of them)
template <typename Tile>
void for_each_tile(int64_t batch, int64_t channels, int64_t pixels, const Tile& tile) {
  const int64_t strips = (pixels + kPixels - 1) / kPixels;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (channels * kPixels + 1));
  parallel_for(batch * strips, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t pixel = i % strips * kPixels;
      for (int64_t c = 0; c < channels; c += kChannels) {
        tile(i / strips * channels * pixels, pixel, std::min(kPixels, pixels - pixel), c,
             std::min(kChannels, channels - c));
      }
    }
  });
}

}  // namespace

void nhwc_to_nchw(const float* from, int64_t batch, int64_t channels, int64_t pixels, float* to) {
  for_each_tile(
      batch, channels, pixels, [&](int64_t image, int64_t p, int64_t np, int64_t c, int64_t nc) {
        // Planes often lie a power of two apart: then a cache holds few lines of them at a time.
        float rows[kChannels * kPixels];
        portable::transpose(from + image + p * channels + c, channels, np, nc, rows, kPixels);
        for (int64_t i = 0; i < nc; ++i) {
          std::copy_n(rows + i * kPixels, np, to + image + (c + i) * pixels + p);
        }
      });
}

void nchw_to_nhwc(const float* from, int64_t batch, int64_t channels, int64_t pixels, float* to) {
  for_each_tile(batch, channels, pixels,
                [&](int64_t image, int64_t p, int64_t np, int64_t c, int64_t nc) {
                  portable::transpose(from + image + c * pixels + p, pixels, nc, np,
                                      to + image + p * channels + c, channels);
                });
}

}  // namespace dasr::cpu
