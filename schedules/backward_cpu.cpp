#include "schedules/backward_cpu.h"

#include <tuple>

namespace pagegrad {

using namespace Halide;

namespace {

bool is_general(const BackwardFuncs &f) {
    return f.P_and_cap.defined();
}

/// P and dS of a pair of inner tiles, from register blocks of scores.
void schedule_scores(BackwardFuncs &f, const BackwardCpuSchedule &schedule, const RVar &pair) {
    const RegisterTile &tile = schedule.registers;
    Func P = is_general(f) ? f.P_and_cap : f.P, dS = is_general(f) ? f.dS_biased : f.dS;
    for (Func elements : {P, dS}) {
        elements.compute_at(f.dQ, pair);
        schedule_elements(elements, f.c, f.r, schedule.kv_tile, schedule.query_tile, tile);
    }
    // A select on visibility would shrink the region computed, and register blocks would no longer
    // have a constant size: the extents are stated.
    f.S.compute_at(P, f.r);
    f.dP.compute_at(dS, f.r);
    for (Func scores : {f.S, f.dP}) {
        scores.bound_extent(f.cb, 1).bound_extent(f.rb, 1);
    }
    schedule_product(f.S, f.ci, f.ri, f.over_d, {f.cb, f.rb}, tile);
    schedule_product(f.dP, f.ci, f.ri, f.over_d2, {f.cb, f.rb}, tile);
}

/// P and dS as pairs.
void schedule_words(BackwardFuncs &f, const BackwardCpuSchedule &schedule, const RVar &pair) {
    for (Func words : {f.P_rows, f.dS_rows, f.dS_keys}) {
        words.compute_at(f.dQ, pair)
            .store_in(MemoryType::Stack)
            .bound_storage(f.c, schedule.kv_tile)
            .bound_storage(f.r, schedule.query_tile)
            .vectorize(f.c, schedule.registers.vector);
    }
}

/// What general kernels have besides.
void schedule_general(BackwardFuncs &f, const BackwardCpuSchedule &schedule, const RVar &pair) {
    const int V = schedule.registers.vector;
    f.dS.compute_at(f.dQ, pair)
        .store_in(MemoryType::Stack)
        .bound_storage(f.c, schedule.kv_tile)
        .bound_storage(f.r, schedule.query_tile)
        .vectorize(f.c, V);
    f.distances.update().compute_with(f.dQ.update(), pair);
    f.tile_distance.compute_at(f.distances, f.distance_sum[0]);
    Var lane("lane");
    Func lanes = f.tile_distance.update().rfactor(f.in_row[0], lane);
    lanes.compute_at(f.distances, f.distance_sum[0])
        .vectorize(lane, V)
        .update()
        .reorder(lane, f.in_row[1])
        .vectorize(lane, V);
    f.tile_distance.update().atomic().vectorize(f.in_row[0], V);
    for (Func row : {f.slope, f.position}) {
        row.compute_root().bound_storage(f.r, schedule.query_tile).store_in(MemoryType::Stack);
    }
}

}  // namespace

void schedule_backward_cpu(BackwardFuncs &f, const BackwardCpuSchedule &schedule) {
    const RegisterTile &tile = schedule.registers;
    const int MR = tile.rows, NR = tile.columns, V = tile.vector;
    Var column("column");

    // dQ, dK and dV walk over the pairs of tiles together: for every pair the scores are computed
    // once, used by all sums, and dropped.
    const RVar pair = f.row_sum[2];
    f.dQ.update()
        .split(f.d, f.d, column, NR, TailStrategy::GuardWithIf)
        .reorder(column, f.row_sum[0], f.row_sum[1], f.d, pair)
        .vectorize(column, V)
        .unroll(column)
        .unroll(f.row_sum[0]);
    for (auto [sum, loops, block] :
         {std::tuple(f.dK, f.key_sum, f.dK_block), std::tuple(f.dV, f.value_sum, f.dV_block)}) {
        sum.update()
            .split(f.d, f.d, column, NR, TailStrategy::GuardWithIf)
            .reorder(column, loops[0], loops[1], f.d, loops[2])
            .vectorize(column, V)
            .unroll(column)
            .unroll(loops[0]);
        sum.update().compute_with(f.dQ.update(), pair);
        block.compute_at(sum, loops[1]);
        schedule_product(block, f.d, f.i, f.over_rows, {f.ib}, tile);
    }

    f.dQ_block.compute_at(f.dQ, f.row_sum[1]);
    schedule_product(f.dQ_block, f.d, f.i, f.over_keys, {f.ib}, tile);
    schedule_scores(f, schedule, pair);
    if (schedule.word_depth > 1) {
        schedule_words(f, schedule, pair);
    }
    if (is_general(f)) {
        schedule_general(f, schedule, pair);
    }

    f.sees_block.compute_at(f.dQ, pair);
    f.first_row.compute_at(f.dQ, pair)
        .vectorize(f.ib, NR / MR)
        .update()
        .reorder(f.ib, f.in_tile)
        .vectorize(f.ib, NR / MR);
    for (Func row : {f.lse, f.delta, f.key_begin, f.key_end}) {
        row.compute_root().bound_storage(f.r, schedule.query_tile).store_in(MemoryType::Stack);
    }
    for (Func block : {f.block_key_begin, f.block_key_end}) {
        block.compute_root()
            .bound_storage(f.ib, schedule.query_tile / MR)
            .store_in(MemoryType::Stack);
    }
}

}  // namespace pagegrad
