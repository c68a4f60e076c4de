/// Storing float32 results in the caller's dtype.
#pragma once

#include "Halide.h"

namespace pagegrad {

using Halide::Expr;

/// A float32 number rounded to nearest, ties to even. NaN stays NaN.
inline Expr to_dtype(const Expr &value, const Halide::Type &type) {
    using namespace Halide;
    if (type != BFloat(16)) {
        return cast(type, value);
    }
    // Halide's cast loses some NaNs.
    const Expr bits = reinterpret<uint32_t>(value);
    const Expr is_nan = (bits & 0x7fffffff) > 0x7f800000;
    const Expr rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Expr quiet = (bits >> 16) | 0x40;
    return reinterpret(type, cast<uint16_t>(select(is_nan, quiet, rounded)));
}

}  // namespace pagegrad
