/// The materialised backward of one KV head of one sequence on dense keys and values: every matrix
/// of the formulas is stored. The schedule to read first, and the one to compare others with.
#include "attention_algebra.h"
#include "schedules/backward_dense_cpu.h"
#include "score_terms.h"

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardDense : public Generator<BackwardDense> {
public:
    GeneratorParam<bool> general{"general", false};  // with softcap and ALiBi

    // Indices innermost first. The caller owns everything. Heads are those of the KV head's group.
    // D of v and dout may be another one than that of k and q.
    Input<Buffer<float, 3>> q{"q"};                // d, head, query
    Input<Buffer<float, 3>> dout{"dout"};          // d, head, query
    Input<Buffer<float, 2>> lse_log2{"lse_log2"};  // head, query: see lse_to_log2()
    Input<Buffer<float, 2>> delta{"delta"};        // head, query
    Input<Buffer<float, 2>> k{"k"};                // d, key
    Input<Buffer<float, 2>> v{"v"};                // d, key
    // begin/end/diagonal, query: keys that it sees, and the one that the mask counts from
    Input<Buffer<int32_t, 2>> seen{"seen"};
    Input<float> scale{"scale"};
    ScoreTerms terms;                   // of general kernels
    Output<Buffer<float, 3>> dq{"dq"};  // d, head, query
    Output<Buffer<float, 2>> dk{"dk"};  // d, key
    Output<Buffer<float, 2>> dv{"dv"};  // d, key
    // Of general kernels: head, query: sum_j dS |p - j|
    Output<Buffer<float, 2>> *distance_sums = nullptr;

    void configure() {
        if (general) {
            terms.add_to(*this);
            distance_sums = add_output<Buffer<float, 2>>("distance_sums");
        }
    }

    void generate() {
        if (general) {
            terms.prepare();
        }
        const Expr heads = q.dim(1).extent(), queries = q.dim(2).extent();
        RDom over_d(0, q.dim(0).extent(), "over_d"), over_d2(0, dout.dim(0).extent(), "over_d2");
        RDom over_keys(0, k.dim(1).extent(), "over_keys");
        RDom over_rows({{0, heads}, {0, queries}}, "over_rows");
        const Expr x = over_rows.x, y = over_rows.y;

        f.Kt(j, d) = k(d, j);
        f.Vt(j, d) = v(d, j);
        f.S(j, h, i) += q(over_d, h, i) * f.Kt(j, over_d);
        f.dP(j, h, i) += dout(over_d2, h, i) * f.Vt(j, over_d2);
        define_gradients();
        dq(d, h, i) = 0.0f;
        dq(d, h, i) += f.dS(over_keys, h, i) * k(d, over_keys);
        dk(d, j) = 0.0f;
        dk(d, j) += f.dS(j, x, y) * q(d, x, y);
        dv(d, j) = 0.0f;
        dv(d, j) += f.P(j, x, y) * dout(d, x, y);
        if (general) {
            (*distance_sums)(h, i) = 0.0f;
            (*distance_sums)(h, i) += f.dS_biased(over_keys, h, i) * away(over_keys);
        }
        f.over_d = over_d;
        f.over_d2 = over_d2;
        f.over_keys = over_keys;
        f.over_rows = over_rows;
        f.dQ = dq;
        f.dK = dk;
        f.dV = dv;
    }

    void schedule() {
        for (auto *tensor : {&q, &dout}) {
            tensor->dim(0).set_min(0);
        }
        schedule_backward_dense_cpu(f, natural_vector_size<float>());
    }

private:
    /// P, and dS with the scale.
    void define_gradients() {
        const Expr sees = visible(j, seen(0, i), seen(1, i));
        const auto masked = [&](const Expr &p) { return select(sees, p, 0.0f); };
        if (!general) {
            f.P(j, h, i) = masked(probability(f.S(j, h, i), lse_log2(h, i), scale * log2_e));
            f.dS(j, h, i) = score_gradient(f.P(j, h, i), f.dP(j, h, i), delta(h, i)) * scale;
            return;
        }
        const CappedScore capped(f.S(j, h, i) * scale, terms.softcap());
        f.cap(j, h, i) = capped.derivative;
        f.P(j, h, i) = masked(
            probability(biased_score(capped.value, terms.slope(h), away(j)), lse_log2(h, i)));
        f.dS_biased(j, h, i) = score_gradient(f.P(j, h, i), f.dP(j, h, i), delta(h, i));
        f.dS(j, h, i) = f.dS_biased(j, h, i) * f.cap(j, h, i) * scale;
    }

    Expr away(const Expr &key) const {
        return distance(seen(2, i), key);
    }

    BackwardDenseFuncs f;
    Var d = f.d, j = f.j, h = f.h, i = f.i;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardDense, backward_dense)
