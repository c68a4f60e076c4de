/// The kernels of this build, and which to use.
#pragma once

#include "HalideRuntime.h"
#include "pagegrad/pagegrad.h"
#include "plan.h"

#include <string>

namespace pagegrad {

class KernelArena;

/// Signatures of the generated functions: the generators document the arguments.
using PackKeysKernel = int(const void *context, halide_buffer_t *pool, halide_buffer_t *blocks,
                           int32_t first_slot, int32_t num_keys, int32_t kv_head,
                           halide_buffer_t *packed);
using PackKeyPairsKernel = int(const void *context, halide_buffer_t *pool, halide_buffer_t *blocks,
                               int32_t first_slot, int32_t num_keys, int32_t kv_head,
                               halide_buffer_t *packed, halide_buffer_t *pairs);
using TransposeKeysKernel = PackKeysKernel;
using PackQueriesKernel = int(const void *context, halide_buffer_t *tensor, halide_buffer_t *rows,
                              halide_buffer_t *packed);
using PackQueryPairsKernel = int(const void *context, halide_buffer_t *tensor,
                                 halide_buffer_t *rows, halide_buffer_t *packed,
                                 halide_buffer_t *pairs);
using TransposeQueriesKernel = PackQueriesKernel;
using ConvertKernel = int(const void *context, halide_buffer_t *input, halide_buffer_t *output);
using BackwardKernel = int(const void *context, halide_buffer_t *q, halide_buffer_t *q_pairs,
                           halide_buffer_t *dout, halide_buffer_t *dout_pairs, halide_buffer_t *k,
                           halide_buffer_t *v, halide_buffer_t *k_pairs, halide_buffer_t *lse_log2,
                           halide_buffer_t *delta, halide_buffer_t *rows, int32_t first_key,
                           int32_t end_key, int32_t first_kv_tile, int32_t num_kv_tiles,
                           int32_t kv_tile, float scale, halide_buffer_t *dq, halide_buffer_t *dk,
                           halide_buffer_t *dv);
using BackwardGeneralKernel = int(const void *context, halide_buffer_t *q, halide_buffer_t *q_pairs,
                                  halide_buffer_t *dout, halide_buffer_t *dout_pairs,
                                  halide_buffer_t *k, halide_buffer_t *v, halide_buffer_t *k_pairs,
                                  halide_buffer_t *lse_log2, halide_buffer_t *delta,
                                  halide_buffer_t *rows, int32_t first_key, int32_t end_key,
                                  int32_t first_kv_tile, int32_t num_kv_tiles, int32_t kv_tile,
                                  float scale, float softcap, halide_buffer_t *alibi_slopes,
                                  halide_buffer_t *dq, halide_buffer_t *dk, halide_buffer_t *dv,
                                  halide_buffer_t *distance_sums);
using BackwardDenseKernel = int(const void *context, halide_buffer_t *q, halide_buffer_t *dout,
                                halide_buffer_t *lse_log2, halide_buffer_t *delta,
                                halide_buffer_t *k, halide_buffer_t *v, halide_buffer_t *seen,
                                float scale, halide_buffer_t *dq, halide_buffer_t *dk,
                                halide_buffer_t *dv);
using BackwardDenseGeneralKernel = int(const void *context, halide_buffer_t *q,
                                       halide_buffer_t *dout, halide_buffer_t *lse_log2,
                                       halide_buffer_t *delta, halide_buffer_t *k,
                                       halide_buffer_t *v, halide_buffer_t *seen, float scale,
                                       float softcap, halide_buffer_t *alibi_slopes,
                                       halide_buffer_t *dq, halide_buffer_t *dk,
                                       halide_buffer_t *dv, halide_buffer_t *distance_sums);
using ForwardKernel = int(const void *context, halide_buffer_t *q, halide_buffer_t *k,
                          halide_buffer_t *v_pairs, halide_buffer_t *rows, halide_buffer_t *old_max,
                          halide_buffer_t *old_sum, int32_t first_key, int32_t end_key, float scale,
                          halide_buffer_t *acc, halide_buffer_t *new_max, halide_buffer_t *new_sum);
using ForwardGeneralKernel = int(const void *context, halide_buffer_t *q, halide_buffer_t *k,
                                 halide_buffer_t *v_pairs, halide_buffer_t *rows,
                                 halide_buffer_t *old_max, halide_buffer_t *old_sum,
                                 int32_t first_key, int32_t end_key, float scale, float softcap,
                                 halide_buffer_t *alibi_slopes, halide_buffer_t *acc,
                                 halide_buffer_t *new_max, halide_buffer_t *new_sum);
using ForwardFinishKernel = int(const void *context, halide_buffer_t *acc, halide_buffer_t *row_max,
                                halide_buffer_t *row_sum, halide_buffer_t *sinks,
                                halide_buffer_t *rows, halide_buffer_t *out, halide_buffer_t *lse);
using RowStatisticsKernel = int(const void *context, halide_buffer_t *dout, halide_buffer_t *out,
                                halide_buffer_t *lse, halide_buffer_t *dlse, bool has_dlse,
                                halide_buffer_t *lse_log2, halide_buffer_t *delta);
using GatherKernel = int(const void *context, halide_buffer_t *pool, halide_buffer_t *blocks,
                         halide_buffer_t *dense);
using ScatterAddKernel = int(const void *context, halide_buffer_t *dense, halide_buffer_t *blocks,
                             int32_t first_slot, float scale, halide_buffer_t *pool);

/// The general ones know softcap and ALiBi slopes.
enum class Operation {
    backward,
    backward_general,
    backward_dense,
    backward_dense_general,
    forward,
    forward_general,
    pack_keys,
    transpose_keys,
    pack_queries,
    transpose_queries,
    widen,
    narrow,
    forward_finish,
    row_statistics,
    gather,
    scatter_add
};
/// Best first, among those of a processor.
enum class CpuTarget { avx512bf16, avx512, avx2, x86, neon };

struct Kernel {
    Operation operation;
    pagegrad_dtype dtype;  ///< of the tensors, or of the products of packed tiles
    int head_dim;          ///< 0: any
    CpuTarget target;
    const char *name;
    void (*function)();

    /// The generated function. The caller names the type that belongs to the operation.
    template<typename Function>
    Function *as() const {
        return reinterpret_cast<Function *>(function);
    }
    /// Whether a backward stores every matrix of the formulas.
    bool is_dense() const {
        return operation == Operation::backward_dense ||
               operation == Operation::backward_dense_general;
    }
    /// Whether it knows softcap and ALiBi slopes.
    bool is_general() const {
        return operation == Operation::forward_general ||
               operation == Operation::backward_general ||
               operation == Operation::backward_dense_general;
    }
    /// Whether packed tiles hold pairs of bfloat16, not float32 (see generators/products.h).
    bool multiplies_pairs() const {
        return dtype == PAGEGRAD_BFLOAT16;
    }
};

/// All kernels of the build, in the order of the kernel list.
const Kernel *kernel_list();
int kernel_count();

const char *operation_name(Operation operation);
const char *target_name(CpuTarget target);

/// Whether `part` stands in `name` between underscores.
bool has_part(const std::string &name, const std::string &part);

/// Whether this machine can run the target's instructions.
bool available(CpuTarget target);

/// The best available kernel for an operation. `name` (may be null) restricts the choice to kernels
/// whose name contains it between underscores; "materialised" means backward_dense.
/// For backwards the materialised kernels are candidates too, after the fused ones. Kernels for one
/// head_dim serve keys and values of that size only.
/// Kernels with products in float32 serve 16-bit tensors as well, which are widened when packed.
const Kernel &choose_kernel(Operation operation, pagegrad_dtype dtype, const HeadDims &dims,
                            const char *name);

/// The kernel for `operation` that goes with another one: of its target or, if there is none, of
/// the next best.
const Kernel &companion(const Kernel &kernel, Operation operation, pagegrad_dtype dtype,
                        const HeadDims &dims = {});

}  // namespace pagegrad
