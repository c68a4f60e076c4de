/// The one tolerance of all tests, and the comparison that uses it.
#pragma once

#include "tests/reference/attention_reference.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>
#include <vector>

namespace pagegrad::test {

/// Allowed error of an entry whose rounding errors are proportional to `size` (see Quantity). The
/// floor is where float32 loses its precision.
inline double tolerance(double size) {
    return relative_tolerance * size + 1e3 * FLT_MIN;
}

/// Compares block by block of `width` entries (one head of one token), so that a large block
/// excuses no error in a small one.
inline testing::AssertionResult is_close(const std::vector<float> &got, const Quantity &expected,
                                         std::size_t width) {
    if (got.size() != expected.value.size()) {
        return testing::AssertionFailure()
               << got.size() << " entries, not " << expected.value.size();
    }
    for (std::size_t begin = 0; begin < got.size(); begin += width) {
        const auto size = expected.size.begin() + static_cast<std::ptrdiff_t>(begin);
        const double allowed =
            tolerance(*std::max_element(size, size + static_cast<std::ptrdiff_t>(width)));
        for (std::size_t at = begin; at < begin + width; at++) {
            const double want = expected.value[at];
            if (got[at] != want && !(std::abs(got[at] - want) <= allowed)) {
                return testing::AssertionFailure()
                       << "entry " << at - begin << " of block " << begin / width << " is "
                       << got[at] << ", not " << want << ": off by " << std::abs(got[at] - want)
                       << ", allowed " << allowed;
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

}  // namespace pagegrad::test
