#include "tensors.h"

#include "status.h"

#include <algorithm>
#include <array>
#include <limits>

namespace pagegrad {

namespace {

constexpr int64_t int32_limit = std::numeric_limits<int32_t>::max();

/// More bytes than a process can address. Sums of a few sizes up to here do not overflow.
constexpr int64_t address_space = int64_t{1} << 56;

halide_type_t kernel_type(int32_t dtype) {
    switch (dtype) {
    case PAGEGRAD_BFLOAT16:
        return {halide_type_bfloat, 16};
    case PAGEGRAD_FLOAT16:
        return {halide_type_float, 16};
    default:
        return {halide_type_float, 32};
    }
}

/// Refuses outputs in which two indices name one element: every dimension must step over all that
/// the faster ones span.
void check_no_overlap(const std::string &name, const pagegrad_tensor &tensor) {
    std::array<int, PAGEGRAD_MAX_RANK> order{0, 1, 2, 3};
    std::sort(order.begin(), order.begin() + tensor.rank,
              [&](int a, int b) { return tensor.stride[a] < tensor.stride[b]; });
    int64_t span = 1;
    for (int i = 0; i < tensor.rank; i++) {
        const int dim = order[i];
        if (tensor.shape[dim] > 1) {
            require(tensor.stride[dim] >= span, name, ".stride[", dim, "] is ", tensor.stride[dim],
                    ", expected at least ", span, ": elements of an output must not overlap");
            span = tensor.stride[dim] * (tensor.shape[dim] - 1) + span;
        }
    }
}

/// Refuses a tensor whose last element lies beyond every address. Sizes and strides are int32 here.
void check_span(const std::string &name, const pagegrad_tensor &tensor) {
    int64_t last = 0;
    for (int dim = 0; dim < tensor.rank; dim++) {
        last += (tensor.shape[dim] - 1) * tensor.stride[dim];
        require(last < address_space / element_size(tensor.dtype), name, " spans more than ", last,
                " elements, expected at most 2^56 bytes: see .shape and .stride");
    }
}

/// Dimension counted from the innermost; the batch may be missing.
Extent extent(const pagegrad_tensor &tensor, int dim_from_last) {
    const int dim = tensor.rank - 1 - dim_from_last;
    return dim < 0 ? Extent{1, 0} : Extent{tensor.shape[dim], tensor.stride[dim]};
}

}  // namespace

const char *dtype_name(int32_t dtype) {
    switch (dtype) {
    case PAGEGRAD_FLOAT32:
        return "float32";
    case PAGEGRAD_BFLOAT16:
        return "bfloat16";
    case PAGEGRAD_FLOAT16:
        return "float16";
    default:
        return "unknown";
    }
}

pagegrad_dtype check_dtype(const char *name, int32_t dtype) {
    require(dtype >= PAGEGRAD_FLOAT32 && dtype <= PAGEGRAD_FLOAT16, name, ".dtype is ", dtype,
            ", expected a pagegrad_dtype");
    return static_cast<pagegrad_dtype>(dtype);
}

bool empty(const pagegrad_tensor &tensor) {
    return std::any_of(tensor.shape, tensor.shape + tensor.rank,
                       [](int64_t size) { return size == 0; });
}

void check_tensor(const std::string &name, const pagegrad_tensor &tensor, int rank,
                  pagegrad_dtype dtype, Access access) {
    require(tensor.rank == rank, name, ".rank is ", tensor.rank, ", expected ", rank);
    require(tensor.dtype == dtype, name, ".dtype is ", tensor.dtype, " (", dtype_name(tensor.dtype),
            "), expected ", dtype_name(dtype));
    for (int dim = 0; dim < rank; dim++) {
        require(tensor.shape[dim] >= 0, name, ".shape[", dim, "] is ", tensor.shape[dim],
                ", expected at least 0");
        if (tensor.shape[dim] > int32_limit) {
            fail(PAGEGRAD_UNSUPPORTED, name, ".shape[", dim, "] is ", tensor.shape[dim],
                 ", expected at most ", int32_limit);
        }
    }
    if (empty(tensor)) {
        return;
    }
    for (int dim = 0; dim < rank; dim++) {
        require(tensor.stride[dim] >= 0, name, ".stride[", dim, "] is ", tensor.stride[dim],
                ", expected at least 0");
        if (tensor.shape[dim] > 1 && tensor.stride[dim] > int32_limit) {
            fail(PAGEGRAD_UNSUPPORTED, name, ".stride[", dim, "] is ", tensor.stride[dim],
                 ", expected at most ", int32_limit);
        }
    }
    check_span(name, tensor);
    require(tensor.stride[rank - 1] == 1 || tensor.shape[rank - 1] == 1, name, ".stride[", rank - 1,
            "] is ", tensor.stride[rank - 1], ", expected 1: the last dimension is contiguous");
    require(tensor.data != nullptr, name, ".data is null, expected memory for its elements");
    require(reinterpret_cast<uintptr_t>(tensor.data) % element_size(tensor.dtype) == 0, name,
            ".data is ", tensor.data, ", expected an address aligned to ",
            element_size(tensor.dtype), " bytes");
    if (access == Access::write) {
        check_no_overlap(name, tensor);
    }
}

void check_size(const std::string &name, const pagegrad_tensor &tensor, int dim, int64_t expected,
                const char *what) {
    require(tensor.shape[dim] == expected, name, ".shape[", dim, "] is ", tensor.shape[dim],
            ", expected ", expected, " (", what, ")");
}

void check_distinct(const std::vector<NamedTensor> &outputs,
                    const std::vector<NamedTensor> &others) {
    for (size_t i = 0; i < outputs.size(); i++) {
        std::vector<NamedTensor> rest(others);
        rest.insert(rest.end(), outputs.begin() + i + 1, outputs.end());
        for (const NamedTensor &other : rest) {
            const bool both = !empty(*outputs[i].tensor) && !empty(*other.tensor) &&
                              outputs[i].tensor->data != nullptr;
            require(!both || outputs[i].tensor->data != other.tensor->data, outputs[i].name,
                    ".data is ", outputs[i].tensor->data,
                    ", expected memory of its own, not that of ", other.name);
        }
    }
}

QueryLayout check_query(const pagegrad_plan &plan, const pagegrad_tensor &q, pagegrad_dtype dtype) {
    require(q.rank == 3 || q.rank == 4, "q.rank is ", q.rank,
            ", expected 3 ([T, H, D]) or 4 ([B, S, H, D])");
    check_tensor("q", q, q.rank, dtype, Access::read);
    check_size("q", q, q.rank - 1, plan.head_dim, "head_dim");
    check_size("q", q, q.rank - 2, plan.num_heads, "num_heads");
    if (q.rank == 3) {
        require(q.shape[0] >= plan.query_end, "q.shape[0] is ", q.shape[0],
                ", expected at least the ", plan.query_end, " tokens of the plan's sequences");
        return {false, q.shape[0], 1};
    }
    check_size("q", q, 0, static_cast<int64_t>(plan.sequences.size()), "num_sequences");
    require(q.shape[1] >= plan.max_query_length, "q.shape[1] is ", q.shape[1],
            ", expected at least the plan's longest query length ", plan.max_query_length);
    // Tensors of rows have 32-bit strides too, where they are made for a call.
    const int64_t widest = std::max(plan.head_dim, plan.value_head_dim);
    const int64_t most = int32_limit / (plan.num_heads * widest);
    if (q.shape[0] > 1 && q.shape[1] > most) {
        fail(PAGEGRAD_UNSUPPORTED, "q.shape[1] is ", q.shape[1], ", expected at most ", most,
             ": 2^31 - 1 elements of a batch entry");
    }
    return {true, q.shape[1], q.shape[0]};
}

NamedSize key_size(const pagegrad_plan &plan) {
    return {"head_dim", plan.head_dim};
}

NamedSize value_size(const pagegrad_plan &plan) {
    const bool same = plan.value_head_dim == plan.head_dim;
    return {same ? "head_dim" : "value_head_dim", plan.value_head_dim};
}

void check_like_query(const std::string &name, const pagegrad_plan &plan, const QueryLayout &layout,
                      const pagegrad_tensor &tensor, const NamedSize &last, pagegrad_dtype dtype,
                      Access access) {
    const int rank = layout.batched ? 4 : 3;
    check_tensor(name, tensor, rank, dtype, access);
    check_size(name, tensor, rank - 1, last.size, last.name);
    check_size(name, tensor, rank - 2, plan.num_heads, "num_heads");
    check_size(name, tensor, rank - 3, layout.tokens, "that of q");
    if (layout.batched) {
        check_size(name, tensor, 0, layout.batches, "that of q");
    }
}

void check_row_tensor(const std::string &name, const pagegrad_plan &plan, const QueryLayout &layout,
                      const pagegrad_tensor &tensor, Access access) {
    const int rank = layout.batched ? 3 : 2;
    check_tensor(name, tensor, rank, PAGEGRAD_FLOAT32, access);
    check_size(name, tensor, rank - 1, plan.num_heads, "num_heads");
    check_size(name, tensor, rank - 2, layout.tokens, "that of q");
    if (layout.batched) {
        check_size(name, tensor, 0, layout.batches, "that of q");
    }
}

void check_head_tensor(const std::string &name, const pagegrad_plan &plan,
                       const pagegrad_tensor &tensor, Access access) {
    check_tensor(name, tensor, 1, PAGEGRAD_FLOAT32, access);
    check_size(name, tensor, 0, plan.num_heads, "num_heads");
}

void check_pool(const std::string &name, const pagegrad_plan &plan, const pagegrad_tensor &pool,
                const NamedSize &last, pagegrad_dtype dtype, Access access) {
    check_tensor(name, pool, 4, dtype, access);
    check_size(name, pool, 0, plan.num_blocks, "num_blocks");
    check_size(name, pool, 1, plan.block_size, "block_size");
    check_size(name, pool, 2, plan.num_kv_heads, "num_kv_heads");
    check_size(name, pool, 3, last.size, last.name);
}

KernelBuffer query_buffer(const pagegrad_tensor &t) {
    return {t.data, kernel_type(t.dtype), {extent(t, 0), extent(t, 1), extent(t, 2), extent(t, 3)}};
}

KernelBuffer row_buffer(const pagegrad_tensor &t) {
    return {t.data, kernel_type(t.dtype), {extent(t, 0), extent(t, 1), extent(t, 2)}};
}

KernelBuffer dense_buffer(const pagegrad_tensor &dense, Range keys, int64_t kv_head,
                          int64_t heads) {
    return {element(dense, keys.begin * dense.stride[0] + kv_head * dense.stride[1]),
            kernel_type(dense.dtype),
            {{dense.shape[2], 1}, {heads, dense.stride[1]}, {keys.size(), dense.stride[0]}}};
}

KernelBuffer pool_buffer(const pagegrad_tensor &pool) {
    return query_buffer(pool);
}

KernelBuffer pool_head_buffer(const pagegrad_tensor &pool, int32_t kv_head) {
    return {element(pool, pool.stride[2] * kv_head),
            kernel_type(pool.dtype),
            {extent(pool, 0), {1, 0}, extent(pool, 2), extent(pool, 3)}};
}

pagegrad_tensor contiguous_like(const pagegrad_tensor &tensor, int rank, float *data) {
    pagegrad_tensor result{};
    result.data = data;
    result.dtype = PAGEGRAD_FLOAT32;
    result.rank = rank;
    int64_t step = 1;
    for (int dim = rank - 1; dim >= 0; dim--) {
        result.shape[dim] = tensor.shape[dim];
        result.stride[dim] = step;
        step *= tensor.shape[dim];
    }
    return result;
}

pagegrad_tensor token_slice(const pagegrad_tensor &tensor, bool batched, int64_t batch,
                            Range tokens) {
    pagegrad_tensor slice = tensor;
    int64_t offset = 0;
    if (batched) {
        offset = batch * tensor.stride[0];
        slice.rank--;
        std::copy(tensor.shape + 1, tensor.shape + tensor.rank, slice.shape);
        std::copy(tensor.stride + 1, tensor.stride + tensor.rank, slice.stride);
    }
    offset += tokens.begin * slice.stride[0];
    slice.shape[0] = tokens.size();
    slice.data = element(tensor, offset);
    return slice;
}

template<typename T>
void fill(const pagegrad_tensor &t, T value) {
    if (empty(t)) {
        return;
    }
    const Extent inner = extent(t, 0), second = extent(t, 1), third = extent(t, 2),
                 fourth = extent(t, 3);
    for (int64_t a = 0; a < fourth.size; a++) {
        for (int64_t b = 0; b < third.size; b++) {
            for (int64_t c = 0; c < second.size; c++) {
                T *row = static_cast<T *>(t.data) + a * fourth.stride + b * third.stride +
                         c * second.stride;
                std::fill(row, row + inner.size, value);
            }
        }
    }
}

template void fill(const pagegrad_tensor &t, float value);

void fill_zero(const pagegrad_tensor &tensor) {
    if (tensor.dtype == PAGEGRAD_FLOAT32) {
        fill(tensor, 0.0f);
    } else {
        fill(tensor, uint16_t{0});
    }
}

}  // namespace pagegrad
