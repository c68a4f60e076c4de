/// Packed tiles: the operands of the kernels' products.
#pragma once

#include "kernels.h"
#include "plan.h"
#include "tensors.h"
#include "workspace.h"

namespace pagegrad {

/// Where keys of a run lie: an argument of kernels.
struct KeyBlocks {
    KernelBuffer blocks;
    int32_t first_slot;  ///< of the first key, in the first block
    int32_t num_keys;
};
KeyBlocks find_blocks(const pagegrad_plan &plan, const Run &run, Range keys);

/// Rows of a tile in the two forms that products take, as words (generators/products.h). Where
/// words are single numbers, the forms are the same memory.
struct Operand {
    int32_t *packed, *pairs;
};

/// The packing kernels that go with a kernel, for tensors of a dtype. Functions return the code of
/// the kernel. `rows` of a packed tile are a multiple of what the product kernels need, and those
/// beyond the given ones are filled.
class Packing {
public:
    Packing(int32_t head_dim, const Kernel &products, pagegrad_dtype dtype);

    /// Memory for `rows` rows in both forms.
    Operand take(Carver &carver, int64_t rows) const;

    KernelBuffer packed(const Operand &operand, int64_t rows) const;    ///< d word, row
    KernelBuffer pairs(const Operand &operand, int64_t rows) const;     ///< d, row word
    KernelBuffer transposed(const int32_t *words, int64_t rows) const;  ///< row, d word

    int pack_keys(KernelArena &arena, const pagegrad_tensor &pool, const KeyBlocks &keys,
                  int32_t kv_head, const Operand &to, int64_t rows) const;
    int transpose_keys(KernelArena &arena, const pagegrad_tensor &pool, const KeyBlocks &keys,
                       int32_t kv_head, int32_t *to, int64_t rows) const;
    int pack_queries(KernelArena &arena, const pagegrad_tensor &tensor, const KernelBuffer &list,
                     const Operand &to, int64_t rows) const;
    int transpose_queries(KernelArena &arena, const pagegrad_tensor &tensor,
                          const KernelBuffer &list, int32_t *to, int64_t rows) const;

    const int64_t columns;  ///< padded head_dim
    const int64_t words;    ///< of a row

private:
    const bool in_pairs;
    const Kernel &key_packer, &key_transposer, &query_packer, &query_transposer;
};

}  // namespace pagegrad
