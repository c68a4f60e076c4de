/// The fused backward of tiles of keys on a GPU's tensor cores: one thread block per task of a work
/// list reads K and V through the block table and packed query rows through a row list, and adds to
/// dQ and to the gradients of the pool. Lists and layouts: lowering/README.md.
#include "attention_algebra.h"
#include "attention_cuda.h"
#include "paging.h"

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardCuda : public AttentionCuda<BackwardCuda> {
public:
    // Which gradients, of which dq wants the others too.
    GeneratorParam<bool> with_dq{"with_dq", true}, with_dk{"with_dk", true},
        with_dv{"with_dv", true};

    // Indices innermost first. The caller owns everything. A pair is 2 floats.
    BackwardInputs in;
    Input<Buffer<uint64_t, 2>> dq{"dq"};            // pair (padded), row: dQ / scale is added
    Input<Buffer<uint64_t, 4>> dk_pool{"dk_pool"};  // pair, KV head, slot, block: added to
    Input<Buffer<uint64_t, 4>> dv_pool{"dv_pool"};  // pair, KV head, slot, block: added to

    void generate() {
        const TileSchedule tiles = with_dk ? schedules().backward : schedules().backward_values;
        TileKernel &block = begin(tiles);
        const PaddedHead columns = head_columns();
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
                return columns.copied(
                    pool(chunk, inside(task.kv_head, pool.dim(1)), row.slot, row.block), chunk,
                    Internal::const_true());
            };
        };
        const Tile K = block.resident("K", columns.padded(), keys_in(k_pool));
        const Tile V = with_dk ? block.resident("V", columns.padded(), keys_in(v_pool)) : Tile();

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
            return in.row(entry(entry_batch, row), entry(entry_token, row), head(row));
        };
        const auto rows_of = [&](auto &tensor) {
            return [&](const Expr &chunk, const Expr &row) {
                const QueryRow at(packed_rows(entry, head), tensor, row);
                return columns.copied(at.of(tensor, chunk), chunk, exists(row));
            };
        };
        const Tile Q = block.streamed("Q", columns.padded(), rows_of(q));
        const Tile dO = block.streamed("dO", columns.padded(), rows_of(in.dout));
        const auto statistic = block.streamed_records(
            "statistic", statistics_fields, [&](const Expr &field, const Expr &row) {
                return value_or_zero(in.statistic(field, row_index(row)), exists(row));
            });

        // Most tiles of queries see all keys: those need no mask.
        const Expr end = task.first_key + task.num_keys;
        const auto key_begin = [&](const Expr &row) { return entry(entry_key_begin, row); };
        const auto key_end = [&](const Expr &row) { return min(entry(entry_key_end, row), end); };
        const Expr all_visible = block.decide_for_all_streamed([&](const Expr &row) {
            return key_begin(row) <= task.first_key &&
                   key_end(row) >= task.first_key + tiles.resident_rows;
        });

        const auto sum_if = [&](bool wanted) {
            return wanted ? block.sum_over_steps(columns.padded()) : Accumulator();
        };
        Accumulator dV = sum_if(with_dv), dK = sum_if(with_dk);

        // Scores and probabilities are transposed: keys x queries.
        const Accumulator S = block.compute(K * transposed(Q));
        const Accumulator dP = with_dk ? block.compute(V * transposed(dO)) : Accumulator();
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
        if (with_dv) {
            dV += P * dO;
        }
        Fragment dS;
        if (with_dk) {
            dS = dP.map([&](const Element &dp) {
                return score_gradient(P(dp), dp.value, statistic(statistics_delta, dp.column));
            });
            dK += dS * Q;
        }
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
            return key < task.num_keys && columns.contains(pair, 2);
        };
        if (with_dv) {
            dV.add_to(gradients_in(dv_pool), 1.0f, key_exists);
        }
        if (with_dk) {
            dK.add_to(gradients_in(dk_pool), in.scale, key_exists);
        }
        finish();
    }

    void schedule() {
        in.set_layout();
        set_dense(dq, head_columns().padded() / 2);
        for (auto *pool : {&dk_pool, &dv_pool}) {
            set_origin(*pool);
        }
        schedule_tasks(task_fields);
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardCuda, backward_cuda)
