#include "schedules/backward_dense_cpu.h"

namespace pagegrad {

using namespace Halide;

void schedule_backward_dense_cpu(BackwardDenseFuncs &f, int vector) {
    // Whole matrices, vectors along their rows, and a few rows at a time so that a vector of the
    // right operand serves more than one of them.
    const auto tail = TailStrategy::GuardWithIf;
    constexpr int rows = 4;
    Var inner("inner"), column("column");
    for (Func operand : {f.Kt, f.Vt}) {
        operand.compute_root().vectorize(f.j, vector, tail);
    }
    for (auto [scores, over_d] : {std::pair(f.S, f.over_d), std::pair(f.dP, f.over_d2)}) {
        scores.compute_root().vectorize(f.j, vector, tail);
        scores.update()
            .split(f.j, f.j, column, 2 * vector, tail)
            .split(f.i, f.i, inner, rows, tail)
            .reorder(column, inner, over_d, f.j, f.h, f.i)
            .vectorize(column, vector)
            .unroll(column)
            .unroll(inner);
    }
    std::vector<Func> matrices{f.P, f.dS};
    if (f.cap.defined()) {
        matrices.insert(matrices.end(), {f.cap, f.dS_biased});
    }
    for (Func matrix : matrices) {
        matrix.compute_root().vectorize(f.j, vector, tail);
    }
    f.dQ.vectorize(f.d, vector, tail);
    f.dQ.update().reorder(f.d, f.over_keys, f.h, f.i).vectorize(f.d, vector, tail);
    for (Func sum : {f.dK, f.dV}) {
        sum.vectorize(f.d, vector, tail);
        sum.update()
            .split(f.j, f.j, inner, rows, tail)
            .reorder(f.d, inner, f.over_rows.x, f.over_rows.y, f.j)
            .vectorize(f.d, vector, tail)
            .unroll(inner);
    }
}

}  // namespace pagegrad
