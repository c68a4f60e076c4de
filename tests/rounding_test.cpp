// The rounding that the tests of 16-bit tensors rely on, over all numbers of the formats.
#include "tests/support/rounding.h"
#include "tools/npy.h"

#include <gtest/gtest.h>

#include <cmath>

namespace pagegrad::test {
namespace {

class Rounding : public testing::TestWithParam<pagegrad_dtype> {
protected:
    const pagegrad_dtype dtype = GetParam();
    const uint32_t infinity = dtype == PAGEGRAD_BFLOAT16 ? 0x7f80 : 0x7c00;
};

TEST_P(Rounding, decodes_as_the_tools_do) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const auto half = static_cast<uint16_t>(bits);
        const float want =
            dtype == PAGEGRAD_BFLOAT16 ? bfloat16_to_float(half) : half_to_float(half);
        const float got = decoded(bits, dtype);
        if (std::isnan(want)) {
            EXPECT_TRUE(std::isnan(got)) << bits;
        } else {
            EXPECT_EQ(got, want) << bits;
            EXPECT_EQ(std::signbit(got), std::signbit(want)) << bits;
        }
    }
}

TEST_P(Rounding, keeps_numbers_of_the_format) {
    for (uint32_t bits = 0; bits <= infinity; bits++) {
        EXPECT_EQ(encoded(decoded(bits, dtype), dtype), bits);
        EXPECT_EQ(encoded(decoded(bits | 0x8000, dtype), dtype), bits | 0x8000);
    }
}

/// Subnormal numbers, changes of the exponent and overflow are among the neighbours.
TEST_P(Rounding, goes_to_the_nearest_and_from_the_middle_to_the_even) {
    for (uint32_t below = 0; below < infinity; below++) {
        const uint32_t above = below + 1;
        const double low = decoded(below, dtype);
        const double high = above == infinity ? 2 * low - decoded(below - 1, dtype)  // one step on
                                              : decoded(above, dtype);
        const double middle = (low + high) / 2;
        EXPECT_EQ(encoded(middle, dtype), below % 2 == 0 ? below : above);
        EXPECT_EQ(encoded(std::nextafter(middle, low), dtype), below);
        EXPECT_EQ(encoded(std::nextafter(middle, high), dtype), above);
        EXPECT_EQ(encoded(-middle, dtype), 0x8000 | (below % 2 == 0 ? below : above));
    }
}

TEST_P(Rounding, keeps_what_is_no_number) {
    EXPECT_TRUE(std::isnan(rounded(NAN, dtype)));
    EXPECT_EQ(rounded(INFINITY, dtype), INFINITY);
    EXPECT_EQ(rounded(-INFINITY, dtype), -INFINITY);
    EXPECT_EQ(rounded(1e300, dtype), INFINITY);
    EXPECT_EQ(rounded(1e-300, dtype), 0);
}

INSTANTIATE_TEST_SUITE_P(, Rounding, testing::Values(PAGEGRAD_BFLOAT16, PAGEGRAD_FLOAT16),
                         [](const auto &info) { return dtype_name(info.param); });

/// Numbers written by hand, so that the formats are not taken from the code under test alone.
TEST(RoundingByHand, matches) {
    EXPECT_EQ(encoded(1, PAGEGRAD_BFLOAT16), 0x3f80U);
    EXPECT_EQ(encoded(1, PAGEGRAD_FLOAT16), 0x3c00U);
    EXPECT_EQ(encoded(1, PAGEGRAD_FLOAT32), 0x3f800000U);
    EXPECT_EQ(rounded(1 + 0x1p-8, PAGEGRAD_BFLOAT16), 1);
    EXPECT_EQ(rounded(1 + 0x3p-8, PAGEGRAD_BFLOAT16), 1 + 0x4p-8);
    EXPECT_EQ(rounded(1 + 0x1p-11, PAGEGRAD_FLOAT16), 1);
    EXPECT_EQ(rounded(1 + 0x1p-24, PAGEGRAD_FLOAT32), 1);
    EXPECT_EQ(rounded(65519, PAGEGRAD_FLOAT16), 65504);
    EXPECT_EQ(rounded(65520, PAGEGRAD_FLOAT16), INFINITY);
    EXPECT_EQ(rounded(0x3p-25, PAGEGRAD_FLOAT16), 0x2p-24);  // subnormal, half a step
    // In one step: by way of float32 it would end on the tie, and go down to 1.
    EXPECT_EQ(rounded(1 + 0x1p-8 + 0x1p-40, PAGEGRAD_BFLOAT16), 1 + 0x1p-7);
}

}  // namespace
}  // namespace pagegrad::test
