/// The one tolerance of all tests, and the comparison that uses it.
///
/// A result is computed in float32 and stored in its format. So it must lie between the numbers of
/// that format that `expected - tolerance` and `expected + tolerance` round to: half a step more on
/// either side, at most 2^-8 of the value for bfloat16 and 2^-11 for float16, half a subnormal step
/// near zero, and infinity beyond the largest number.
///
/// Float32: what is relative to Quantity::size, and a floor where float32 loses its precision.
///
/// Products in bfloat16: one factor of every term (P or dS, computed in float32) is rounded to 8
/// significant bits, which changes a term t by at most 2^-8 |t|. These errors are independent, have
/// zero mean and, since significands are spread, a standard deviation of 0.43 * 2^-8 |t|: that of
/// the sum is 0.43 * 2^-8 sqrt(sum t^2). Three times 2^-8 is 7 standard deviations, which leaves
/// room for terms that occur twice, and is the strict bound for 9 equal terms.
#pragma once

#include "rounding.h"
#include "tests/reference/attention_reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>
#include <vector>

namespace pagegrad::test {

/// What a kernel's products of P and dS are computed from.
enum class Products { Float32, Bfloat16 };

/// Allowed error of a sum of products, relative to the root of its terms' squares.
inline double product_tolerance(Products products) {
    return products == Products::Bfloat16 ? 3 * 0x1p-8 : 0;
}

/// Allowed error of an entry before it is stored.
inline double tolerance(double size, double squares, Products products) {
    return relative_tolerance * size + product_tolerance(products) * std::sqrt(squares) +
           1e3 * FLT_MIN;
}

/// Compares block by block of `width` entries (one head of one token), so that a large block
/// excuses no error in a small one. `dtype` is the format in which `got` was stored.
inline testing::AssertionResult is_close(const std::vector<float> &got, const Quantity &expected,
                                         std::size_t width, pagegrad_dtype dtype = PAGEGRAD_FLOAT32,
                                         Products products = Products::Float32) {
    if (got.size() != expected.value.size()) {
        return testing::AssertionFailure()
               << got.size() << " entries, not " << expected.value.size();
    }
    for (std::size_t begin = 0; begin < got.size(); begin += width) {
        const auto largest = [begin, width](const std::vector<double> &values) {
            const auto first = values.begin() + static_cast<std::ptrdiff_t>(begin);
            return *std::max_element(first, first + static_cast<std::ptrdiff_t>(width));
        };
        const double allowed =
            tolerance(largest(expected.size), largest(expected.squares), products);
        for (std::size_t at = begin; at < begin + width; at++) {
            const double want = expected.value[at];
            const double low = rounded(want - allowed, dtype);
            const double high = rounded(want + allowed, dtype);
            if (!(got[at] >= low && got[at] <= high)) {
                return testing::AssertionFailure()
                       << "entry " << at - begin << " of block " << begin / width << " is "
                       << got[at] << ", not " << want << ": off by " << std::abs(got[at] - want)
                       << ", allowed " << low << " to " << high;
            }
        }
    }
    return testing::AssertionSuccess();
}

/// Largest error over largest value.
inline double relative_error(const std::vector<float> &got, const Quantity &expected) {
    double error = 0, largest = 0;
    for (std::size_t at = 0; at < got.size(); at++) {
        const double off = std::abs(got[at] - expected.value[at]);
        error = std::isnan(off) ? HUGE_VAL : std::max(error, off);
        largest = std::max(largest, std::abs(expected.value[at]));
    }
    return error / largest;
}

/// A plain bound of relative_error: 1e-5, half a step of a 16-bit format, and products in bfloat16.
inline double plain_bound(pagegrad_dtype dtype, Products products) {
    const double half_step = dtype == PAGEGRAD_FLOAT32    ? 0
                             : dtype == PAGEGRAD_BFLOAT16 ? 0x1p-8
                                                          : 0x1p-11;
    return 1e-5 + half_step + product_tolerance(products);
}

}  // namespace pagegrad::test
