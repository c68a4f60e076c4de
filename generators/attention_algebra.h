/// The algebra of attention, as expressions that every pipeline and every schedule share.
/// Formulas: pagegrad.h. Scores are kept as they come from scaled queries; the change to base 2
/// happens where the exponential is taken.
#pragma once

#include "Halide.h"

namespace pagegrad {

using Halide::Expr;

constexpr float log2_e = 1.44269504088896340736f;
constexpr float ln_2 = 0.693147180559945309417f;

/// 2^x to about 2e-7 relative for -126 <= x < 128, exactly 0 from -127 down, between them off by
/// less than 2^-126: round to an integer, a polynomial (Taylor terms of 2^f for |f| <= 1/2, of
/// degree 6, the last one fitted), and the integer added to the exponent, which is 0 at -127.
inline Expr exp2(const Expr &argument) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; compilers must not
    // cancel the addition.
    constexpr float shifter = 12582912.0f;
    const Expr x = Halide::max(argument, -127.0f);
    const Expr shifted = Halide::strict_float(x + shifter);
    const Expr f = x - Halide::strict_float(shifted - shifter);
    Expr power = 1.5403530e-4f;
    for (const float coefficient :
         {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
        power = power * f + coefficient;
    }
    return Halide::reinterpret<float>(Halide::reinterpret<int32_t>(power) +
                                      (Halide::reinterpret<int32_t>(shifted) << 23));
}

/// Whether a query sees a key: the plan gives each query row a half-open range of keys. One
/// unsigned comparison checks both ends.
inline Expr visible(const Expr &key, const Expr &key_begin, const Expr &key_end) {
    return Halide::reinterpret<uint32_t>(key - key_begin) <
           Halide::reinterpret<uint32_t>(Halide::max(key_end - key_begin, 0));
}

/// 2^x to about 2 ulp: an instruction of GPUs (lowering/ptx_expander.h).
inline Expr exp2_instruction(const Expr &x) {
    return Halide::Internal::Call::make(Halide::Float(32), "fast_exp2", {x},
                                        Halide::Internal::Call::PureExtern);
}

/// log2(x), as an instruction of GPUs.
inline Expr log2_instruction(const Expr &x) {
    return Halide::Internal::Call::make(Halide::Float(32), "fast_log2", {x},
                                        Halide::Internal::Call::PureExtern);
}

/// max(a, b) as one instruction of GPUs: LLVM makes two of Halide's where it chains them.
inline Expr max_instruction(const Expr &a, const Expr &b) {
    return Halide::Internal::Call::make(Halide::Float(32), "fast_max", {a, b},
                                        Halide::Internal::Call::PureExtern);
}

/// P = exp(s - lse), at most 1 whatever the rounding of lse. lse comes times log2(e), and the
/// scores are multiplied by it here: where they still lack their scale, it comes with that.
inline Expr probability(const Expr &score, const Expr &lse_log2, const Expr &scale_log2 = log2_e,
                        Expr (*exponential)(const Expr &) = exp2) {
    return exponential(Halide::min(score * scale_log2 - lse_log2, 0.0f));
}

/// Scores of the forward, times log2(e). Hidden ones lie so far below lowest_max, where maxima
/// start, that their exponentials vanish next to one.
constexpr float lowest_max = -1e29f;
inline Expr masked_score(const Expr &score, const Expr &scale, const Expr &sees) {
    return Halide::select(sees, score * (scale * log2_e), -1e30f);
}

/// dS = P (dP - delta), without the score scale, which commutes with the products that follow. Zero
/// where P is: hidden keys need no second mask.
inline Expr score_gradient(const Expr &p, const Expr &dp, const Expr &delta) {
    return p * (dp - delta);
}

/// lse in the form that probability() takes. Rows without keys have lse = -inf (some forwards write
/// +inf): a huge one makes their probabilities 0. Tested on the bits, since kernels are compiled as
/// if there were no infinities.
inline Expr lse_to_log2(const Expr &lse) {
    const Expr magnitude = Halide::reinterpret<int32_t>(lse) & 0x7fffffff;
    return Halide::select(magnitude >= 0x7f800000, 1e30f, lse * log2_e);
}

}  // namespace pagegrad
