/// The inputs of general kernels: what they do with scores besides scaling and masking.
#pragma once

#include "Halide.h"

namespace pagegrad {

using Halide::Expr;

/// Softcap and ALiBi slopes, added to the inputs of a generator. Absent ones are zero.
class ScoreTerms {
public:
    /// To be called in configure().
    template<typename Generator>
    void add_to(Generator &generator) {
        cap = generator.template add_input<float>("softcap");
        slopes = generator.template add_input<Halide::Buffer<float, 1>>("alibi_slopes");
    }

    /// To be called in generate().
    void prepare() const {
        slopes->dim(0).set_min(0).set_stride(Expr());  // one zero may stand for all heads
    }

    Expr softcap() const {
        return *cap;
    }
    Expr slope(const Expr &head) const {
        return (*slopes)(Halide::unsafe_promise_clamped(head, 0, slopes->dim(0).extent() - 1));
    }

private:
    Halide::GeneratorInput<float> *cap = nullptr;
    Halide::GeneratorInput<Halide::Buffer<float, 1>> *slopes = nullptr;
};

}  // namespace pagegrad
