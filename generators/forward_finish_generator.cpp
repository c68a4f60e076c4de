/// The end of the forward: output rows and their LSE from the state of the online softmax.
#include "attention_algebra.h"
#include "dtypes.h"
#include "paging.h"

namespace pagegrad {
namespace {

using namespace Halide;

class ForwardFinish : public Generator<ForwardFinish> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};

    // Indices innermost first. The caller owns everything.
    Input<Buffer<float, 2>> acc{"acc"};          // d, row: see forward
    Input<Buffer<float, 1>> row_max{"row_max"};  // row, times log2(e)
    Input<Buffer<float, 1>> row_sum{"row_sum"};  // row
    Input<Buffer<float, 1>> sinks{"sinks"};      // head; -inf: none
    Input<Buffer<int32_t, 2>> rows{"rows"};      // field, row
    Output<Buffer<void, 4>> out{"out"};          // d, head, token, batch: the rows listed
    Output<Buffer<float, 3>> lse{"lse"};         // head, token, batch: the rows listed

    void configure() {
        out.set_type(dtype);
    }

    void generate() {
        RDom x(0, rows.dim(1).extent(), "x"), y(0, rows.dim(1).extent(), "y");
        const RowResult row(row_max(r), row_sum(r), sinks(QueryRow(rows, out, r).head));
        result(r) = Tuple(row.factor, row.lse);
        const QueryRow to(rows, out, x), lse_to(rows, out, y);
        out(d, h, t, b) = undef(dtype);
        out(d, to.head, to.token, to.batch) = to_dtype(acc(d, x) * result(x)[0], dtype);
        lse(h, t, b) = undef<float>();
        lse(lse_to.head, lse_to.token, lse_to.batch) = result(y)[1];
    }

    void schedule() {
        const int vector = natural_vector_size<float>();
        result.compute_root().vectorize(r, vector, TailStrategy::GuardWithIf);
        out.update().vectorize(d, vector, TailStrategy::GuardWithIf);
        rows.dim(0).set_bounds(0, row_fields);
        sinks.dim(0).set_min(0).set_stride(Expr());  // one -inf may stand for all
        out.dim(0).set_min(0);
    }

private:
    Var d{"d"}, h{"h"}, t{"t"}, b{"b"}, r{"r"};
    Func result{"result"};
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::ForwardFinish, forward_finish)
