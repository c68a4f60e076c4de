#include "execute.h"

#include "rows.h"
#include "status.h"

namespace pagegrad {

void KernelStatus::check() const {
    if (first != 0) {
        fail(PAGEGRAD_INTERNAL, "a kernel failed with Halide's error code ", first.load());
    }
}

int64_t padded_head_dim(const pagegrad_plan &plan) {
    return round_up(plan.head_dim, 32);
}

int64_t arena_bytes(const pagegrad_plan &plan, int64_t keys, int copies) {
    const int64_t row = padded_head_dim(plan) * static_cast<int64_t>(sizeof(float));
    const int64_t packed_keys = copies * (keys + max_kv_tile + 16) * row;
    const int64_t packed_queries = 2 * (max_query_tile + 16) * row;
    constexpr int64_t small_change = 16 << 10;
    return packed_keys + packed_queries + small_change;
}

KeyBlocks find_blocks(const pagegrad_plan &plan, const Run &run, Range keys) {
    const int64_t place = run.first_slot + keys.begin;
    const auto first_slot = static_cast<int32_t>(place % plan.block_size);
    const int64_t count = (first_slot + keys.size() - 1) / plan.block_size + 1;
    const int32_t *blocks = &plan.blocks[run.first_block + place / plan.block_size];
    return {KernelBuffer(blocks, {{count, 1}}), first_slot};
}

}  // namespace pagegrad
