/// The algebra of attention, as expressions that every pipeline and every schedule share.
/// Formulas: pagegrad.h. Scores are kept as they come from scaled queries; the change to base 2
/// happens where the exponential is taken.
#pragma once

#include "Halide.h"

namespace pagegrad {

using Halide::Expr;

constexpr float log2_e = 1.44269504088896340736f;
constexpr float ln_2 = 0.693147180559945309417f;

/// 2^x to about 2e-7 relative for -126 <= x < 128, and 0 from -127 down: round to an integer, a
/// polynomial (Taylor terms of 2^f for |f| <= 1/2, of degree 6, the last one fitted), and the
/// integer added to the exponent, of which -127 leaves nothing.
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
/// start, that their exponentials vanish next to one; and lowest_max is so low that every score of
/// less than 2^125 counts.
constexpr float hidden_score = -0x1p127f;
constexpr float lowest_max = -0x1p126f;
inline Expr masked_score(const Expr &score, const Expr &scale, const Expr &sees) {
    return Halide::select(sees, score * (scale * log2_e), hidden_score);
}

/// tanh(x) and its derivative, each to a few roundings relative to itself: near zero a polynomial,
/// and else from exp(-2|x|), so that neither difference cancels.
struct Tanh {
    Expr value, derivative;

    explicit Tanh(const Expr &x, Expr (*exponential)(const Expr &) = exp2) {
        const Expr magnitude = Halide::abs(x), square = x * x;
        const Expr decay = exponential(magnitude * (-2 * log2_e));
        const Expr inverse = 1.0f / (1.0f + decay);
        // Minimax for |x| < 0.625, to 7e-2 * 2^-24 before rounding.
        Expr series = -5.71704496e-3f;
        for (const float coefficient :
             {2.06505872e-2f, -5.37434981e-2f, 1.33314913e-1f, -3.33332839e-1f}) {
            series = series * square + coefficient;
        }
        const Expr far = 1.0f - 2.0f * decay * inverse;
        value = Halide::select(magnitude < 0.625f, x + x * (square * series),
                               Halide::select(x < 0.0f, -far, far));
        derivative = 4.0f * decay * inverse * inverse;
    }
};

/// softcap * tanh(score / softcap), and what the gradient of the score gains by it. A softcap of
/// zero leaves scores alone.
struct CappedScore {
    Expr value, derivative;

    CappedScore(const Expr &score, const Expr &softcap, Expr (*exponential)(const Expr &) = exp2) {
        // Scores over a tiny softcap are huge, but no NaN; one beyond all scores has an inverse
        // yet.
        const Expr cap = Halide::min(softcap, 0x1p125f);
        const Tanh step(score * Halide::min(1.0f / cap, 1e38f), exponential);
        value = Halide::select(softcap > 0.0f, cap * step.value, score);
        derivative = Halide::select(softcap > 0.0f, step.derivative, 1.0f);
    }
};

/// |p - j|: how far a key is from the diagonal of its query, for ALiBi.
inline Expr distance(const Expr &position, const Expr &key) {
    return Halide::abs(Halide::cast<float>(position - key));
}

/// A score less its ALiBi bias; no parameters make it so large that sums with it overflow.
inline Expr biased_score(const Expr &score, const Expr &slope, const Expr &distance) {
    return Halide::clamp(score - slope * distance, -0x1p125f, 0x1p125f);
}

/// dS = P (dP - delta), without the score scale, which commutes with the products that follow. Zero
/// where P is: hidden keys need no second mask.
inline Expr score_gradient(const Expr &p, const Expr &dp, const Expr &delta) {
    return p * (dp - delta);
}

/// Whether a number is finite. Tested on the bits, since kernels are compiled as if there were no
/// infinities.
inline Expr is_number(const Expr &x) {
    return (Halide::reinterpret<int32_t>(x) & 0x7fffffff) < 0x7f800000;
}

/// lse in the form that probability() takes. Rows without keys have lse = -inf (some forwards write
/// +inf): a huge one makes their probabilities 0. Sinks may be so large that base 2 has no room.
inline Expr lse_to_log2(const Expr &lse) {
    return Halide::select(is_number(lse), Halide::clamp(lse, -2e38f, 2e38f) * log2_e, 1e30f);
}

/// exp(x) for x <= 0, which may be far below.
inline Expr exp_of_negative(const Expr &x) {
    return exp2(Halide::max(x, -100.0f) * log2_e);
}

/// What a forward ends with: the factor of a row's unnormalised output, and its lse. `largest` is
/// the row's largest score times log2(e), `sum` that of its exponentials, `sink` the logit that
/// takes part in the sum without a value, or -inf. The largest score alone makes the sum at least
/// 1, so a smaller one is that of a row without keys.
struct RowResult {
    Expr factor, lse;

    RowResult(const Expr &largest, const Expr &sum, const Expr &sink) {
        using Halide::select;
        const Expr minus_infinity = Halide::reinterpret<float>(Expr(int32_t(0xff800000)));
        const Expr sees_keys = sum >= 0.5f, has_sink = is_number(sink);
        const Expr largest_key = largest * ln_2;
        const Expr top = select(sees_keys, Halide::max(largest_key, sink), sink);
        const Expr weight = select(sees_keys, exp_of_negative(largest_key - top), 0.0f);
        const Expr total = sum * weight + exp_of_negative(sink - top);
        factor = select(has_sink, weight / total, select(sees_keys, 1.0f / sum, 0.0f));
        lse = select(has_sink, top + Halide::log(total),
                     select(sees_keys, largest_key + Halide::log(sum), minus_infinity));
    }
};

}  // namespace pagegrad
