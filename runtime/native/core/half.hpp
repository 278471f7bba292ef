// Half precision on the host: IEEE binary16 as its bits.
#pragma once

#include <bit>
#include <cstdint>

namespace posecrafter {

inline float from_half(std::uint16_t bits) {
    const std::uint32_t sign = std::uint32_t(bits & 0x8000U) << 16, exponent = bits >> 10 & 31U,
                        mantissa = bits & 1023U;
    if (exponent == 0) {
        const float tiny = static_cast<float>(mantissa) * 0x1p-24F;
        return sign ? -tiny : tiny;
    }
    const std::uint32_t wide = exponent == 31 ? 255U : exponent + 112;
    return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

// The nearest half, of two the even one; infinite from 65520 on, as in numpy.
inline std::uint16_t to_half(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = bits >> 16 & 0x8000U, size = bits & 0x7FFFFFFFU;
    std::uint32_t half;
    if (size > 0x7F800000U)
        half = 0x7E00U;
    else if (size >= 0x477FF000U)
        half = 0x7C00U;
    else if (size < 0x38800000U)  // below 2^-14: floats from 0.5 on are 2^-24 apart, as halves are here
        half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - std::bit_cast<std::uint32_t>(0.5F);
    else
        half = (size - (112U << 23) + 0xFFFU + (size >> 13 & 1U)) >> 13;
    return static_cast<std::uint16_t>(sign | half);
}

}  // namespace posecrafter
