/// dQ of tiles of query rows on a GPU's tensor cores: one thread block per task keeps packed query
/// rows of a sequence and goes past its keys, as the forward does. With backward_keys in place of
/// the fused backward it gives results that are bitwise the same on every run, for seven products
/// instead of five. Lists and layouts: lowering/README.md.
#include "query_tiles_cuda.h"
#include "schedules/attention_cuda.h"

#include <memory>

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardQueriesCuda : public Generator<BackwardQueriesCuda> {
public:
    GeneratorParam<Type> element{"element", BFloat(16)};      // of q, dout, dq and the pools
    GeneratorParam<int> fixed_head_dim{"fixed_head_dim", 0};  // 0: any up to 128, padded inside

    GeneratorParam<int> streamed_rows{"streamed_rows",
                                      CudaSchedules().backward_queries.streamed_rows};
    GeneratorParam<int> warps{"warps", CudaSchedules().backward_queries.warps};

    // Indices innermost first. The caller owns everything. A chunk is 8 elements, a word 2.
    Input<Buffer<int32_t, 2>> tasks{"tasks"};          // field, task
    Input<Buffer<int32_t, 2>> queries{"queries"};      // field, entry
    Input<Buffer<int32_t, 1>> blocks{"blocks"};        // pool blocks of all sequences
    Input<Buffer<>> q{"q", UInt(128), 4};              // chunk, head, token, batch
    Input<Buffer<>> dout{"dout", UInt(128), 4};        // chunk, head, token, batch
    Input<Buffer<>> k_pool{"k_pool", UInt(128), 4};    // chunk, KV head, slot, block
    Input<Buffer<>> v_pool{"v_pool", UInt(128), 4};    // chunk, KV head, slot, block
    Input<Buffer<float, 2>> statistics{"statistics"};  // lse_log2/delta, row
    Input<Buffer<uint32_t, 4>> dq{"dq"};               // word, head, token, batch: written
    Input<int> head_dim{"head_dim"};
    Input<int> block_size{"block_size"};
    Input<int> group{"group"};  // query heads of a KV head
    Input<int> num_heads{"num_heads"};
    Input<int> num_tokens{"num_tokens"};      // of a batch
    Input<float> scale{"scale"};              // of the scores
    Input<float> scale_log2{"scale_log2"};    // scale * log2(e)
    Output<Buffer<int32_t, 3>> done{"done"};  // lane, warp, task: not stored

    void generate() {
        const TileSchedule tiles{streamed_rows, 16 * warps, warps};
        kernel = std::make_unique<TileKernel>(tiles, element);
        TileKernel &block = *kernel;
        const PaddedHead head_columns(fixed_head_dim, head_dim);
        const QueryTiles rows(block, tiles, head_columns, tasks, queries, blocks, group,
                              block_size);
        const Tile Q = rows.resident("Q", q), dO = rows.resident("dO", dout);
        const Tile K = rows.streamed("K", k_pool), V = rows.streamed("V", v_pool);
        const auto statistic = [&](StatisticsField field) {
            return block.resident_rows([&](const Expr &row) {
                const QueryRow at = rows.place(q, row);
                const Expr index = (at.batch * num_tokens + at.token) * num_heads + at.head;
                return statistics(field, inside(index, statistics.dim(1)));
            });
        };
        const RowVector lse = statistic(statistics_lse), delta = statistic(statistics_delta);

        Accumulator dQ = block.sum_over_steps(head_columns.padded());
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

        const RowVector factor = block.final_rows(dQ, [&](const Row &) { return Expr(scale); });
        dQ.store_to(
            [&](const Expr &row, const Expr &pair) { return rows.place(dq, row).of(dq, pair); },
            factor,
            [&](const Expr &row, const Expr &pair) {
                return rows.exists(row) && head_columns.contains(pair, 2);
            });
        done(lane, warp, block.task) = block.result();
    }

    void schedule() {
        set_dense(tasks, forward_task_fields);
        set_dense(queries, entry_fields);
        set_dense(statistics, statistics_fields);
        for (auto *tensor : {&q, &dout, &k_pool, &v_pool}) {
            set_origin(*tensor);
        }
        set_origin(dq);
        set_origin(blocks);
        set_origin(done);
        kernel->schedule_behind(done, lane, warp, get_pipeline());
    }

private:
    Var lane{"lane"}, warp{"warp"};
    std::unique_ptr<TileKernel> kernel;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardQueriesCuda, backward_queries_cuda)
