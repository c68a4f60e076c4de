/// The work lists of a plan in the form that GPU kernels read. The layouts are those of
/// lowering/README.md.
#pragma once

#include "../plan.h"

#include <cstdint>
#include <vector>

namespace pagegrad::cuda {

/// A tile of keys of a run for a KV head, and the queries that it takes.
struct BackwardTask {
    int32_t block_begin;  ///< index into the blocks of the runs of the one with the first key
    int32_t first_slot;   ///< of that key in the block
    int32_t first_key;    ///< counted from the run's first key
    int32_t num_keys;
    int32_t kv_head;
    int32_t query_begin, query_end;  ///< range of the queries
    int32_t unused;
};

/// A tile of query rows of a sequence for a KV head, and the keys that they see.
struct ForwardTask {
    int32_t block_begin;         ///< index into the table of the sequence's first block
    int32_t key_begin, key_end;  ///< seen by any row
    int32_t all_begin, all_end;  ///< seen by every row
    int32_t kv_head;
    int32_t query_begin;         ///< of the sequence
    int32_t row_begin, row_end;  ///< rows, a query's heads of the group one after the other
    int32_t unused[3];
};

/// A query token, which stands for all heads of a group.
struct Query {
    int32_t token, batch;
    /// Keys that it sees, counted from the first key of the run (backward) or sequence (forward).
    int32_t key_begin, key_end;
};

template<typename Task>
struct TaskList {
    std::vector<Task> tasks;         ///< in the order in which they start
    std::vector<size_t> launch_end;  ///< of the tasks of each launch; launches follow each other
    /// The same queries as they lie in packed tensors and in those with a batch dimension.
    std::vector<Query> packed_queries, batched_queries;
};

/// Tasks of a run for the backward, which read the pool blocks of the runs, and of a sequence for
/// the forward, which read its row of the block table.
struct WorkLists {
    TaskList<BackwardTask> backward;
    TaskList<ForwardTask> forward;
    /// Whether some query is in no task of the forward, since it sees no key.
    bool has_blind_queries = false;
};

/// What decides the size of tasks and their order. Nothing here changes a result by more than the
/// order of sums.
struct WorkSchedule {
    /// Whether tasks of the backward that add to the same sums are in launches of their own, so
    /// that every sum has a fixed order.
    bool ordered = true;
    int32_t tile_keys = 128;  ///< of a task of the backward
    int32_t tile_rows = 128;  ///< of a task of the forward
    /// Tasks that read the same memory stay together in groups of this size: one task for each
    /// multiprocessor of an H100.
    int32_t group_tasks = 132;
    /// In ordered launches: tasks that the largest run should have at once, and the rows that a
    /// task takes in one step.
    int32_t ordered_tasks = 264, step_rows = 64;
};

/// Every pool row belongs to one tile of the backward for each KV head, and the tile to one task in
/// each launch. The queries of a run are in the order of their place in the mask, whatever their
/// sequence: those that see a tile are a range then. In a group of tasks the longest start first.
WorkLists make_work_lists(const pagegrad_plan &plan, const WorkSchedule &schedule = {});

}  // namespace pagegrad::cuda
