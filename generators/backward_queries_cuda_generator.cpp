/// dQ of tiles of query rows on a GPU's tensor cores: one thread block per task keeps packed query
/// rows of a sequence and goes past its keys, as the forward does. With backward_keys in place of
/// the fused backward it gives results that are bitwise the same on every run, for seven products
/// instead of five. Lists and layouts: lowering/README.md.
#include "attention_cuda.h"
#include "query_tiles_cuda.h"

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardQueriesCuda : public AttentionCuda<BackwardQueriesCuda> {
public:
    BackwardInputs in;
    RowOutput dq{"dq"};

    void generate() {
        const TileSchedule tiles = schedules().backward_queries;
        TileKernel &block = begin(tiles);
        const PaddedHead columns = head_columns();
        const QueryTiles rows(block, tiles, columns, tasks, queries, blocks, group, block_size);
        const Tile Q = rows.resident("Q", q), dO = rows.resident("dO", in.dout);
        const Tile K = rows.streamed("K", k_pool), V = rows.streamed("V", v_pool);
        const auto statistic = [&](StatisticsField field) {
            return block.resident_rows([&](const Expr &row) {
                const QueryRow at = rows.place(q, row);
                return in.statistic(field, in.row(at.batch, at.token, at.head));
            });
        };
        const RowVector lse = statistic(statistics_lse), delta = statistic(statistics_delta);

        Accumulator dQ = block.sum_over_steps(columns.padded());
        const Accumulator S = block.compute(Q * transposed(K));
        const Accumulator dP = block.compute(dO * transposed(V));
        const Expr unmasked = rows.decide_all_visible();
        const Fragment P = S.map([&](const Element &s) {
            return select(true_if(unmasked, rows.sees(s)),
                          probability(s.value, lse(s), scale_log2, exp2_instruction), 0.0f);
        });
        const Fragment dS =
            dP.map([&](const Element &dp) { return score_gradient(P(dp), dp.value, delta(dp)); });
        dQ += dS * K;
        block.end_step();

        const RowVector factor = block.final_rows(dQ, [&](const Row &) { return Expr(in.scale); });
        rows.store(dQ, dq, columns, factor);
        finish();
    }

    void schedule() {
        in.set_layout();
        dq.set_layout();
        schedule_tasks(forward_task_fields);
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardQueriesCuda, backward_queries_cuda)
