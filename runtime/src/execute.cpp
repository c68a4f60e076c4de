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

KeyBlocks find_blocks(const pagegrad_plan &plan, const Run &run, Range keys) {
    const int64_t place = run.first_slot + keys.begin;
    const auto first_slot = static_cast<int32_t>(place % plan.block_size);
    const int64_t count = (first_slot + keys.size() - 1) / plan.block_size + 1;
    const int32_t *blocks = &plan.blocks[run.first_block + place / plan.block_size];
    return {KernelBuffer(blocks, {{count, 1}}), first_slot};
}

}  // namespace pagegrad
