#include "conv.h"

#include "isa.h"

namespace dasr {
namespace cpu {
namespace {

bool axis_supported(const ConvAxis& a) {
  return a.size >= 0 && a.kernel >= 1 && a.stride >= 1 && a.dilation >= 1 && a.pad_before >= 0 &&
         a.pad_after >= 0 && a.size + a.pad_before + a.pad_after >= a.reach();
}

}  // namespace

bool conv_supported(const ConvParams& p) {
  const int64_t r = p.upscale_factor;
  return p.batch >= 0 && p.in_channels >= 0 && p.out_channels >= 0 && p.experts >= 0 &&
         axis_supported(p.y) && axis_supported(p.x) && r >= 1 && p.groups >= 1 &&
         p.in_channels % p.groups == 0 && p.out_channels % (p.groups * r * r) == 0;
}

void conv_forward(const ConvParams& params, const ThreadPool& pool) {
  switch (isa_choice().isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return avx512::conv_forward(params, pool);
    case Isa::kAvx2:
      return avx2::conv_forward(params, pool);
#endif
    default:
      return portable::conv_forward(params, pool);
  }
}

void conv_backward(const ConvBackwardParams& params, const ThreadPool& pool) {
  switch (isa_choice().isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return avx512::conv_backward(params, pool);
    case Isa::kAvx2:
      return avx2::conv_backward(params, pool);
#endif
    default:
      return portable::conv_backward(params, pool);
  }
}

}  // namespace cpu
}  // namespace dasr
