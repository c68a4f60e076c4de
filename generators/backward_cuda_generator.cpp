/// The fused backward of tiles of keys on a GPU's tensor cores: one thread block per task of a work
/// list reads K and V through the block table and packed query rows through a row list, and adds to
/// dQ and to the gradients of the pool. Lists and layouts: lowering/README.md.
#include "attention_algebra.h"
#include "cuda_work.h"
#include "lowering/tiles.h"
#include "paging.h"
#include "schedules/attention_cuda.h"

#include <memory>

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardCuda : public Generator<BackwardCuda> {
public:
    GeneratorParam<Type> element{"element", BFloat(16)};      // of q, dout and the pools
    GeneratorParam<int> fixed_head_dim{"fixed_head_dim", 0};  // 0: any up to 128, padded inside

    GeneratorParam<bool> with_dq{"with_dq", true};

    // Indices innermost first. The caller owns everything. A chunk is 8 elements, a pair 2 floats.
    Input<Buffer<int32_t, 2>> tasks{"tasks"};          // field, task
    Input<Buffer<int32_t, 2>> queries{"queries"};      // field, entry
    Input<Buffer<int32_t, 1>> blocks{"blocks"};        // pool blocks of all runs
    Input<Buffer<>> q{"q", UInt(128), 4};              // chunk, head, token, batch
    Input<Buffer<>> dout{"dout", UInt(128), 4};        // chunk, head, token, batch
    Input<Buffer<>> k_pool{"k_pool", UInt(128), 4};    // chunk, KV head, slot, block
    Input<Buffer<>> v_pool{"v_pool", UInt(128), 4};    // chunk, KV head, slot, block
    Input<Buffer<float, 2>> statistics{"statistics"};  // lse_log2/delta, row
    Input<Buffer<uint64_t, 2>> dq{"dq"};               // pair (padded), row: dQ / scale is added
    Input<Buffer<uint64_t, 4>> dk_pool{"dk_pool"};     // pair, KV head, slot, block: added to
    Input<Buffer<uint64_t, 4>> dv_pool{"dv_pool"};     // pair, KV head, slot, block: added to
    Input<int> head_dim{"head_dim"};
    Input<int> block_size{"block_size"};
    Input<int> group{"group"};  // query heads of a KV head
    Input<int> num_heads{"num_heads"};
    Input<int> num_tokens{"num_tokens"};      // of a batch
    Input<float> scale{"scale"};              // of the scores
    Input<float> scale_log2{"scale_log2"};    // scale * log2(e)
    Output<Buffer<int32_t, 3>> done{"done"};  // lane, warp, task: not stored

    void generate() {
        const TileSchedule tiles = CudaSchedules().backward;
        kernel = std::make_unique<TileKernel>(tiles, element);
        TileKernel &block = *kernel;
        const PaddedHead head_columns(fixed_head_dim, head_dim);
        const int columns = head_columns.padded();
        const Task task(tasks, block.task);

        // Keys of the tile; those past the end repeat the last one, which no query then sees.
        const auto pool_row = [&](auto &pool, const Expr &key) {
            const auto block_of = [&](const Expr &i) {
                return blocks(inside(task.block_begin + i, blocks.dim(0)));
            };
            return clamp_to_pool(
                find_in_blocks(block_of, block_size, task.first_slot, min(key, task.num_keys - 1)),
                pool);
        };
        const auto keys_in = [&](auto &pool) {
            return [&](const Expr &chunk, const Expr &key) {
                const PoolRow row = pool_row(pool, key);
                return head_columns.copied(
                    pool(chunk, inside(task.kv_head, pool.dim(1)), row.slot, row.block), chunk,
                    Internal::const_true());
            };
        };
        const Tile K = block.resident("K", columns, keys_in(k_pool));
        const Tile V = block.resident("V", columns, keys_in(v_pool));

        // Query rows: every entry of the task's list for each head of the group.
        const Expr num_rows = (task.query_end - task.query_begin) * group;
        block.set_steps((num_rows + tiles.streamed_rows - 1) / tiles.streamed_rows);
        // From the last one back, so that neighbouring tiles of keys, which causal queries see from
        // different ones on, read and add to the same rows at the same time.
        const Expr tile =
            (num_rows + tiles.streamed_rows - 1) / tiles.streamed_rows - 1 - block.step;
        const auto packed = [&](const Expr &row) { return tile * tiles.streamed_rows + row; };
        const auto exists = [&](const Expr &row) { return packed(row) < num_rows; };
        const auto entry =
            block.early_records("entry", entry_fields, [&](const Expr &field, const Expr &row) {
                const Expr entry = min(task.query_begin + packed(row) / group, task.query_end - 1);
                return value_or_zero(queries(field, inside(entry, queries.dim(1))), exists(row));
            });
        const auto head = block.early_rows(
            "head", [&](const Expr &row) { return task.kv_head * group + packed(row) % group; });
        const auto row_index = [&](const Expr &row) {
            return (entry(entry_batch, row) * num_tokens + entry(entry_token, row)) * num_heads +
                   head(row);
        };
        const auto rows_of = [&](auto &tensor) {
            return [&](const Expr &chunk, const Expr &row) {
                const QueryRow at(packed_rows(entry, head), tensor, row);
                return head_columns.copied(at.of(tensor, chunk), chunk, exists(row));
            };
        };
        const Tile Q = block.streamed("Q", columns, rows_of(q));
        const Tile dO = block.streamed("dO", columns, rows_of(dout));
        const auto statistic = block.streamed_records(
            "statistic", statistics_fields, [&](const Expr &field, const Expr &row) {
                const Expr index = inside(row_index(row), statistics.dim(1));
                return value_or_zero(statistics(field, index), exists(row));
            });

        // Most tiles of queries see all keys: those need no mask.
        const Expr end = task.first_key + task.num_keys;
        const auto key_begin = [&](const Expr &row) { return entry(entry_key_begin, row); };
        const auto key_end = [&](const Expr &row) { return min(entry(entry_key_end, row), end); };
        const Expr all_visible = block.decide_for_all_streamed([&](const Expr &row) {
            return key_begin(row) <= task.first_key &&
                   key_end(row) >= task.first_key + tiles.resident_rows;
        });

        Accumulator dV = block.sum_over_steps(columns), dK = block.sum_over_steps(columns);

        // Scores and probabilities are transposed: keys x queries.
        const Accumulator S = block.compute(K * transposed(Q));
        const Accumulator dP = block.compute(V * transposed(dO));
        if (with_dq) {
            block.issue_products();
        }
        const Fragment P = S.map([&](const Element &s) {
            const Expr sees =
                visible(task.first_key + s.row, key_begin(s.column), key_end(s.column));
            return select(true_if(all_visible, sees),
                          probability(s.value, statistic(statistics_lse, s.column), scale_log2,
                                      exp2_instruction),
                          0.0f);
        });
        dV += P * dO;
        const Fragment dS = dP.map([&](const Element &dp) {
            return score_gradient(P(dp), dp.value, statistic(statistics_delta, dp.column));
        });
        dK += dS * Q;
        if (with_dq) {
            const Accumulator dQ = block.compute(transposed(block.exchange("dS", dS)) * K);
            dQ.add_to([&](const Expr &row, const Expr &pair) {
                return dq(pair, inside(row_index(row), dq.dim(1)));
            });
        }
        block.end_step();

        const auto gradients_in = [&](auto &pool) {
            return [&](const Expr &key, const Expr &pair) {
                const PoolRow row = pool_row(pool, key);
                return pool(pair, inside(task.kv_head, pool.dim(1)), row.slot, row.block);
            };
        };
        const auto key_exists = [&](const Expr &key, const Expr &pair) {
            return key < task.num_keys && head_columns.contains(pair, 2);
        };
        dV.add_to(gradients_in(dv_pool), 1.0f, key_exists);
        dK.add_to(gradients_in(dk_pool), scale, key_exists);
        done(lane, warp, block.task) = block.result();
    }

    void schedule() {
        set_dense(tasks, task_fields);
        set_dense(queries, entry_fields);
        for (auto *tensor : {&q, &dout, &k_pool, &v_pool}) {
            set_origin(*tensor);
        }
        for (auto *pool : {&dk_pool, &dv_pool}) {
            set_origin(*pool);
        }
        set_dense(dq, PaddedHead(fixed_head_dim, head_dim).padded() / 2);
        set_dense(statistics, statistics_fields);
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

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardCuda, backward_cuda)
