#pragma once

#include <cstddef>
#include <cstdint>

namespace dasr {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

constexpr size_t size_of(DType type) {
  return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
}

}  // namespace dasr
