#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace dasr {

// f(begin, end) over [0, count) on PyTorch's threads, at least `grain` items each.
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace dasr
