/// The work lists of a plan in the form that GPU kernels read. The layouts are those of
/// lowering/README.md.
#pragma once

#include "../plan.h"
#include "device_kernels.h"

#include <cstdint>
#include <vector>

namespace pagegrad::cuda {

/// A tile of keys of a run for a KV head, and the queries that it takes.
struct KeyTask {
    int32_t block_begin;  ///< index into the blocks of the runs of the one with the first key
    int32_t first_slot;   ///< of that key in the block
    int32_t first_key;    ///< counted from the run's first key
    int32_t num_keys;
    int32_t kv_head;
    int32_t query_begin, query_end;  ///< range of the queries
    int32_t unused;
};

/// A tile of query rows of a sequence for a KV head, and the keys that they see.
struct QueryTask {
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
    /// Keys that it sees, counted from the first key of the run or of the sequence.
    int32_t key_begin, key_end;
};

template<typename Task>
struct TaskList {
    std::vector<Task> tasks;  ///< in the order in which they start
    /// The same queries as they lie in packed tensors and in those with a batch dimension.
    std::vector<Query> packed_queries, batched_queries;
};

/// Tasks of runs, for the gradients of keys and values and the unordered backward, which read the
/// blocks of the runs; and tasks of sequences, for the forward and dq, which read the block table.
struct WorkLists {
    TaskList<KeyTask> keys;
    TaskList<QueryTask> queries;
    /// Whether some query is in no task of its sequence, since it sees no key.
    bool has_blind_queries = false;
};

/// What decides the size of tasks, as the kernels for a head_dim want them, and their order.
struct WorkSchedule {
    int32_t tile_keys = 128;  ///< of a KeyTask
    int32_t tile_rows = 192;  ///< of a QueryTask
    /// Tasks that read the same memory stay together in groups of this size: one task for each
    /// multiprocessor of an H100.
    int32_t group_tasks = 132;

    static WorkSchedule of_head_dim(int32_t head_dim) {
        WorkSchedule schedule;
        schedule.tile_rows = head_dim > narrow_head_dim ? 128 : 192;
        return schedule;
    }
};

/// Every pool row belongs to one KeyTask for each KV head. The queries of a run are in
/// the order of their place in the mask, whatever their sequence: those that see a tile are a range
/// then. In a group of tasks the longest start first.
WorkLists make_work_lists(const pagegrad_plan &plan, const WorkSchedule &schedule = {});

}  // namespace pagegrad::cuda
