// Between the memory orders NCHW and NHWC of dense float tensors.
#pragma once

#include <cstdint>

namespace dasr::cpu {

// [B, H, W, C] -> [B, C, H, W]; `pixels` are H * W.
void nhwc_to_nchw(const float* from, int64_t batch, int64_t channels, int64_t pixels, float* to);

// [B, C, H, W] -> [B, H, W, C]
void nchw_to_nhwc(const float* from, int64_t batch, int64_t channels, int64_t pixels, float* to);

}  // namespace dasr::cpu
