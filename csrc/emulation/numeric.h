// 16-bit floating-point types and their conversions, under the names of cuda_fp16.h and
// cuda_bf16.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace dasr::emulation {

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// To fp32 such that a second rounding to a format of at most 22 bits gives what one would have
// given.
inline float round_to_odd(double value) {
  float result = static_cast<float>(value);
  if (static_cast<double>(result) == value || value != value) return result;
  if (std::fabs(static_cast<double>(result)) > std::fabs(value))
    result = std::nextafterf(result, 0);
  return bit_cast<float>(bit_cast<uint32_t>(result) | 1u);
}

inline uint16_t half_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return 0x7FFF;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;  // 65520 and above
  if (magnitude < 0x38800000) {                       // subnormal: units of 2^-24, ties to even
    return sign | static_cast<uint16_t>(std::nearbyintf(std::fabs(value) * 16777216.0f));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

inline float half_value(uint16_t bits) {
  // Re-biases the exponent by a multiplication, which makes normal numbers of subnormal ones.
  const float magnitude = bit_cast<float>((bits & 0x7FFFu) << 13) * 0x1p112f;
  const uint32_t special = (bits & 0x7C00) == 0x7C00 ? 0x7F800000 : 0;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | special | sign);
}

inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float bfloat16_value(uint16_t bits) {
  return bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

}  // namespace dasr::emulation

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half value) { return dasr::emulation::half_value(value.bits); }
inline __half __float2half_rn(float value) { return {dasr::emulation::half_bits(value)}; }
inline __half __double2half(double value) {
  return __float2half_rn(dasr::emulation::round_to_odd(value));
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return dasr::emulation::bfloat16_value(value.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  return {dasr::emulation::bfloat16_bits(value)};
}
inline __nv_bfloat16 __double2bfloat16(double value) {
  return __float2bfloat16_rn(dasr::emulation::round_to_odd(value));
}
