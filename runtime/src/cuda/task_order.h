/// What the lists of both kinds of tasks have in common.
#pragma once

#include "../status.h"
#include "work_lists.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

namespace pagegrad::cuda {

/// Refuses more entries of a list than kernels can count.
inline void check_count(size_t count, const char *what) {
    constexpr size_t limit = std::numeric_limits<int32_t>::max();
    if (count > limit) {
        fail(PAGEGRAD_UNSUPPORTED, "the plan has ", count, " ", what, ", expected at most ", limit,
             " on GPUs");
    }
}

/// Puts the tasks of a list in the order in which they start.
///
/// Tasks that read the same memory are a member of a group, and groups are as large as a GPU runs
/// at once: what the tasks have in common is in its cache then. The tasks of a group start in the
/// order of their work: who comes last has little to do, and a short task of one group is followed
/// by a long one of the next.
template<typename Task>
class TaskOrder {
public:
    TaskOrder(TaskList<Task> &list, int32_t group_tasks)
        : list(list), group_tasks(static_cast<size_t>(group_tasks)) {
    }

    void add(const Task &task, int64_t work) {
        group.push_back({work, task});
    }

    /// Ends a member, and the group if another such member would be too much.
    void end_member() {
        const size_t member = group.size() - members_end;
        members_end = group.size();
        if (group.size() + member > group_tasks) {
            end_group();
        }
    }

    void end_group() {
        std::stable_sort(group.begin(), group.end(),
                         [](const Item &a, const Item &b) { return a.work > b.work; });
        check_count(list.tasks.size() + group.size(), "tasks");
        for (const Item &item : group) {
            list.tasks.push_back(item.task);
        }
        group.clear();
        members_end = 0;
    }

private:
    struct Item {
        int64_t work;
        Task task;
    };

    TaskList<Task> &list;
    const size_t group_tasks;
    std::vector<Item> group;
    size_t members_end = 0;  ///< tasks of the group that belong to members that have ended
};

/// Appends a query that sees `keys`.
template<typename Task>
void add_query(TaskList<Task> &list, const pagegrad_plan &plan, int32_t sequence, int64_t query,
               Range keys) {
    const auto begin = static_cast<int32_t>(keys.begin), end = static_cast<int32_t>(keys.end);
    const int64_t token = plan.sequences[sequence].query_start + query;
    list.packed_queries.push_back({static_cast<int32_t>(token), 0, begin, end});
    list.batched_queries.push_back({static_cast<int32_t>(query), sequence, begin, end});
    check_count(list.packed_queries.size(), "queries of all tasks");
}

void add_key_tasks(const pagegrad_plan &plan, const WorkSchedule &schedule, WorkLists &lists);
void add_query_tasks(const pagegrad_plan &plan, const WorkSchedule &schedule, WorkLists &lists);

}  // namespace pagegrad::cuda
