/// What the GPU kernels share that keep packed query rows of a sequence and go past its keys: who
/// the rows are, the stream of keys through the block table, and the mask.
#pragma once

#include "attention_algebra.h"
#include "cuda_work.h"
#include "lowering/tiles.h"
#include "paging.h"

namespace pagegrad {

/// A result for each query row, in 16 bits or in float32.
struct RowOutput {
    // Indices innermost first. The caller owns everything: both views have the same memory.
    Halide::GeneratorInput<Halide::Buffer<uint32_t, 4>> words;  // word of 2, head, token, batch
    Halide::GeneratorInput<Halide::Buffer<uint64_t, 4>> pairs;  // pair, head, token, batch
    Halide::GeneratorInput<int> is_f32;                         // not 0: float32

    explicit RowOutput(const std::string &name)
        : words(name), pairs(name + "_f32"), is_f32(name + "_is_f32") {
    }

    void set_layout() {
        set_origin(words);
        set_origin(pairs);
    }
};

class QueryTiles {
public:
    using Words = Halide::GeneratorInput<Halide::Buffer<int32_t, 2>>;
    using Blocks = Halide::GeneratorInput<Halide::Buffer<int32_t, 1>>;

    /// The lists outlive the object.
    QueryTiles(TileKernel &block, const TileSchedule &tiles, const PaddedHead &head_columns,
               Words &tasks, Words &queries, Blocks &blocks, const Expr &group,
               const Expr &block_size)
        : block(block), tiles(tiles), head_columns(head_columns), queries(queries), blocks(blocks),
          task(tasks, block.task), group(group),
          first_key(task.key_begin + block.step * tiles.streamed_rows) {
        block.set_steps((task.key_end - task.key_begin + tiles.streamed_rows - 1) /
                        tiles.streamed_rows);
        // The range of keys that a row sees stays in registers.
        key_begin =
            block.resident_rows([&](const Expr &row) { return entry(entry_key_begin, row); });
        key_end = block.resident_rows(
            [&](const Expr &row) { return min(entry(entry_key_end, row), task.key_end); });
        pool_block = block.early_records("pool_block", 1, [&](const Expr &, const Expr &row) {
            return blocks(inside(task.block_begin + key(row) / block_size, blocks.dim(0)));
        });
        pool_slot =
            block.early_rows("pool_slot", [&](const Expr &row) { return key(row) % block_size; });
    }

    /// Whether a row of the tile is one of the task's.
    Expr exists(const Expr &row) const {
        return task.row_begin + row < task.row_end;
    }

    /// Where a row stands in a tensor. Rows that do not exist repeat the last one.
    template<typename Tensor>
    QueryRow place(const Tensor &tensor, const Expr &row) const {
        const auto entries = [this](int field, const Expr &row) { return entry(field, row); };
        const auto heads = [this](const Expr &row) {
            return task.kv_head * group + packed(row) % group;
        };
        return QueryRow(packed_rows(entries, heads), tensor, row);
    }

    /// The rows of a query tensor.
    template<typename Tensor>
    Tile resident(const std::string &name, const Tensor &tensor) const {
        return block.resident(name, head_columns.padded(), [&](const Expr &chunk, const Expr &row) {
            return head_columns.copied(place(tensor, row).of(tensor, chunk), chunk, true_expr());
        });
    }

    /// The keys or values of the step. Keys past the end repeat the last one, which no query sees.
    template<typename Pool>
    Tile streamed(const std::string &name, const Pool &pool) const {
        return block.streamed(name, head_columns.padded(), [&](const Expr &chunk, const Expr &row) {
            const PoolRow at = clamp_to_pool({pool_block(0, row), pool_slot(row)}, pool);
            const Expr kv_head = inside(task.kv_head, pool.dim(1));
            return head_columns.copied(pool(chunk, kv_head, at.slot, at.block), chunk, true_expr());
        });
    }

    /// Writes the rows of the task, times a factor of the row.
    void store(const Accumulator &result, const RowOutput &to, const PaddedHead &columns,
               const RowVector &factor) const {
        const auto store_in = [&](const auto &tensor, const Expr &wanted) {
            result.store_to([&](const Expr &row,
                                const Expr &pair) { return place(tensor, row).of(tensor, pair); },
                            factor,
                            [&](const Expr &row, const Expr &pair) {
                                return wanted && exists(row) && columns.contains(pair, 2);
                            });
        };
        store_in(to.words, to.is_f32 == 0);
        store_in(to.pairs, to.is_f32 != 0);
    }

    /// For the next map: whether all rows see all keys of the step, as most do, without a mask.
    Expr decide_all_visible() const {
        return block.decide(first_key >= task.all_begin &&
                            first_key + tiles.streamed_rows <= task.all_end);
    }

    /// Whether the row of an element, a query, sees its column, a key.
    Expr sees(const Element &s) const {
        return visible(first_key + s.column, key_begin(s), key_end(s));
    }

private:
    static Expr true_expr() {
        return Halide::Internal::const_true();
    }

    /// Field of the entry of a row.
    Expr entry(int field, const Expr &row) const {
        return queries(field, inside(task.query_begin + packed(row) / group, queries.dim(1)));
    }

    Expr packed(const Expr &row) const {
        return min(task.row_begin + row, task.row_end - 1);
    }

    Expr key(const Expr &row) const {
        return min(first_key + row, task.key_end - 1);
    }

    TileKernel &block;
    const TileSchedule tiles;
    const PaddedHead head_columns;
    Words &queries;
    Blocks &blocks;
    const ForwardTask task;
    const Expr group, first_key;
    RowVector key_begin, key_end;
    TileKernel::RecordSource pool_block;
    TileKernel::RowSource pool_slot;
};

}  // namespace pagegrad
