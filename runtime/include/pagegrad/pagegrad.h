/**
 * @file
 * C interface of pagegrad: attention over a paged KV cache, forward and backward.
 *
 * Build a plan once per batch from the block table, the lengths and the mask; then execute it as
 * often as there are layers and passes, from any thread.
 *
 *     S[i,j]  = scale * <q[i], k[j]>               only where query i sees key j
 *     P[i,j]  = exp(S[i,j] - lse[i])               lse: natural logarithm of sum_j exp(S[i,j])
 *     out[i]  = sum_j P[i,j] v[j]
 *     delta[i] = <dout[i], out[i]> - dlse[i]
 *     dS[i,j] = P[i,j] (<dout[i], v[j]> - delta[i])
 *     dq[i]   = scale sum_j dS[i,j] k[j]
 *     dk[j]   = scale sum_i dS[i,j] q[i],  dv[j] = sum_i P[i,j] dout[i]
 *
 * dk and dv are sums over all queries, over the query heads that share a KV head, and over every
 * sequence whose block table names the block. (Dao et al., "FlashAttention", 2022, appendix B.)
 *
 * Options, of query head h, with p the diagonal of the mask's alignment (see pagegrad_plan_desc):
 *
 *     softcap:       C[i,j] = softcap * tanh(scale * <q[i], k[j]> / softcap) takes the place of
 *                    scale * <q[i], k[j]>, and dS gets the factor 1 - (C[i,j] / softcap)^2 in dq
 *                    and dk
 *     ALiBi slopes:  S[i,j] = C[i,j] - slope[h] |p - j|,  dslope[h] = -sum_ij dS[i,j] |p - j|
 *     sinks:         lse[i] = ln(sum_j exp(S[i,j]) + exp(sink[h])),
 *                    dsink[h] = -sum_i exp(sink[h] - lse[i]) delta[i]
 *
 * (Press et al., "Train Short, Test Long", 2022; Xiao et al., "Efficient Streaming Language Models
 * with Attention Sinks", 2024, in the form of a logit per head.) docs/semantics.md has the edge
 * cases.
 *
 * Conventions. Sizes and strides count elements, workspace counts bytes. Query head h reads KV head
 * h / (num_heads / num_kv_heads). Key j of sequence b lives in pool row
 * (block_table[b][j / block_size], j % block_size). Nothing takes ownership of a pointer, and no
 * pointer is kept after a call returns. A call that fails writes to no output. No call aborts,
 * throws or prints. Results are bitwise the same for any number of threads and any placement of
 * blocks in the pool, and in every run.
 *
 * GPUs. With execution.device = PAGEGRAD_CUDA all tensors and the workspace are in the memory of
 * one GPU, and work is put on the caller's stream: a call returns before it is done, allocates
 * nothing, waits for nothing and may be captured in a CUDA graph. The plan stays on the host; its
 * first call in a CUDA context copies what the GPU needs of it (see pagegrad_plan_prepare).
 */
#ifndef PAGEGRAD_H
#define PAGEGRAD_H

#include <stddef.h>
#include <stdint.h>

#define PAGEGRAD_VERSION_MAJOR 0
#define PAGEGRAD_VERSION_MINOR 1
#define PAGEGRAD_VERSION_PATCH 0

#if defined(__GNUC__)
#define PAGEGRAD_API __attribute__((visibility("default")))
#else
#define PAGEGRAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** What a call reports. */
typedef enum pagegrad_status {
    PAGEGRAD_OK = 0,
    PAGEGRAD_INVALID_ARGUMENT = 1,    /**< the message names argument, value and expectation */
    PAGEGRAD_UNSUPPORTED = 2,         /**< valid, but no kernel of this build can do it */
    PAGEGRAD_WORKSPACE_TOO_SMALL = 3, /**< the message gives the size needed */
    PAGEGRAD_OUT_OF_MEMORY = 4,
    PAGEGRAD_NO_DEVICE = 5,   /**< the device asked for is not there */
    PAGEGRAD_INTERNAL = 6,    /**< a bug of pagegrad */
    PAGEGRAD_DRIVER_ERROR = 7 /**< the CUDA driver refused a call: the message gives its words */
} pagegrad_status;

/** Message of the call it was given to; empty after success. Owned by the caller. */
typedef struct pagegrad_error {
    char message[512];
} pagegrad_error;

typedef enum pagegrad_dtype {
    PAGEGRAD_FLOAT32 = 0,
    PAGEGRAD_BFLOAT16 = 1,
    PAGEGRAD_FLOAT16 = 2
} pagegrad_dtype;

/** Which keys a query sees, before the window. Query i of S_q, key j of S_k. */
typedef enum pagegrad_mask {
    PAGEGRAD_MASK_NONE = 0,                /**< every key */
    PAGEGRAD_MASK_CAUSAL_TOP_LEFT = 1,     /**< j <= i */
    PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT = 2, /**< j <= i + S_k - S_q */
} pagegrad_mask;

typedef enum pagegrad_device { PAGEGRAD_CPU = 0, PAGEGRAD_CUDA = 1 } pagegrad_device;

/** What happens to the pool gradients. */
typedef enum pagegrad_pool_mode {
    PAGEGRAD_POOL_ACCUMULATE = 0, /**< gradients are added; rows no sequence uses stay untouched */
    PAGEGRAD_POOL_OVERWRITE = 1   /**< as if the pools had been zeroed before */
} pagegrad_pool_mode;

#define PAGEGRAD_MAX_RANK 4

/**
 * A view of a tensor. The last dimension must have stride 1; the others may have any stride >= 0
 * for inputs, and must not overlap for outputs. `data` is aligned to its element.
 * `data == NULL` with `rank == 0` means "absent" where an argument is optional.
 */
typedef struct pagegrad_tensor {
    void *data;
    int32_t dtype; /**< pagegrad_dtype */
    int32_t rank;
    int64_t shape[PAGEGRAD_MAX_RANK];  /**< outermost first */
    int64_t stride[PAGEGRAD_MAX_RANK]; /**< elements */
} pagegrad_tensor;

/** A batch of sequences over a paged pool, and the shape of its attention. */
typedef struct pagegrad_plan_desc {
    uint32_t struct_size; /**< sizeof(pagegrad_plan_desc) of the caller */
    int32_t num_heads;    /**< query heads, a multiple of num_kv_heads, at most 65536 */
    int32_t num_kv_heads;
    int32_t head_dim;       /**< D of q and keys, 1..512 */
    int32_t value_head_dim; /**< D_v of values and out, 1..512; 0: head_dim */
    int32_t mask;           /**< pagegrad_mask */
    /**
     * Sliding window around the diagonal of the mask's alignment (bottom-right for
     * PAGEGRAD_MASK_NONE), bounds inclusive: with p = i + S_k - S_q, or p = i for top-left, key j
     * is seen if p - window_left <= j <= p + window_right. -1: no bound on that side.
     */
    int64_t window_left, window_right;
    int32_t num_sequences;       /**< B, may be 0 */
    const int32_t *query_length; /**< [B] S_q of each sequence, >= 0 */
    /** [B] first token of each sequence in packed tensors; NULL: one after the other. Sequences may
     * have gaps between them but may not overlap. Not used with tensors of rank 4. */
    const int32_t *query_start;
    const int32_t *kv_length; /**< [B] S_k, 0 .. max_blocks * block_size and < 2^31 - 1024 */
    const int32_t
        *block_table; /**< [B, max_blocks] block ids; columns past the length are ignored */
    int64_t block_table_stride; /**< elements between rows, >= max_blocks */
    int32_t max_blocks;
    int32_t block_size; /**< keys in a block, >= 1 */
    int64_t num_blocks; /**< blocks in the pool; used ids are in [0, num_blocks) */
} pagegrad_plan_desc;

/** A validated, immutable batch. May be used by any number of threads at once. */
typedef struct pagegrad_plan pagegrad_plan;

/** Work found by a plan. */
typedef struct pagegrad_plan_info {
    uint32_t struct_size;
    int64_t query_tokens;  /**< sum of query lengths */
    int64_t kv_tokens;     /**< sum of KV lengths */
    int64_t pool_rows;     /**< pool rows that any sequence uses; shared ones count once */
    int64_t runs;          /**< spans of keys with the same sequences as users */
    int64_t shared_runs;   /**< runs with more than one user */
    int64_t visible_pairs; /**< (query, key) pairs of one head that the mask lets see */
    int64_t packed_rows;   /**< query rows of one KV head over all runs */
} pagegrad_plan_info;

/**
 * Validates a batch and builds its plan. Time and memory are linear in the used table entries.
 * @param[in]  desc  read during the call only
 * @param[out] plan  free with pagegrad_plan_destroy; NULL on failure
 * @param[out] error may be NULL
 */
PAGEGRAD_API pagegrad_status pagegrad_plan_create(const pagegrad_plan_desc *desc,
                                                  pagegrad_plan **plan, pagegrad_error *error);

/** Frees a plan that no running call uses. NULL is allowed. After use on a GPU its CUDA contexts
 * must still be there; work on a stream counts as running until it is done. */
PAGEGRAD_API void pagegrad_plan_destroy(pagegrad_plan *plan);

/** Fills `info`, whose struct_size the caller has set. */
PAGEGRAD_API pagegrad_status pagegrad_plan_get_info(const pagegrad_plan *plan,
                                                    pagegrad_plan_info *info,
                                                    pagegrad_error *error);

/** Runs `body(body_context, i)` for every i in [0, count), in any order, on any threads, and
 * returns when all have returned. */
typedef void (*pagegrad_parallel_for)(void *context, int32_t count,
                                      void (*body)(void *body_context, int32_t i),
                                      void *body_context);

/** How to execute. Zero-initialise, then set struct_size and what differs. */
typedef struct pagegrad_execution {
    uint32_t struct_size;
    int32_t device;      /**< pagegrad_device */
    int32_t num_threads; /**< 0..4096, 0: one per core. Also the count given to parallel_for. */
    /** Kernel to use, by its name or a part of it between underscores ("avx2", "materialised",
     * "backward_f32_any_avx512"); NULL: the best one for machine and geometry. */
    const char *kernel;
    pagegrad_parallel_for parallel_for; /**< the caller's thread pool; NULL: pagegrad's own */
    void *parallel_for_context;
    void *workspace; /**< 64-byte aligned; NULL: allocated during the call, but not on GPUs */
    size_t workspace_size;
    /** CUstream or cudaStream_t to put the work on, whose context counts; NULL: the default stream
     * of the current context. Not used on CPUs. */
    void *stream;
    /** 1: sums into dq may come in any order, which is faster for some batches on GPUs; then dq
     * differs in its last bits from run to run. Not used on CPUs, where the order is fixed. */
    int32_t unordered;
} pagegrad_execution;

/**
 * Makes a plan ready for a GPU, in the CUDA context of `execution`: loads kernels, allocates memory
 * for the plan's work lists, copies them and waits for the copy. Without this call the first
 * execution in a context does so; a stream that is being captured needs it done before. Nothing
 * happens a second time, nor on CPUs.
 */
PAGEGRAD_API pagegrad_status pagegrad_plan_prepare(const pagegrad_plan *plan,
                                                   const pagegrad_execution *execution,
                                                   pagegrad_error *error);

/**
 * Arguments of the forward. T is the number of tokens of packed tensors (rank 3); tensors of rank 4
 * are [B, S, H, D] with S >= every query length. All of q, out, lse have the same form. Sizes D of
 * values, out and dout are the plan's value_head_dim.
 */
typedef struct pagegrad_forward_args {
    uint32_t struct_size;
    float scale;            /**< finite; usually 1 / sqrt(head_dim) */
    float softcap;          /**< positive and finite, or 0 for none */
    pagegrad_tensor q;      /**< [T, H, D] or [B, S, H, D] */
    pagegrad_tensor k_pool; /**< [num_blocks, block_size, H_kv, D], dtype of q */
    pagegrad_tensor v_pool; /**< likewise */
    pagegrad_tensor
        out; /**< like q, D_v. Rows of no sequence, and rows that see no key, become 0. */
    pagegrad_tensor lse; /**< [T, H] or [B, S, H] float32, optional. Where no key is seen: -inf, or
                              the sink. */
    pagegrad_tensor alibi_slopes; /**< [H] float32, optional, finite */
    pagegrad_tensor sinks;        /**< [H] float32, optional, finite or -inf (no sink) */
} pagegrad_forward_args;

/** Arguments of the backward. Shapes as in the forward. */
typedef struct pagegrad_backward_args {
    uint32_t struct_size;
    float scale, softcap;   /**< those of the forward */
    pagegrad_tensor dout;   /**< like out */
    pagegrad_tensor q;      /**< [T, H, D] or [B, S, H, D] */
    pagegrad_tensor k_pool; /**< [num_blocks, block_size, H_kv, D] */
    pagegrad_tensor v_pool;
    pagegrad_tensor out;     /**< of the forward */
    pagegrad_tensor lse;     /**< of the forward, natural log, optional: computed again if absent */
    pagegrad_tensor dlse;    /**< like lse, optional: gradient that flows into lse */
    pagegrad_tensor dq;      /**< like q, overwritten; 0 in rows of no sequence */
    pagegrad_tensor dk_pool; /**< like k_pool, float32 */
    pagegrad_tensor dv_pool; /**< like v_pool, float32 */
    int32_t pool_mode;       /**< pagegrad_pool_mode */
    pagegrad_tensor alibi_slopes, sinks;   /**< those of the forward */
    pagegrad_tensor dalibi_slopes, dsinks; /**< [H] float32, each optional, overwritten */
} pagegrad_backward_args;

/** Bytes of workspace that the forward needs with these arguments. `execution` may be NULL. */
PAGEGRAD_API pagegrad_status pagegrad_forward_workspace(const pagegrad_plan *plan,
                                                        const pagegrad_forward_args *args,
                                                        const pagegrad_execution *execution,
                                                        size_t *bytes, pagegrad_error *error);

/** Computes out and lse. `execution` may be NULL. */
PAGEGRAD_API pagegrad_status pagegrad_forward(const pagegrad_plan *plan,
                                              const pagegrad_forward_args *args,
                                              const pagegrad_execution *execution,
                                              pagegrad_error *error);

/** Bytes of workspace that the backward needs with these arguments. `execution` may be NULL. */
PAGEGRAD_API pagegrad_status pagegrad_backward_workspace(const pagegrad_plan *plan,
                                                         const pagegrad_backward_args *args,
                                                         const pagegrad_execution *execution,
                                                         size_t *bytes, pagegrad_error *error);

/** Computes dq, dk and dv. `execution` may be NULL. */
PAGEGRAD_API pagegrad_status pagegrad_backward(const pagegrad_plan *plan,
                                               const pagegrad_backward_args *args,
                                               const pagegrad_execution *execution,
                                               pagegrad_error *error);

/**
 * Copies the keys (or values) of all sequences out of a pool, sequence after sequence.
 * @param pool  [num_blocks, block_size, H_kv, D], D the head_dim or the value_head_dim of the plan
 * @param dense [sum of KV lengths, H_kv, D], overwritten
 */
PAGEGRAD_API pagegrad_status pagegrad_gather(const pagegrad_plan *plan, const pagegrad_tensor *pool,
                                             const pagegrad_tensor *dense,
                                             const pagegrad_execution *execution,
                                             pagegrad_error *error);

/**
 * Adds rows to a pool: the reverse of pagegrad_gather, where a block of several sequences receives
 * the sum, in the order of the sequences.
 * @param dense [sum of KV lengths, H_kv, D] float32
 * @param pool  [num_blocks, block_size, H_kv, D] float32, added to
 */
PAGEGRAD_API pagegrad_status pagegrad_scatter_add(const pagegrad_plan *plan,
                                                  const pagegrad_tensor *dense,
                                                  const pagegrad_tensor *pool,
                                                  const pagegrad_execution *execution,
                                                  pagegrad_error *error);

/** A kernel of this build. Strings live as long as the library. */
typedef struct pagegrad_kernel_info {
    uint32_t struct_size;
    const char *name;      /**< see docs/kernels.md for the grammar */
    const char *operation; /**< "backward", "forward", "gather", ... */
    const char *target;    /**< "avx512", "avx2", ..., or "sm90" for GPUs */
    int32_t dtype;         /**< pagegrad_dtype */
    int32_t head_dim;      /**< 0: any */
    int32_t available;     /**< 1 if this machine, or a GPU of it, can run it */
} pagegrad_kernel_info;

/** Number of kernels in this build. */
PAGEGRAD_API int32_t pagegrad_kernel_count(void);

/** Describes kernel `index`, in the order of the kernel list. */
PAGEGRAD_API pagegrad_status pagegrad_get_kernel_info(int32_t index, pagegrad_kernel_info *info,
                                                      pagegrad_error *error);

/**
 * Tells which kernel dispatch would choose.
 * @param operation "forward" or "backward", or for calls with a softcap or ALiBi slopes
 *                  "forward_general" or "backward_general"
 * @param[out] name lives as long as the library
 */
PAGEGRAD_API pagegrad_status pagegrad_choose_kernel(const pagegrad_plan *plan,
                                                    const char *operation, int32_t dtype,
                                                    const pagegrad_execution *execution,
                                                    const char **name, pagegrad_error *error);

/** "major.minor.patch" of the library, to compare with the header's. */
PAGEGRAD_API const char *pagegrad_version(void);

/** Name of a status, for messages. */
PAGEGRAD_API const char *pagegrad_status_name(pagegrad_status status);

#ifdef __cplusplus
}
#endif

#endif
