/// @file
/// C++17 interface of pagegrad: a thin, header-only layer over pagegrad.h, where units, shapes and
/// formulas are documented. Values here are views: nothing owns tensor memory. Every function
/// throws pagegrad::Error where the C function reports a status.
#pragma once

#include "pagegrad/pagegrad.h"

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace pagegrad {

/// A status other than PAGEGRAD_OK, with the message of the call.
class Error : public std::runtime_error {
public:
    Error(pagegrad_status status, const std::string &message)
        : std::runtime_error(message), status_(status) {
    }
    pagegrad_status status() const {
        return status_;
    }

private:
    pagegrad_status status_;
};

namespace internal {

inline void check(pagegrad_status status, const pagegrad_error &error) {
    if (status != PAGEGRAD_OK) {
        throw Error(status, error.message);
    }
}

}  // namespace internal

enum class Dtype {
    Float32 = PAGEGRAD_FLOAT32,
    BFloat16 = PAGEGRAD_BFLOAT16,
    Float16 = PAGEGRAD_FLOAT16
};

enum class Mask {
    None = PAGEGRAD_MASK_NONE,
    CausalTopLeft = PAGEGRAD_MASK_CAUSAL_TOP_LEFT,
    CausalBottomRight = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT
};

enum class PoolMode { Accumulate = PAGEGRAD_POOL_ACCUMULATE, Overwrite = PAGEGRAD_POOL_OVERWRITE };

/// A view of a tensor: contiguous unless strides are set. Default: absent.
struct Tensor : pagegrad_tensor {
    Tensor() : pagegrad_tensor{} {
    }
    Tensor(const void *data, Dtype dtype, std::initializer_list<int64_t> sizes)
        : pagegrad_tensor{} {
        if (sizes.size() > PAGEGRAD_MAX_RANK) {
            throw Error(PAGEGRAD_INVALID_ARGUMENT, "tensor: rank is at most 4");
        }
        this->data = const_cast<void *>(data);
        this->dtype = static_cast<int32_t>(dtype);
        rank = static_cast<int32_t>(sizes.size());
        int i = 0;
        for (const int64_t size : sizes) {
            shape[i++] = size;
        }
        int64_t step = 1;
        while (i-- > 0) {
            stride[i] = step;
            step *= shape[i];
        }
    }
    Tensor(const float *data, std::initializer_list<int64_t> sizes)
        : Tensor(data, Dtype::Float32, sizes) {
    }
};

/// Heads, dimensions, scale, softcap and mask of an attention layer.
struct AttentionConfig {
    int num_heads = 1;
    int num_kv_heads = 1;
    int head_dim = 64;
    int value_head_dim = 0;  ///< 0: head_dim
    float scale = 0.125f;
    float softcap = 0;  ///< 0: none
    Mask mask = Mask::CausalBottomRight;
    int64_t window_left = -1, window_right = -1;

    AttentionConfig() = default;
    /// With the usual scale, 1 / sqrt(head_dim).
    AttentionConfig(int num_heads, int num_kv_heads, int head_dim,
                    Mask mask = Mask::CausalBottomRight)
        : num_heads(num_heads), num_kv_heads(num_kv_heads), head_dim(head_dim),
          scale(1 / std::sqrt(static_cast<float>(head_dim))), mask(mask) {
    }
};

/// Pools of keys and values and the block table that points into them.
struct PagedKv {
    Tensor k, v;                           ///< [num_blocks, block_size, H_kv, D]
    const int32_t *block_table = nullptr;  ///< [B, max_blocks]
    int32_t max_blocks = 0;
    const int32_t *kv_length = nullptr;  ///< [B]
};

/// What a layer learns for each query head: [H] float32, each optional. Or their gradients.
struct HeadTerms {
    Tensor alibi_slopes, sinks;
};

/// Query rows of each sequence.
struct QueryRows {
    const int32_t *length = nullptr;  ///< [B]
    const int32_t *start = nullptr;   ///< [B]; nullptr: one sequence after the other
    int32_t num_sequences = 0;
};

/// How to execute; the default uses every core and allocates its workspace.
struct Execution : pagegrad_execution {
    Execution() : pagegrad_execution{} {
        struct_size = sizeof(pagegrad_execution);
    }
};

/// A validated batch: see pagegrad_plan. Copies share it.
class Plan {
public:
    Plan(const AttentionConfig &config, const QueryRows &queries, const PagedKv &kv)
        : config_(config) {
        pagegrad_plan_desc desc{};
        desc.struct_size = sizeof(desc);
        desc.num_heads = config.num_heads;
        desc.num_kv_heads = config.num_kv_heads;
        desc.head_dim = config.head_dim;
        desc.value_head_dim = config.value_head_dim;
        desc.mask = static_cast<int32_t>(config.mask);
        desc.window_left = config.window_left;
        desc.window_right = config.window_right;
        desc.num_sequences = queries.num_sequences;
        desc.query_length = queries.length;
        desc.query_start = queries.start;
        desc.kv_length = kv.kv_length;
        desc.block_table = kv.block_table;
        desc.block_table_stride = kv.max_blocks;
        desc.max_blocks = kv.max_blocks;
        desc.num_blocks = kv.k.shape[0];
        desc.block_size = static_cast<int32_t>(kv.k.shape[1]);
        pagegrad_plan *plan = nullptr;
        pagegrad_error error{};
        internal::check(pagegrad_plan_create(&desc, &plan, &error), error);
        plan_.reset(plan, pagegrad_plan_destroy);
    }

    const pagegrad_plan *get() const {
        return plan_.get();
    }
    const AttentionConfig &config() const {
        return config_;
    }
    /// See pagegrad_plan_prepare.
    void prepare(const Execution &execution) const {
        pagegrad_error error{};
        internal::check(pagegrad_plan_prepare(get(), &execution, &error), error);
    }
    pagegrad_plan_info info() const {
        pagegrad_plan_info info{};
        info.struct_size = sizeof(info);
        pagegrad_error error{};
        internal::check(pagegrad_plan_get_info(get(), &info, &error), error);
        return info;
    }

private:
    AttentionConfig config_;
    std::shared_ptr<pagegrad_plan> plan_;
};

namespace internal {

inline pagegrad_forward_args forward_args(const Plan &plan, const Tensor &q, const PagedKv &kv,
                                          const Tensor &out, const Tensor &lse,
                                          const HeadTerms &terms) {
    pagegrad_forward_args args{};
    args.struct_size = sizeof(args);
    args.scale = plan.config().scale;
    args.softcap = plan.config().softcap;
    args.q = q;
    args.k_pool = kv.k;
    args.v_pool = kv.v;
    args.out = out;
    args.lse = lse;
    args.alibi_slopes = terms.alibi_slopes;
    args.sinks = terms.sinks;
    return args;
}

}  // namespace internal

/// Bytes of workspace that `forward` needs: on GPUs the caller provides them.
inline size_t forward_workspace(const Plan &plan, const Tensor &q, const PagedKv &kv,
                                const Tensor &out, const Tensor &lse = {},
                                const Execution &execution = {}, const HeadTerms &terms = {}) {
    const pagegrad_forward_args args = internal::forward_args(plan, q, kv, out, lse, terms);
    size_t bytes = 0;
    pagegrad_error error{};
    internal::check(pagegrad_forward_workspace(plan.get(), &args, &execution, &bytes, &error),
                    error);
    return bytes;
}

/// out and lse of the forward; `lse` may be absent.
inline void forward(const Plan &plan, const Tensor &q, const PagedKv &kv, const Tensor &out,
                    const Tensor &lse = {}, const Execution &execution = {},
                    const HeadTerms &terms = {}) {
    const pagegrad_forward_args args = internal::forward_args(plan, q, kv, out, lse, terms);
    pagegrad_error error{};
    internal::check(pagegrad_forward(plan.get(), &args, &execution, &error), error);
}

/// What the backward reads besides the pools.
struct BackwardInputs {
    Tensor dout, q, out;
    Tensor lse;   ///< optional
    Tensor dlse;  ///< optional
    HeadTerms terms{};
};

/// What the backward writes.
struct Gradients {
    Tensor dq;
    Tensor dk_pool, dv_pool;  ///< float32, shaped like the pools
    PoolMode mode = PoolMode::Accumulate;
    HeadTerms terms{};  ///< overwritten; each optional
};

namespace internal {

inline pagegrad_backward_args backward_args(const Plan &plan, const BackwardInputs &inputs,
                                            const PagedKv &kv, const Gradients &gradients) {
    pagegrad_backward_args args{};
    args.struct_size = sizeof(args);
    args.scale = plan.config().scale;
    args.softcap = plan.config().softcap;
    args.dout = inputs.dout;
    args.q = inputs.q;
    args.k_pool = kv.k;
    args.v_pool = kv.v;
    args.out = inputs.out;
    args.lse = inputs.lse;
    args.dlse = inputs.dlse;
    args.dq = gradients.dq;
    args.dk_pool = gradients.dk_pool;
    args.dv_pool = gradients.dv_pool;
    args.pool_mode = static_cast<int32_t>(gradients.mode);
    args.alibi_slopes = inputs.terms.alibi_slopes;
    args.sinks = inputs.terms.sinks;
    args.dalibi_slopes = gradients.terms.alibi_slopes;
    args.dsinks = gradients.terms.sinks;
    return args;
}

}  // namespace internal

/// Bytes of workspace that `backward` needs: on GPUs the caller provides them.
inline size_t backward_workspace(const Plan &plan, const BackwardInputs &inputs, const PagedKv &kv,
                                 const Gradients &gradients, const Execution &execution = {}) {
    const pagegrad_backward_args args = internal::backward_args(plan, inputs, kv, gradients);
    size_t bytes = 0;
    pagegrad_error error{};
    internal::check(pagegrad_backward_workspace(plan.get(), &args, &execution, &bytes, &error),
                    error);
    return bytes;
}

/// dq, and dk and dv into the pools of gradients.
inline void backward(const Plan &plan, const BackwardInputs &inputs, const PagedKv &kv,
                     const Gradients &gradients, const Execution &execution = {}) {
    const pagegrad_backward_args args = internal::backward_args(plan, inputs, kv, gradients);
    pagegrad_error error{};
    internal::check(pagegrad_backward(plan.get(), &args, &execution, &error), error);
}

}  // namespace pagegrad
