#include "schedules/forward_cpu.h"

namespace pagegrad {

using namespace Halide;

void schedule_forward_cpu(ForwardFuncs &f, const ForwardCpuSchedule &schedule) {
    const int NR = schedule.registers.columns;
    const int V = schedule.registers.vector;
    Var column("column"), block_c("block_c");
    RVar tile = f.sum[2];

    f.acc.update()
        .split(f.d, f.d, column, NR, TailStrategy::GuardWithIf)
        .reorder(column, f.sum[0], f.sum[1], f.d, tile)
        .vectorize(column, V)
        .unroll(column)
        .unroll(f.sum[0]);
    f.state.update().reorder(f.state_sum[0], f.state_sum[1], f.state_sum[2]);
    f.state.update().compute_with(f.acc.update(), tile);

    f.O_block.compute_at(f.acc, f.sum[1]);
    schedule_product(f.O_block, f.d, f.i, f.over_keys, {f.ib}, schedule.registers);
    for (Func elements : {f.score, f.P}) {
        elements.compute_at(f.acc, tile);
        schedule_elements(elements, f.c, f.r, schedule.kv_tile, schedule.query_tile,
                          schedule.registers);
    }
    f.S.compute_at(f.score, f.r).bound_extent(f.cb, 1).bound_extent(f.rb, 1);
    schedule_product(f.S, f.ci, f.ri, f.over_d, {f.cb, f.rb}, schedule.registers);

    // Sums and maxima over the keys of a row: by lanes first, then over the lanes.
    for (Func row : {f.tile_max, f.tile_sum}) {
        RVar outer("outer"), lane("lane");
        Var u("u");
        Func lanes = row.update().split(f.over_keys.x, outer, lane, V).rfactor(lane, u);
        lanes.compute_at(row, f.r).vectorize(u, V).update().vectorize(u, V);
        row.compute_at(f.acc, tile).update().atomic().vectorize(lane, V);
    }
    for (Func row : {f.new_max, f.new_sum, f.rescale, f.key_begin, f.key_end}) {
        row.compute_at(f.acc, tile);
    }

    f.Q.compute_at(f.acc, tile).vectorize(f.d, V);
    f.pool_block.compute_root();
    f.pool_slot.compute_root();
    f.V.compute_root().vectorize(f.d, V);
    f.Kt.compute_root().split(f.c, f.c, block_c, V).reorder(block_c, f.d, f.c).vectorize(block_c);
}

}  // namespace pagegrad
