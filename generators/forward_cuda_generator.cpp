/// The forward of tiles of query rows on a GPU's tensor cores: one thread block per task of a work
/// list keeps packed query rows of a sequence and goes past its keys, read through the block table,
/// with an online softmax. Lists and layouts: lowering/README.md.
#include "attention_cuda.h"
#include "query_tiles_cuda.h"

namespace pagegrad {
namespace {

using namespace Halide;

class ForwardCuda : public AttentionCuda<ForwardCuda> {
public:
    RowOutput out{"out"};
    // Indices innermost first. The caller owns everything.
    Input<Buffer<float, 3>> lse{"lse"};  // head, token, batch: written

    void generate() {
        const TileSchedule tiles = schedules().forward;
        TileKernel &block = begin(tiles);
        const PaddedHead columns = head_columns();
        const QueryTiles rows(block, tiles, columns, tasks, queries, blocks, group, block_size);
        const Tile Q = rows.resident("Q", q);
        const Tile K = rows.streamed("K", k_pool), V = rows.streamed("V", v_pool);

        const Expr hidden = -1e30f;
        Accumulator O = block.sum_over_steps(columns.padded());
        RowState largest = block.row_state(-1e30f), sum = block.row_state(0.0f);

        const Accumulator S = block.compute(Q * transposed(K));
        const auto score = [&](const Element &s) { return s.value * scale_log2; };
        Expr unmasked = rows.decide_all_visible();
        const RowVector top = S.map_rows([&](const Row &row) {
            Expr of_tile = hidden;
            for (const Element &s : row.elements) {
                of_tile = max_instruction(
                    of_tile, select(true_if(unmasked, rows.sees(s)), score(s), hidden));
            }
            return max_instruction(largest(row), row_max(of_tile));
        });
        const RowVector rescale =
            S.map_rows([&](const Row &row) { return exp2_instruction(largest(row) - top(row)); });
        unmasked = rows.decide_all_visible();
        const Fragment P = S.map([&](const Element &s) {
            return select(true_if(unmasked, rows.sees(s)), exp2_instruction(score(s) - top(s)),
                          0.0f);
        });
        largest.set([&](const Row &row) { return top(row); });
        sum.set([&](const Row &row) { return sum(row) * rescale(row) + P.sum_of(row); });
        O.scale_rows(rescale);
        O += P * V;
        block.end_step();

        const RowVector total =
            block.final_rows(O, [&](const Row &row) { return row_sum(sum(row)); });
        const RowVector inverse = block.final_rows(
            O, [&](const Row &row) { return select(total(row) > 0.0f, 1.0f / total(row), 0.0f); });
        const RowVector row_lse = block.final_rows(O, [&](const Row &row) {
            const Expr minus_infinity = reinterpret<float>(Expr(int32_t(0xff800000)));
            return select(total(row) > 0.0f, (largest(row) + log2_instruction(total(row))) * ln_2,
                          minus_infinity);
        });
        rows.store(O, out, columns, inverse);
        block.store_rows(
            row_lse,
            [&](const Expr &row) {
                const QueryRow at = rows.place(q, row);
                return lse(at.head, at.token, at.batch);
            },
            [&](const Expr &row) { return rows.exists(row); });
        finish();
    }

    void schedule() {
        out.set_layout();
        set_origin(lse);
        lse.dim(0).set_stride(Expr());
        schedule_tasks(forward_task_fields);
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::ForwardCuda, forward_cuda)
