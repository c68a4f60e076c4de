#include "rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace pagegrad::test {

namespace {

/// A 16-bit format: sign, exponent, and a fraction of `fraction_bits`.
struct Format {
    int fraction_bits;
    int min_exponent;  ///< of normal numbers; subnormal ones have the same step

    int min_step() const {
        return min_exponent - fraction_bits;
    }
    /// Exponent of the distance between the numbers around `value`.
    int step(double value) const {
        return value == 0 ? min_step() : std::max(std::ilogb(value), min_exponent) - fraction_bits;
    }
    uint32_t infinity() const {
        return 0x7fff >> fraction_bits << fraction_bits;
    }
};

Format format_of(pagegrad_dtype dtype) {
    return dtype == PAGEGRAD_BFLOAT16 ? Format{7, -126} : Format{10, -14};
}

}  // namespace

const char *dtype_name(pagegrad_dtype dtype) {
    return dtype == PAGEGRAD_FLOAT32 ? "f32" : dtype == PAGEGRAD_BFLOAT16 ? "bf16" : "f16";
}

double rounded(double value, pagegrad_dtype dtype) {
    return decoded(encoded(value, dtype), dtype);
}

uint32_t encoded(double value, pagegrad_dtype dtype) {
    if (dtype == PAGEGRAD_FLOAT32) {
        const auto single = static_cast<float>(value);
        uint32_t bits;
        std::memcpy(&bits, &single, sizeof(bits));
        return bits;
    }
    const Format format = format_of(dtype);
    const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) {
        return sign | format.infinity() | 1U << (format.fraction_bits - 1);
    }
    if (std::isinf(value)) {
        return sign | format.infinity();
    }
    // Significands count up through the exponents: one more than the largest of an exponent is the
    // smallest of the next, or infinity.
    const int step = format.step(value);
    const double significand = std::nearbyint(std::ldexp(std::abs(value), -step));  // ties to even
    const double bits = std::ldexp(step - format.min_step(), format.fraction_bits) + significand;
    return sign | static_cast<uint32_t>(std::min<double>(bits, format.infinity()));
}

float decoded(uint32_t bits, pagegrad_dtype dtype) {
    if (dtype == PAGEGRAD_FLOAT32) {
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    }
    const Format format = format_of(dtype);
    const uint32_t magnitude = bits & 0x7fff, one = 1U << format.fraction_bits;
    const uint32_t exponent = magnitude >> format.fraction_bits;
    float value = std::numeric_limits<float>::quiet_NaN();
    if (magnitude == format.infinity()) {
        value = std::numeric_limits<float>::infinity();
    } else if (magnitude < format.infinity()) {
        const auto significand = static_cast<float>(magnitude % one + (exponent > 0 ? one : 0));
        value = std::ldexp(significand,
                           format.min_step() + std::max(static_cast<int>(exponent) - 1, 0));
    }
    return (bits & 0x8000) != 0 ? -value : value;
}

}  // namespace pagegrad::test
