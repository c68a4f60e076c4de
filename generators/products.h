/// Matrix products in float32, or in bfloat16 with float32 sums.
#pragma once

#include "Halide.h"

namespace pagegrad {

using Halide::Expr;

/// The operands of a product are words: float32 numbers, or pairs of bfloat16 that are neighbours
/// along the sum, the first one in the low half (the operands of vdpbf16ps).
class Products {
public:
    explicit Products(const Halide::Type &element) : paired(element == Halide::BFloat(16)) {
    }

    /// Numbers in a word.
    int depth() const {
        return paired ? 2 : 1;
    }
    Halide::Type word_type() const {
        return paired ? Halide::Int(32) : Halide::Float(32);
    }

    /// Word x of an operand, of which `at` gives the numbers along the sum, in any dtype.
    template<typename At>
    Expr word(const At &at, const Expr &x) const {
        return paired ? pair(at(x * 2), at(x * 2 + 1)) : Halide::cast<float>(at(x));
    }

    /// sum + a * b, for all numbers in the words.
    Expr multiply_add(const Expr &sum, const Expr &a, const Expr &b) const {
        using Halide::Internal::Call;
        return paired ? Call::make(Halide::Float(32), "dpbf16ps", {sum, a, b}, Call::PureExtern)
                      : sum + a * b;
    }

private:
    /// Rounds float32 to nearest, ties away from zero: one addition, where ties to even would take
    /// four instructions.
    static Expr pair(const Expr &low, const Expr &high) {
        using namespace Halide;
        if (low.type() == BFloat(16)) {
            return reinterpret<int32_t>(
                concat_bits({reinterpret<uint16_t>(low), reinterpret<uint16_t>(high)}));
        }
        const auto rounded = [](const Expr &x) { return reinterpret<uint32_t>(x) + 0x8000; };
        return reinterpret<int32_t>((rounded(low) >> 16) | (rounded(high) & ~Expr(0xffffu)));
    }

    bool paired;
};

}  // namespace pagegrad
