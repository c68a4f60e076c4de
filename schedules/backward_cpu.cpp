#include "schedules/backward_cpu.h"

namespace pagegrad {

using namespace Halide;

namespace {

/// S or dP, one register block at a time.
void schedule_scores(Func scores, const BackwardFuncs &f, const RDom &over_d,
                     const RegisterTile &tile) {
    // The select on visibility would shrink the region computed, and the block would no longer
    // have a constant size.
    scores.bound_extent(f.ci, tile.columns)
        .bound_extent(f.ri, tile.rows)
        .bound_extent(f.cb, 1)
        .bound_extent(f.rb, 1);
    keep_in_registers(scores, f.ci, f.ri, tile.vector);
    scores.update()
        .reorder(f.ci, f.ri, over_d, f.cb, f.rb)
        .vectorize(f.ci, tile.vector)
        .unroll(f.ci)
        .unroll(f.ri);
}

}  // namespace

void schedule_backward_cpu(BackwardFuncs &f, const BackwardCpuSchedule &schedule) {
    const RegisterTile &tile = schedule.registers;
    const int MR = tile.rows, NR = tile.columns, V = tile.vector;
    Var column("column"), block_c("block_c"), block_r("block_r");

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
    f.dK_block.compute_at(f.dKV, f.key_sum[1]);
    f.dV_block.compute_at(f.dKV, f.key_sum[1]);
    for (Func block : {f.dQ_block, f.dK_block, f.dV_block}) {
        block.bound_extent(f.d, NR).bound_extent(f.i, MR);
        keep_in_registers(block, f.d, f.i, V);
    }
    f.dQ_block.update()
        .reorder(f.d, f.i, f.over_keys, f.ib)
        .vectorize(f.d, V)
        .unroll(f.d)
        .unroll(f.i);
    for (Func block : {f.dK_block, f.dV_block}) {
        block.update()
            .reorder(f.d, f.i, f.over_rows, f.ib)
            .vectorize(f.d, V)
            .unroll(f.d)
            .unroll(f.i);
    }

    for (Func element : {f.P, f.dS}) {
        element.compute_at(f.dQ, pair)
            .bound_storage(f.c, schedule.kv_tile)
            .bound_storage(f.r, schedule.query_tile)
            .store_in(MemoryType::Stack)
            .split(f.c, f.c, block_c, NR)
            .split(f.r, f.r, block_r, MR)
            .reorder(block_c, block_r, f.r, f.c)
            .vectorize(block_c, V)
            .unroll(block_c)
            .unroll(block_r);
    }
    f.S.compute_at(f.P, f.r);
    f.dP.compute_at(f.dS, f.r);
    schedule_scores(f.S, f, f.over_d, tile);
    schedule_scores(f.dP, f, f.over_d2, tile);

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
