/// Checks of tensor arguments, and their form as kernel arguments.
#pragma once

#include "kernel_buffer.h"
#include "plan.h"

#include <string>
#include <vector>

namespace pagegrad {

enum class Access { read, write };

/// Refuses a tensor whose rank, dtype, strides or pointer cannot be used.
void check_tensor(const std::string &name, const pagegrad_tensor &tensor, int rank,
                  pagegrad_dtype dtype, Access access);

/// Refuses a tensor whose size in dimension `dim` is not `expected`.
void check_size(const std::string &name, const pagegrad_tensor &tensor, int dim, int64_t expected,
                const char *what);

/// Refuses outputs that are the memory of another tensor.
struct NamedTensor {
    const char *name;
    const pagegrad_tensor *tensor;
};
void check_distinct(const std::vector<NamedTensor> &outputs,
                    const std::vector<NamedTensor> &others);

/// For messages.
const char *dtype_name(int32_t dtype);

/// Bytes of an element.
constexpr int64_t element_size(int32_t dtype) {
    return dtype == PAGEGRAD_FLOAT32 ? 4 : 2;
}

/// The dtype of a call's tensors. Refuses what is no pagegrad_dtype.
pagegrad_dtype check_dtype(const char *name, int32_t dtype);

/// The dtype to expect of a tensor that may be float32 whatever q is.
inline pagegrad_dtype float32_or(pagegrad_dtype dtype, const pagegrad_tensor &tensor) {
    return tensor.dtype == PAGEGRAD_FLOAT32 ? PAGEGRAD_FLOAT32 : dtype;
}

/// Whether an optional tensor was given.
inline bool present(const pagegrad_tensor &tensor) {
    return tensor.data != nullptr || tensor.rank != 0;
}

bool empty(const pagegrad_tensor &tensor);

/// Address of the element `offset` elements after the first.
inline void *element(const pagegrad_tensor &tensor, int64_t offset) {
    return static_cast<char *>(tensor.data) + offset * element_size(tensor.dtype);
}

/// How the queries of a call are addressed: packed tokens (rank 3) or a batch (rank 4).
struct QueryLayout {
    bool batched;
    int64_t tokens, batches;  ///< sizes of those dimensions; batches = 1 if packed

    int64_t rows(const pagegrad_plan &plan) const {
        return tokens * batches * plan.num_heads;
    }
    int32_t token(const Sequence &sequence, int64_t query) const {
        return static_cast<int32_t>(batched ? query : sequence.query_start + query);
    }
    int32_t batch(int32_t sequence) const {
        return batched ? sequence : 0;
    }
};

/// Takes the layout from q, which it checks, against the plan.
QueryLayout check_query(const pagegrad_plan &plan, const pagegrad_tensor &q, pagegrad_dtype dtype);

/// A dimension with its name.
struct NamedSize {
    const char *name;
    int64_t size;
};
NamedSize key_size(const pagegrad_plan &plan);    ///< of q and keys
NamedSize value_size(const pagegrad_plan &plan);  ///< of values and out

/// A tensor like q, but for its last size.
void check_like_query(const std::string &name, const pagegrad_plan &plan, const QueryLayout &layout,
                      const pagegrad_tensor &tensor, const NamedSize &last, pagegrad_dtype dtype,
                      Access access);

/// A float32 tensor with one element per query row, [T, H] or [B, S, H].
void check_row_tensor(const std::string &name, const pagegrad_plan &plan, const QueryLayout &layout,
                      const pagegrad_tensor &tensor, Access access);

/// A float32 tensor with one element per query head.
void check_head_tensor(const std::string &name, const pagegrad_plan &plan,
                       const pagegrad_tensor &tensor, Access access);

/// [num_blocks, block_size, H_kv, D]
void check_pool(const std::string &name, const pagegrad_plan &plan, const pagegrad_tensor &pool,
                const NamedSize &last, pagegrad_dtype dtype, Access access);

/// Forms of tensors for kernels, innermost dimension first.
KernelBuffer query_buffer(const pagegrad_tensor &tensor);  ///< d, head, token, batch
KernelBuffer row_buffer(const pagegrad_tensor &tensor);    ///< head, token, batch
KernelBuffer pool_buffer(const pagegrad_tensor &pool);     ///< d, KV head, slot, block
/// Some keys and KV heads of dense rows [keys, H_kv, D]: d, KV head, key.
KernelBuffer dense_buffer(const pagegrad_tensor &dense, Range keys, int64_t kv_head, int64_t heads);
/// One KV head of a pool: d, 1, slot, block.
KernelBuffer pool_head_buffer(const pagegrad_tensor &pool, int32_t kv_head);

/// A contiguous float32 tensor with the first `rank` sizes of another one.
pagegrad_tensor contiguous_like(const pagegrad_tensor &tensor, int rank, float *data);

/// A contiguous tensor of one float per query row.
inline pagegrad_tensor row_tensor(float *data, const pagegrad_tensor &q) {
    return contiguous_like(q, q.rank - 1, data);
}

/// Tokens of one batch entry of a tensor like q, [tokens, H, D], or like lse, [tokens, H].
/// `batched` tells whether the tensor has a batch dimension.
pagegrad_tensor token_slice(const pagegrad_tensor &tensor, bool batched, int64_t batch,
                            Range tokens);

/// Sets all elements of a tensor of dtype T.
template<typename T>
void fill(const pagegrad_tensor &tensor, T value);
void fill_zero(const pagegrad_tensor &tensor);

}  // namespace pagegrad
