/// The work lists that GPU kernels read; their layout is described in lowering/README.md.
#pragma once

#include "paging.h"

namespace pagegrad {

/// Fields of a task: a tile of keys and the queries that it takes.
enum TaskField {
    task_block_begin,
    task_first_slot,
    task_first_key,
    task_num_keys,
    task_kv_head,
    task_query_begin,
    task_query_end,
    task_fields = 8
};

struct Task {
    template<typename Tasks>
    Task(const Tasks &tasks, const Expr &task)
        : block_begin(tasks(task_block_begin, task)), first_slot(tasks(task_first_slot, task)),
          first_key(tasks(task_first_key, task)), num_keys(tasks(task_num_keys, task)),
          kv_head(tasks(task_kv_head, task)), query_begin(tasks(task_query_begin, task)),
          query_end(tasks(task_query_end, task)) {
    }

    Expr block_begin, first_slot, first_key, num_keys, kv_head, query_begin, query_end;
};

/// Fields of an entry: a query token, which stands for all heads of a group.
enum EntryField { entry_token, entry_batch, entry_key_begin, entry_key_end, entry_fields };

/// Packed rows in the form that QueryRow reads, from entries (field, row) and heads (row).
template<typename Entries, typename Heads>
auto packed_rows(const Entries &entries, const Heads &heads) {
    return [=](int field, const Expr &row) -> Expr {
        switch (field) {
        case row_token:
            return entries(entry_token, row);
        case row_batch:
            return entries(entry_batch, row);
        case row_head:
            return heads(row);
        case row_key_begin:
            return entries(entry_key_begin, row);
        default:
            return entries(entry_key_end, row);
        }
    };
}

}  // namespace pagegrad
