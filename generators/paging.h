/// From keys to pool rows, and from packed query rows to tensor rows.
#pragma once

#include "Halide.h"

namespace pagegrad {

using Halide::Expr;

/// Where a key lives in a paged pool.
struct PoolRow {
    Expr block, slot;
};

/// Tells Halide that a row lies inside the pool. The plan has validated the block ids, so this
/// costs nothing.
template<typename Pool>
PoolRow clamp_to_pool(const PoolRow &row, const Pool &pool) {
    return {Halide::unsafe_promise_clamped(row.block, 0, pool.dim(3).extent() - 1),
            Halide::unsafe_promise_clamped(row.slot, 0, pool.dim(2).extent() - 1)};
}

/// Looks up key `key` of a list of blocks whose first key sits in slot `first_slot`.
template<typename Blocks>
PoolRow find_in_blocks(const Blocks &blocks, const Expr &block_size, const Expr &first_slot,
                       const Expr &key) {
    const Expr place = first_slot + key;
    return {blocks(place / block_size), place % block_size};
}

template<typename Blocks, typename Pool>
PoolRow find_in_pool(const Blocks &blocks, const Pool &pool, const Expr &first_slot,
                     const Expr &key) {
    return find_in_blocks(blocks, pool.dim(2).extent(), first_slot, key);
}

/// Fields of a packed query row, in the order of struct QueryRow in runtime/src/rows.h.
enum RowField {
    row_token,
    row_batch,
    row_head,
    row_key_begin,
    row_key_end,
    row_position,
    row_fields
};

/// A query row of a list: the queries of all users of a run, for all heads that share a KV head,
/// are packed one behind the other.
struct QueryRow {
    /// `tensor` has dimensions head, token and batch, from `first` on.
    template<typename Rows, typename Tensor>
    QueryRow(const Rows &rows, const Tensor &tensor, const Expr &row, int first = 1)
        : head(place(rows(row_head, row), tensor.dim(first))),
          token(place(rows(row_token, row), tensor.dim(first + 1))),
          batch(place(rows(row_batch, row), tensor.dim(first + 2))),
          key_begin(rows(row_key_begin, row)), key_end(rows(row_key_end, row)) {
    }

    /// Element d of the row in a tensor (d, head, token, batch).
    template<typename Tensor>
    Expr of(const Tensor &tensor, const Expr &d) const {
        return tensor(d, head, token, batch);
    }

    Expr head, token, batch, key_begin, key_end;

private:
    /// The runtime has checked the tensor's sizes against the plan.
    static Expr place(const Expr &index, const Halide::Internal::Dimension &dim) {
        return Halide::unsafe_promise_clamped(index, dim.min(), dim.max());
    }
};

}  // namespace pagegrad
