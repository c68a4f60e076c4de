#include "packing.h"

#include "rows.h"

namespace pagegrad {

KeyBlocks find_blocks(const pagegrad_plan &plan, const Run &run, Range keys) {
    const int64_t place = run.first_slot + keys.begin;
    const auto first_slot = static_cast<int32_t>(place % plan.block_size);
    const int64_t count = (first_slot + keys.size() - 1) / plan.block_size + 1;
    const int32_t *blocks = &plan.blocks[run.first_block + place / plan.block_size];
    return {KernelBuffer(blocks, {{count, 1}}), first_slot, static_cast<int32_t>(keys.size())};
}

Packing::Packing(int32_t head_dim, const Kernel &products, pagegrad_dtype dtype)
    : columns(round_up(head_dim, 32)), words(products.multiplies_pairs() ? columns / 2 : columns),
      in_pairs(products.multiplies_pairs()),
      key_packer(companion(products, Operation::pack_keys, dtype)),
      key_transposer(companion(products, Operation::transpose_keys, dtype)),
      query_packer(companion(products, Operation::pack_queries, dtype)),
      query_transposer(companion(products, Operation::transpose_queries, dtype)) {
}

Operand Packing::take(Carver &carver, int64_t rows) const {
    auto *memory = carver.take<int32_t>(rows * columns);
    return {memory, in_pairs && memory ? memory + rows * words : memory};
}

KernelBuffer Packing::packed(const Operand &operand, int64_t rows) const {
    return {operand.packed, {{words, 1}, {rows, words}}};
}

KernelBuffer Packing::pairs(const Operand &operand, int64_t rows) const {
    return {operand.pairs, {{columns, 1}, {in_pairs ? rows / 2 : rows, columns}}};
}

KernelBuffer Packing::transposed(const int32_t *words, int64_t rows) const {
    return {words, {{rows, 1}, {this->words, rows}}};
}

int Packing::pack_keys(KernelArena &arena, const pagegrad_tensor &pool, const KeyBlocks &keys,
                       int32_t kv_head, const Operand &to, int64_t rows) const {
    if (in_pairs) {
        return key_packer.as<PackKeyPairsKernel>()(&arena, pool_buffer(pool), keys.blocks,
                                                   keys.first_slot, keys.num_keys, kv_head,
                                                   packed(to, rows), pairs(to, rows));
    }
    return key_packer.as<PackKeysKernel>()(&arena, pool_buffer(pool), keys.blocks, keys.first_slot,
                                           keys.num_keys, kv_head, packed(to, rows));
}

int Packing::transpose_keys(KernelArena &arena, const pagegrad_tensor &pool, const KeyBlocks &keys,
                            int32_t kv_head, int32_t *to, int64_t rows) const {
    return key_transposer.as<TransposeKeysKernel>()(&arena, pool_buffer(pool), keys.blocks,
                                                    keys.first_slot, keys.num_keys, kv_head,
                                                    transposed(to, rows));
}

int Packing::pack_queries(KernelArena &arena, const pagegrad_tensor &tensor,
                          const KernelBuffer &list, const Operand &to, int64_t rows) const {
    if (in_pairs) {
        return query_packer.as<PackQueryPairsKernel>()(&arena, query_buffer(tensor), list,
                                                       packed(to, rows), pairs(to, rows));
    }
    return query_packer.as<PackQueriesKernel>()(&arena, query_buffer(tensor), list,
                                                packed(to, rows));
}

int Packing::transpose_queries(KernelArena &arena, const pagegrad_tensor &tensor,
                               const KernelBuffer &list, int32_t *to, int64_t rows) const {
    return query_transposer.as<TransposeQueriesKernel>()(&arena, query_buffer(tensor), list,
                                                         transposed(to, rows));
}

}  // namespace pagegrad
