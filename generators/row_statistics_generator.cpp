/// What the backward needs of each query row besides q and dout: its LSE in base 2, and
/// delta = <dout, out> - dlse.
#include "attention_algebra.h"

namespace pagegrad {
namespace {

using namespace Halide;

class RowStatistics : public Generator<RowStatistics> {
public:
    // Indices innermost first. The caller owns everything.
    Input<Buffer<float, 4>> dout{"dout"};  // d, head, token, batch
    Input<Buffer<float, 4>> out{"out"};    // d, head, token, batch
    Input<Buffer<float, 3>> lse{"lse"};    // head, token, batch
    Input<Buffer<float, 3>> dlse{"dlse"};  // head, token, batch; any buffer if there is none
    Input<bool> has_dlse{"has_dlse"};
    Output<Buffer<float, 3>> lse_log2{"lse_log2"};  // head, token, batch
    Output<Buffer<float, 3>> delta{"delta"};        // head, token, batch

    void generate() {
        over_d = RDom(0, dout.dim(0).extent(), "over_d");
        product(h, t, b) += dout(over_d, h, t, b) * out(over_d, h, t, b);
        delta(h, t, b) = product(h, t, b) - select(has_dlse, dlse(h, t, b), 0.0f);
        lse_log2(h, t, b) = lse_to_log2(lse(h, t, b));
    }

    void schedule() {
        const int vector = natural_vector_size<float>();
        RVar outer("outer"), lane("lane");
        product.compute_at(delta, h);
        product.update().split(over_d, outer, lane, vector, TailStrategy::GuardWithIf);
        Var u("u");
        Func lanes = product.update().rfactor(lane, u);
        lanes.compute_at(delta, h).vectorize(u).update().vectorize(u);
        product.update().atomic().vectorize(lane);
    }

private:
    Var h{"h"}, t{"t"}, b{"b"};
    Func product{"product"};
    RDom over_d;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::RowStatistics, row_statistics)
