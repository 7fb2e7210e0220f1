#include "conv3x3.h"

#include "isa.h"

namespace dasr {
namespace cpu {

bool conv3x3_supported(const Conv3x3Params& p) {
  const int64_t r = p.upscale_factor;
  return p.batch >= 0 && p.in_channels >= 0 && p.out_channels >= 0 && p.experts >= 0 &&
         p.pad_top >= 0 && p.pad_bottom >= 0 && p.pad_left >= 0 && p.pad_right >= 0 &&
         p.height + p.pad_top + p.pad_bottom >= 3 && p.width + p.pad_left + p.pad_right >= 3 &&
         r >= 1 && p.out_channels % (r * r) == 0;
}

void conv3x3_forward(const Conv3x3Params& params, const ThreadPool& pool) {
  switch (isa_choice().isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return avx512::conv3x3_forward(params, pool);
    case Isa::kAvx2:
      return avx2::conv3x3_forward(params, pool);
#endif
    default:
      return portable::conv3x3_forward(params, pool);
  }
}

void conv3x3_backward(const Conv3x3BackwardParams& params, const ThreadPool& pool) {
  switch (isa_choice().isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return avx512::conv3x3_backward(params, pool);
    case Isa::kAvx2:
      return avx2::conv3x3_backward(params, pool);
#endif
    default:
      return portable::conv3x3_backward(params, pool);
  }
}

}  // namespace cpu
}  // namespace dasr
