/// The materialised backward of one KV head of one sequence on dense keys and values: every matrix
/// of the formulas is stored. The schedule to read first, and the one to compare others with.
#include "attention_algebra.h"
#include "schedules/backward_dense_cpu.h"

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardDense : public Generator<BackwardDense> {
public:
    // Indices innermost first. The caller owns everything. Heads are those of the KV head's group.
    Input<Buffer<float, 3>> q{"q"};                // d, head, query
    Input<Buffer<float, 3>> dout{"dout"};          // d, head, query
    Input<Buffer<float, 2>> lse_log2{"lse_log2"};  // head, query: see lse_to_log2()
    Input<Buffer<float, 2>> delta{"delta"};        // head, query
    Input<Buffer<float, 2>> k{"k"};                // d, key
    Input<Buffer<float, 2>> v{"v"};                // d, key
    Input<Buffer<int32_t, 2>> seen{"seen"};        // begin/end, query: keys that it sees
    Input<float> scale{"scale"};
    Output<Buffer<float, 3>> dq{"dq"};  // d, head, query
    Output<Buffer<float, 2>> dk{"dk"};  // d, key
    Output<Buffer<float, 2>> dv{"dv"};  // d, key

    void generate() {
        const Expr D = q.dim(0).extent(), heads = q.dim(1).extent(), queries = q.dim(2).extent();
        RDom over_d(0, D, "over_d"), over_keys(0, k.dim(1).extent(), "over_keys");
        RDom over_rows({{0, heads}, {0, queries}}, "over_rows");
        const Expr x = over_rows.x, y = over_rows.y;

        f.Kt(j, d) = k(d, j);
        f.Vt(j, d) = v(d, j);
        f.S(j, h, i) += q(over_d, h, i) * f.Kt(j, over_d);
        f.dP(j, h, i) += dout(over_d, h, i) * f.Vt(j, over_d);
        const Expr sees = visible(j, seen(0, i), seen(1, i));
        f.P(j, h, i) =
            select(sees, probability(f.S(j, h, i), lse_log2(h, i), scale * log2_e), 0.0f);
        f.dS(j, h, i) = score_gradient(f.P(j, h, i), f.dP(j, h, i), delta(h, i)) * scale;
        dq(d, h, i) = 0.0f;
        dq(d, h, i) += f.dS(over_keys, h, i) * k(d, over_keys);
        dk(d, j) = 0.0f;
        dk(d, j) += f.dS(j, x, y) * q(d, x, y);
        dv(d, j) = 0.0f;
        dv(d, j) += f.P(j, x, y) * dout(d, x, y);
        f.over_d = over_d;
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
    BackwardDenseFuncs f;
    Var d = f.d, j = f.j, h = f.h, i = f.i;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardDense, backward_dense)
