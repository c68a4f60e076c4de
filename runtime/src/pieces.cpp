/// Gather and scatter-add on their own.
#include "execute.h"
#include "status.h"

namespace pagegrad {

namespace {

/// The pool may be one of keys or of values.
NamedSize last_size(const pagegrad_plan &plan, const pagegrad_tensor &pool) {
    const bool of_values = pool.rank == 4 && pool.shape[3] == plan.value_head_dim;
    return of_values ? value_size(plan) : key_size(plan);
}

void check_dense(const pagegrad_plan &plan, const pagegrad_tensor &dense, const NamedSize &last,
                 pagegrad_dtype dtype, Access access) {
    check_tensor("dense", dense, 3, dtype, access);
    check_size("dense", dense, 0, plan.kv_tokens, "sum of KV lengths");
    check_size("dense", dense, 1, plan.num_kv_heads, "num_kv_heads");
    check_size("dense", dense, 2, last.size, last.name);
}

Range keys_of(const Sequence &sequence) {
    return {sequence.kv_start, sequence.kv_start + sequence.kv_length};
}

KernelBuffer blocks_buffer(const pagegrad_plan &plan, const Sequence &sequence) {
    return {plan.table.data() + sequence.table_begin, {{sequence.num_blocks(plan.block_size), 1}}};
}

}  // namespace

void gather(const pagegrad_plan &plan, const pagegrad_tensor &pool, const pagegrad_tensor &dense,
            const pagegrad_execution &execution) {
    const pagegrad_dtype dtype = check_dtype("pool", pool.dtype);
    const NamedSize last = last_size(plan, pool);
    check_pool("pool", plan, pool, last, dtype, Access::read);
    check_dense(plan, dense, last, dtype, Access::write);
    check_distinct({{"dense", &dense}}, {{"pool", &pool}});
    auto *kernel = choose_kernel(Operation::gather, dtype, plan.head_dims(), execution.kernel)
                       .as<GatherKernel>();
    KernelStatus status;
    Threads(execution).for_each(
        static_cast<int64_t>(plan.sequences.size()), [&](int, int64_t index) {
            const Sequence &sequence = plan.sequences[index];
            if (sequence.kv_length > 0) {
                KernelArena arena;
                status.record(kernel(&arena, pool_buffer(pool), blocks_buffer(plan, sequence),
                                     dense_buffer(dense, keys_of(sequence), 0, plan.num_kv_heads)));
            }
        });
    status.check();
}

void scatter_add(const pagegrad_plan &plan, const pagegrad_tensor &dense,
                 const pagegrad_tensor &pool, const pagegrad_execution &execution) {
    const NamedSize last = last_size(plan, pool);
    check_dense(plan, dense, last, PAGEGRAD_FLOAT32, Access::read);
    check_pool("pool", plan, pool, last, PAGEGRAD_FLOAT32, Access::write);
    check_distinct({{"pool", &pool}}, {{"dense", &dense}});
    auto *kernel =
        choose_kernel(Operation::scatter_add, PAGEGRAD_FLOAT32, plan.head_dims(), execution.kernel)
            .as<ScatterAddKernel>();
    KernelStatus status;
    // Serial over the sequences, which may share blocks: the order of the sums is fixed.
    Threads(execution).for_each(plan.num_kv_heads, [&](int, int64_t kv_head) {
        for (const Sequence &sequence : plan.sequences) {
            if (sequence.kv_length > 0) {
                KernelArena arena;
                status.record(kernel(&arena, dense_buffer(dense, keys_of(sequence), kv_head, 1),
                                     blocks_buffer(plan, sequence), 0, 1.0f,
                                     pool_head_buffer(pool, static_cast<int32_t>(kv_head))));
            }
        }
    });
    status.check();
}

}  // namespace pagegrad
