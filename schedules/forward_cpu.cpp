#include "schedules/forward_cpu.h"

namespace pagegrad {

using namespace Halide;

void schedule_forward_cpu(ForwardFuncs &f, const ForwardCpuSchedule &schedule) {
    const RegisterTile &registers = schedule.registers;
    const int NR = registers.columns, V = registers.vector;
    Var column("column"), group("group"), lane("lane");
    const RVar tile = f.sum[2];

    f.acc.update()
        .split(f.d, f.d, column, NR, TailStrategy::GuardWithIf)
        .reorder(column, f.sum[0], f.sum[1], f.d, tile)
        .vectorize(column, V)
        .unroll(column)
        .unroll(f.sum[0]);
    f.state.update().reorder(f.state_sum[0], f.state_sum[1], f.state_sum[2]);
    f.state.update().compute_with(f.acc.update(), tile);

    f.O_block.compute_at(f.acc, f.sum[1]);
    schedule_product(f.O_block, f.d, f.i, f.over_words, {f.ib}, registers);
    f.score.compute_at(f.acc, tile);
    schedule_elements(f.score, f.r, f.c, schedule.query_tile, schedule.kv_tile, registers);
    f.S.compute_at(f.score, f.c).bound_extent(f.rb, 1).bound_extent(f.cb, 1);
    schedule_product(f.S, f.ri, f.ci, f.over_d, {f.rb, f.cb}, registers);

    f.P.compute_at(f.acc, tile)
        .bound_storage(f.r, schedule.query_tile)
        .bound_storage(f.c, schedule.kv_tile)
        .store_in(MemoryType::Stack)
        .split(f.r, f.r, lane, NR)
        .vectorize(lane, V)
        .unroll(lane);
    if (schedule.word_depth > 1) {
        f.P_keys.compute_at(f.acc, tile)
            .bound_storage(f.r, schedule.query_tile)
            .bound_storage(f.c, schedule.kv_tile)
            .store_in(MemoryType::Stack)
            .vectorize(f.r, V);
    }

    // Maxima and sums of a few vectors of rows at a time, in registers.
    for (auto [of_keys, of_rows] : {std::pair(f.tile_max, f.new_max), {f.tile_sum, f.new_sum}}) {
        of_rows.compute_at(f.acc, tile)
            .bound_storage(f.r, schedule.query_tile)
            .store_in(MemoryType::Stack)
            .split(f.r, group, lane, NR)
            .vectorize(lane, V)
            .unroll(lane);
        of_keys.compute_at(of_rows, group).bound_extent(f.r, NR).vectorize(f.r, V).unroll(f.r);
        of_keys.update().reorder(f.r, f.over_keys.x).vectorize(f.r, V).unroll(f.r);
    }
    std::vector<Func> rows{f.rescale, f.key_begin, f.key_end};
    if (f.slope.defined()) {
        rows.insert(rows.end(), {f.slope, f.position});
    }
    for (Func row : rows) {
        row.compute_at(f.acc, tile)
            .bound_storage(f.r, schedule.query_tile)
            .store_in(MemoryType::Stack)
            .vectorize(f.r, V);
    }
    for (Func block : {f.block_key_begin, f.block_key_end}) {
        block.compute_at(f.acc, tile)
            .bound_storage(f.ib, schedule.query_tile / registers.rows)
            .store_in(MemoryType::Stack);
    }
    for (Func block : {f.wide_key_begin, f.wide_key_end}) {
        block.compute_at(f.acc, tile)
            .bound_storage(f.rb, schedule.query_tile / NR)
            .store_in(MemoryType::Stack);
    }
    f.depth.compute_at(f.acc, tile)
        .bound_storage(f.rb, schedule.query_tile / NR)
        .bound_storage(f.cb, schedule.kv_tile / registers.rows)
        .store_in(MemoryType::Stack);
}

}  // namespace pagegrad
