// fp16 and bf16 as numbers, rounded to the nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace sim {

struct BFloat16 {
  uint16_t bits;
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
  static BFloat16 of(float value) {
    const auto wide = std::bit_cast<uint32_t>(value);
    if (value != value) return {static_cast<uint16_t>((wide >> 16) | 0x40)};
    return {static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
  }
};

struct Half {
  uint16_t bits;
  explicit operator float() const {
    const uint32_t sign = uint32_t{bits} >> 15 << 31, rest = bits & 0x7fff;
    if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // As an integer times 2**-24 it is exact, subnormal or not.
    if (rest < 0x400) return (sign ? -1.0f : 1.0f) * static_cast<float>(rest) * 0x1p-24f;
    return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000));
  }
  static Half of(float value) {
    const auto wide = std::bit_cast<uint32_t>(value);
    const uint16_t sign = static_cast<uint16_t>(wide >> 16 & 0x8000);
    const uint32_t rest = wide & 0x7fffffff;
    if (rest > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
    if (rest >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // from 65520 on
    if (rest < 0x38800000) {  // below 2**-14: adding 2**-1 * 2**0 rounds at 2**-24
      const float shifted = std::bit_cast<float>(rest) + 0.5f;
      return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000))};
    }
    const uint32_t rounded = rest + 0xfff + ((rest >> 13) & 1);
    return {static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13))};
  }
};

}  // namespace sim
