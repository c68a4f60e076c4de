/// The work lists of a plan in the form that GPU kernels read. The layouts are those of
/// lowering/README.md.
#pragma once

#include "../plan.h"

#include <cstdint>
#include <vector>

namespace pagegrad::cuda {

/// A tile of keys of a run for a KV head, and the queries that it takes.
struct Task {
    int32_t block_begin;  ///< index into the plan's blocks of the one with the first key
    int32_t first_slot;   ///< of that key in the block
    int32_t first_key;    ///< counted from the run's first key
    int32_t num_keys;
    int32_t kv_head;
    int32_t query_begin, query_end;  ///< range of the queries
    int32_t unused;
};

/// A query token, which stands for all heads of a group.
struct Query {
    int32_t token, batch;
    int32_t key_begin, key_end;  ///< that it sees, counted from the run's first key
};

/// What decides the order of tasks, and their size. Nothing here changes a result by more than the
/// order of sums.
struct WorkSchedule {
    int32_t tile_keys = 128;
    /// Tasks whose queries take this much memory together run side by side: half of the L2 cache
    /// of an H100, where also their sums are.
    int64_t group_bytes = 24 << 20;
};

struct WorkLists {
    std::vector<Task> tasks;
    /// The same queries as they lie in packed tensors and in those with a batch dimension.
    std::vector<Query> packed_queries, batched_queries;
};

/// Cuts the runs into tiles. Every pool row belongs to one task for each KV head. The queries of a
/// run are in the order of their place in the mask, whatever their sequence: those that see a tile
/// are a range then.
WorkLists make_work_lists(const pagegrad_plan &plan, const WorkSchedule &schedule = {});

}  // namespace pagegrad::cuda
