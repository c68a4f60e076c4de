/// The forward of tiles of query rows on a GPU's tensor cores: one thread block per task of a work
/// list keeps packed query rows of a sequence and goes past its keys, read through the block table,
/// with an online softmax. Lists and layouts: lowering/README.md.
#include "attention_algebra.h"
#include "cuda_work.h"
#include "lowering/tiles.h"
#include "paging.h"
#include "schedules/attention_cuda.h"

#include <memory>

namespace pagegrad {
namespace {

using namespace Halide;

class ForwardCuda : public Generator<ForwardCuda> {
public:
    GeneratorParam<Type> element{"element", BFloat(16)};      // of q, out and the pools
    GeneratorParam<int> fixed_head_dim{"fixed_head_dim", 0};  // 0: any up to 128, padded inside

    // Indices innermost first. The caller owns everything. A chunk is 8 elements, a word 2.
    Input<Buffer<int32_t, 2>> tasks{"tasks"};        // field, task
    Input<Buffer<int32_t, 2>> queries{"queries"};    // field, entry
    Input<Buffer<int32_t, 1>> blocks{"blocks"};      // pool blocks of all sequences
    Input<Buffer<>> q{"q", UInt(128), 4};            // chunk, head, token, batch
    Input<Buffer<>> k_pool{"k_pool", UInt(128), 4};  // chunk, KV head, slot, block
    Input<Buffer<>> v_pool{"v_pool", UInt(128), 4};  // chunk, KV head, slot, block
    Input<Buffer<uint32_t, 4>> out{"out"};           // word, head, token, batch: written
    Input<Buffer<float, 3>> lse{"lse"};              // head, token, batch: written
    Input<int> head_dim{"head_dim"};
    Input<int> block_size{"block_size"};
    Input<int> group{"group"};                // query heads of a KV head
    Input<float> scale_log2{"scale_log2"};    // of the scores, times log2(e)
    Output<Buffer<int32_t, 3>> done{"done"};  // lane, warp, task: not stored

    void generate() {
        const TileSchedule tiles = CudaSchedules().forward;
        kernel = std::make_unique<TileKernel>(tiles, element);
        TileKernel &block = *kernel;
        const PaddedHead head_columns(fixed_head_dim, head_dim);
        const int columns = head_columns.padded();
        const ForwardTask task(tasks, block.task);

        // Query rows: entries of a sequence for each head of the group.
        const auto exists = [&](const Expr &row) { return task.row_begin + row < task.row_end; };
        const auto packed = [&](const Expr &row) {
            return min(task.row_begin + row, task.row_end - 1);
        };
        const auto entry = [&](int field, const Expr &row) {
            const Expr index = task.query_begin + packed(row) / group;
            return queries(field, inside(index, queries.dim(1)));
        };
        const auto head = [&](const Expr &row) {
            return task.kv_head * group + packed(row) % group;
        };
        const Tile Q = block.resident("Q", columns, [&](const Expr &chunk, const Expr &row) {
            const QueryRow at(packed_rows(entry, head), q, row);
            return head_columns.copied(at.of(q, chunk), chunk, Internal::const_true());
        });

        // Keys; those past the end repeat the last one, which no query then sees.
        block.set_steps((task.key_end - task.key_begin + tiles.streamed_rows - 1) /
                        tiles.streamed_rows);
        const Expr first_key = task.key_begin + block.step * tiles.streamed_rows;
        const auto key = [&](const Expr &row) { return min(first_key + row, task.key_end - 1); };
        const auto pool_block =
            block.early_records("pool_block", 1, [&](const Expr &, const Expr &row) {
                const Expr index = task.block_begin + key(row) / block_size;
                return blocks(inside(index, blocks.dim(0)));
            });
        const auto pool_slot =
            block.early_rows("pool_slot", [&](const Expr &row) { return key(row) % block_size; });
        const auto keys_in = [&](auto &pool) {
            return [&](const Expr &chunk, const Expr &row) {
                const PoolRow at = clamp_to_pool({pool_block(0, row), pool_slot(row)}, pool);
                const Expr kv_head = inside(task.kv_head, pool.dim(1));
                return head_columns.copied(pool(chunk, kv_head, at.slot, at.block), chunk,
                                           Internal::const_true());
            };
        };
        const Tile K = block.streamed("K", columns, keys_in(k_pool));
        const Tile V = block.streamed("V", columns, keys_in(v_pool));

        // Most tiles of keys are seen by all rows: those need no mask.
        const auto all_visible = [&] {
            return block.decide(first_key >= task.all_begin &&
                                first_key + tiles.streamed_rows <= task.all_end);
        };
        const auto sees = [&](const Element &s) {
            return visible(first_key + s.column, entry(entry_key_begin, s.row),
                           min(entry(entry_key_end, s.row), task.key_end));
        };

        const Expr hidden = -1e30f;
        Accumulator O = block.sum_over_steps(columns);
        RowState largest = block.row_state(-1e30f), sum = block.row_state(0.0f);

        const Accumulator S = block.compute(Q * transposed(K));
        const auto score = [&](const Element &s) { return s.value * scale_log2; };
        Expr unmasked = all_visible();
        const RowVector top = S.map_rows([&](const Row &row) {
            Expr of_tile = hidden;
            for (const Element &s : row.elements) {
                of_tile = max(of_tile, select(true_if(unmasked, sees(s)), score(s), hidden));
            }
            return max(largest(row), row_max(of_tile));
        });
        const RowVector rescale =
            S.map_rows([&](const Row &row) { return exp2_instruction(largest(row) - top(row)); });
        unmasked = all_visible();
        const Fragment P = S.map([&](const Element &s) {
            return select(true_if(unmasked, sees(s)), exp2_instruction(score(s) - top(s)), 0.0f);
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
        const auto in_tensor = [&](auto &tensor, const Expr &row) {
            return QueryRow(packed_rows(entry, head), tensor, row);
        };
        O.store_to(
            [&](const Expr &row, const Expr &pair) { return in_tensor(out, row).of(out, pair); },
            inverse,
            [&](const Expr &row, const Expr &pair) {
                return exists(row) && head_columns.contains(pair, 2);
            });
        block.store_rows(
            row_lse,
            [&](const Expr &row) {
                const QueryRow at = in_tensor(q, row);
                return lse(at.head, at.token, at.batch);
            },
            exists);
        done(lane, warp, block.task) = block.result();
    }

    void schedule() {
        set_dense(tasks, forward_task_fields);
        set_dense(queries, entry_fields);
        for (auto *tensor : {&q, &k_pool, &v_pool}) {
            set_origin(*tensor);
        }
        set_origin(out);
        set_origin(lse);
        lse.dim(0).set_stride(Expr());
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

HALIDE_REGISTER_GENERATOR(pagegrad::ForwardCuda, forward_cuda)
