#include "schedules/backward_cpu.h"

namespace pagegrad {

using namespace Halide;

void schedule_backward_cpu(BackwardFuncs &f, const BackwardCpuSchedule &schedule) {
    const RegisterTile &tile = schedule.registers;
    const int MR = tile.rows, NR = tile.columns, V = tile.vector;
    Var column("column"), block_c("block_c");

    // dQ, and dK with dV, walk over the pairs of tiles together: for every pair the scores are
    // computed once, used by both sums, and dropped.
    RVar pair = f.row_sum[2];
    f.dQ.update()
        .split(f.d, f.d, column, NR, TailStrategy::GuardWithIf)
        .reorder(column, f.row_sum[0], f.row_sum[1], f.d, f.row_sum[2], f.row_sum[3])
        .vectorize(column, V)
        .unroll(column)
        .unroll(f.row_sum[0]);
    f.dKV.update()
        .split(f.d, f.d, column, NR, TailStrategy::GuardWithIf)
        .reorder(column, f.key_sum[0], f.key_sum[1], f.d, f.key_sum[2], f.key_sum[3])
        .vectorize(column, V)
        .unroll(column)
        .unroll(f.key_sum[0]);
    f.dKV.update().compute_with(f.dQ.update(), pair);

    f.dQ_block.compute_at(f.dQ, f.row_sum[1]);
    schedule_product(f.dQ_block, f.d, f.i, f.over_keys, {f.ib}, tile);
    for (Func block : {f.dK_block, f.dV_block}) {
        block.compute_at(f.dKV, f.key_sum[1]);
        schedule_product(block, f.d, f.i, f.over_rows, {f.ib}, tile);
    }

    for (Func elements : {f.P, f.dS}) {
        elements.compute_at(f.dQ, pair);
        schedule_elements(elements, f.c, f.r, schedule.kv_tile, schedule.query_tile, tile);
    }
    // A select on visibility would shrink the region computed, and register blocks would no longer
    // have a constant size: the extents are stated.
    f.S.compute_at(f.P, f.r);
    f.dP.compute_at(f.dS, f.r);
    for (Func scores : {f.S, f.dP}) {
        scores.bound_extent(f.cb, 1).bound_extent(f.rb, 1);
    }
    schedule_product(f.S, f.ci, f.ri, f.over_d, {f.cb, f.rb}, tile);
    schedule_product(f.dP, f.ci, f.ri, f.over_d2, {f.cb, f.rb}, tile);

    // Packed query rows live as long as a query tile, packed keys as long as the call.
    for (Func packed : {f.Q, f.dO}) {
        packed.compute_at(f.dQ, f.row_sum[3]).vectorize(f.d, V);
    }
    for (Func row : {f.lse, f.delta, f.key_begin, f.key_end}) {
        row.compute_at(f.dQ, f.row_sum[3]);
    }
    for (Func block : {f.block_key_begin, f.block_key_end}) {
        block.compute_at(f.dQ, f.row_sum[3]);
    }
    f.depth.compute_at(f.dQ, pair);
    f.first_row.compute_at(f.dQ, pair)
        .vectorize(f.ib, NR / MR)
        .update()
        .reorder(f.ib, f.in_tile)
        .vectorize(f.ib, NR / MR);
    f.pool_block.compute_root();
    f.pool_slot.compute_root();
    f.K.compute_root().vectorize(f.d, V);
    for (Func transposed : {f.Kt, f.Vt}) {
        transposed.compute_root()
            .split(f.c, f.c, block_c, V)
            .reorder(block_c, f.d, f.c)
            .vectorize(block_c);
    }
}

}  // namespace pagegrad
