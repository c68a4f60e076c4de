/// What the GPU kernels share: their work lists, whose layout is described in lowering/README.md,
/// the numbering of query rows, and 16-bit elements in words.
#pragma once

#include "lowering/tiles.h"
#include "paging.h"

namespace pagegrad {

/// Fields of a task: a tile of keys and the queries that it takes.
enum TaskField {
    task_block_begin,
    task_first_slot,
    task_first_key,
    task_num_keys,
    task_kv_head,
    task_query_begin,
    task_query_end,
    task_fields = 8
};

struct Task {
    template<typename Tasks>
    Task(const Tasks &tasks, const Expr &task)
        : block_begin(tasks(task_block_begin, task)), first_slot(tasks(task_first_slot, task)),
          first_key(tasks(task_first_key, task)), num_keys(tasks(task_num_keys, task)),
          kv_head(tasks(task_kv_head, task)), query_begin(tasks(task_query_begin, task)),
          query_end(tasks(task_query_end, task)) {
    }

    Expr block_begin, first_slot, first_key, num_keys, kv_head, query_begin, query_end;
};

/// Fields of a task of the forward: query rows of a sequence, and the keys that they see.
enum ForwardTaskField {
    forward_task_block_begin,
    forward_task_key_begin,
    forward_task_key_end,
    forward_task_all_begin,
    forward_task_all_end,
    forward_task_kv_head,
    forward_task_query_begin,
    forward_task_row_begin,
    forward_task_row_end,
    forward_task_fields = 12
};

struct ForwardTask {
    template<typename Tasks>
    ForwardTask(const Tasks &tasks, const Expr &task)
        : block_begin(tasks(forward_task_block_begin, task)),
          key_begin(tasks(forward_task_key_begin, task)),
          key_end(tasks(forward_task_key_end, task)),
          all_begin(tasks(forward_task_all_begin, task)),
          all_end(tasks(forward_task_all_end, task)), kv_head(tasks(forward_task_kv_head, task)),
          query_begin(tasks(forward_task_query_begin, task)),
          row_begin(tasks(forward_task_row_begin, task)),
          row_end(tasks(forward_task_row_end, task)) {
    }

    Expr block_begin, key_begin, key_end, all_begin, all_end, kv_head, query_begin, row_begin,
        row_end;
};

/// Fields of an entry: a query token, which stands for all heads of a group.
enum EntryField { entry_token, entry_batch, entry_key_begin, entry_key_end, entry_fields };

/// What row_statistics finds for each query row.
enum StatisticsField { statistics_lse, statistics_delta, statistics_fields };

/// Packed rows in the form that QueryRow reads, from entries (field, row) and heads (row).
template<typename Entries, typename Heads>
auto packed_rows(const Entries &entries, const Heads &heads) {
    return [=](int field, const Expr &row) -> Expr {
        switch (field) {
        case row_token:
            return entries(entry_token, row);
        case row_batch:
            return entries(entry_batch, row);
        case row_head:
            return heads(row);
        case row_key_begin:
            return entries(entry_key_begin, row);
        default:
            return entries(entry_key_end, row);
        }
    };
}

/// Tells Halide that an index lies inside a dimension that begins at 0: the runtime has checked it.
inline Expr inside(const Expr &index, const Halide::Internal::Dimension &dim) {
    return Halide::unsafe_promise_clamped(index, 0, dim.extent() - 1);
}

/// Place of row (batch * num_tokens + token) * num_heads + head in the query tensors.
struct RowPlace {
    RowPlace(const Expr &row, const Expr &num_heads, const Expr &num_tokens) {
        // Unsigned division takes half the instructions of Halide's, which rounds down.
        const Expr number = Halide::cast<uint32_t>(row), heads = Halide::cast<uint32_t>(num_heads),
                   tokens = Halide::cast<uint32_t>(num_tokens);
        const Expr token_number = number / heads;
        head = Halide::cast<int>(number - token_number * heads);
        batch = Halide::cast<int>(token_number / tokens);
        token = Halide::cast<int>(token_number - token_number / tokens * tokens);
    }

    /// The row of a tensor (..., head, token, batch).
    template<typename Tensor, typename... Inner>
    auto of(Tensor &tensor, const Inner &...inner) const {
        constexpr int first = sizeof...(inner);
        return tensor(inner..., inside(head, tensor.dim(first)),
                      inside(token, tensor.dim(first + 1)), inside(batch, tensor.dim(first + 2)));
    }

    Expr head, token, batch;
};

/// head_dim and the columns of tiles, in panels of 64, that hold it.
class PaddedHead {
public:
    /// `fixed` is head_dim at compile time, or 0: then it is at most `largest`.
    PaddedHead(int fixed, int largest, const Expr &head_dim)
        : fixed(fixed), largest(largest), head_dim(head_dim) {
    }

    int padded() const {
        return ((fixed > 0 ? fixed : largest) + 63) / 64 * 64;
    }

    /// Whether the `elements` elements from number i * elements on are in head_dim.
    Expr contains(const Expr &i, int elements) const {
        return fixed == padded() ? Halide::Internal::const_true()
                                 : i * elements < (fixed > 0 ? Expr(fixed) : head_dim);
    }

    /// 16 bytes of a row that may not exist, or zeros in the padding.
    Expr copied(const Expr &value, const Expr &chunk, const Expr &exists) const {
        const Expr condition = Halide::Internal::simplify(exists && contains(chunk, 8));
        return Halide::Internal::is_const_one(condition) ? value : value_or_zero(value, condition);
    }

private:
    const int fixed, largest;
    const Expr head_dim;
};

/// Kernels that go over rows give each 16 lanes, and a thread block 16 rows.
constexpr int row_lanes = 16, rows_per_block = 16;

/// The sum over the lanes of a row, for all of them.
inline Expr lanes_sum(const Expr &x) {
    return Halide::Internal::Call::make(Halide::Float(32), "half_warp_sum", {x},
                                        Halide::Internal::Call::PureExtern);
}

/// The two elements of a word, which may be bfloat16 or float16.
struct WordElements {
    WordElements(const Expr &word, const Halide::Type &element) {
        if (element.is_bfloat()) {  // the upper half of a float
            low = Halide::reinterpret<float>(word << 16);
            high = Halide::reinterpret<float>(word >> 16 << 16);
        } else {
            low = half_to_float(word);
            high = half_to_float(word >> 16);
        }
    }

    Expr low, high;

private:
    static Expr half_to_float(const Expr &word) {
        return Halide::cast<float>(
            Halide::reinterpret(Halide::Float(16), Halide::cast<uint16_t>(word)));
    }
};

/// The word of two rounded floats.
inline Expr packed_word(const Expr &low, const Expr &high, const Halide::Type &element) {
    return Halide::Internal::Call::make(Halide::UInt(32),
                                        element.is_bfloat() ? "pack_bf16x2" : "pack_f16x2",
                                        {low, high}, Halide::Internal::Call::PureExtern);
}

/// All dimensions begin at 0.
template<typename Tensor>
void set_origin(Tensor &tensor) {
    for (int i = 0; i < tensor.dimensions(); i++) {
        tensor.dim(i).set_min(0);
    }
}

/// Rows of `columns` elements without gaps.
template<typename Tensor>
void set_dense(Tensor &tensor, const Expr &columns) {
    set_origin(tensor);
    tensor.dim(0).set_extent(columns);
    tensor.dim(1).set_stride(columns);
}

}  // namespace pagegrad
