#include "work_lists.h"

#include "../status.h"

#include <algorithm>
#include <limits>

namespace pagegrad::cuda {

namespace {

/// A query that sees a key of a run.
struct PlacedQuery {
    int32_t sequence;
    int64_t query;
    int64_t diagonal;  ///< relative to the run's first key; both ends of its keys grow with it
    Range keys;        ///< relative to the run's first key
};

class WorkBuilder {
public:
    WorkBuilder(const pagegrad_plan &plan, const WorkSchedule &schedule)
        : plan(plan), schedule(schedule) {
    }

    WorkLists build() {
        for (const Run &run : plan.runs) {
            add_run(run);
        }
        sort_group();
        return std::move(lists);
    }

private:
    void add_run(const Run &run) {
        find_queries(run);
        const auto begin = static_cast<int32_t>(lists.packed_queries.size());
        append_queries();
        for (int32_t kv_head = 0; kv_head < plan.num_kv_heads; kv_head++) {
            for (int32_t key = 0; key < run.num_keys; key += schedule.tile_keys) {
                add_task(run, kv_head, key, begin);
            }
            close_member();
        }
    }

    void find_queries(const Run &run) {
        queries.clear();
        for (int32_t u = run.users_begin; u < run.users_end; u++) {
            const RunUser &user = plan.users[u];
            const int64_t first_key = user.first_key;
            const Visibility mask = plan.visibility(plan.sequences[user.sequence]);
            const Range seeing = mask.queries({first_key, first_key + run.num_keys});
            for (int64_t query = seeing.begin; query < seeing.end; query++) {
                const Range keys = mask.keys(query);
                queries.push_back({user.sequence,
                                   query,
                                   mask.diagonal(query) - first_key,
                                   {keys.begin - first_key, keys.end - first_key}});
            }
        }
        const auto earlier = [](const PlacedQuery &a, const PlacedQuery &b) {
            return a.diagonal < b.diagonal;
        };
        if (!std::is_sorted(queries.begin(), queries.end(), earlier)) {
            std::stable_sort(queries.begin(), queries.end(), earlier);
        }
    }

    void append_queries() {
        for (const PlacedQuery &placed : queries) {
            const Sequence &sequence = plan.sequences[placed.sequence];
            const auto begin = static_cast<int32_t>(placed.keys.begin);
            const auto end = static_cast<int32_t>(placed.keys.end);
            lists.packed_queries.push_back(
                {static_cast<int32_t>(sequence.query_start + placed.query), 0, begin, end});
            lists.batched_queries.push_back(
                {static_cast<int32_t>(placed.query), placed.sequence, begin, end});
        }
        check_count(lists.packed_queries.size(), "queries of all runs");
    }

    void add_task(const Run &run, int32_t kv_head, int32_t key, int32_t query_begin) {
        const int32_t num_keys = std::min(schedule.tile_keys, run.num_keys - key);
        // Sorted by diagonal: first those that end before the tile, last those that begin after.
        const auto first =
            std::partition_point(queries.begin(), queries.end(),
                                 [&](const PlacedQuery &query) { return query.keys.end <= key; });
        const auto last = std::partition_point(first, queries.end(), [&](const PlacedQuery &query) {
            return query.keys.begin < key + num_keys;
        });
        if (first == last) {
            return;
        }
        const int64_t place = int64_t{run.first_slot} + key;
        Task task{};
        task.block_begin = static_cast<int32_t>(run.first_block + place / plan.block_size);
        task.first_slot = static_cast<int32_t>(place % plan.block_size);
        task.first_key = key;
        task.num_keys = num_keys;
        task.kv_head = kv_head;
        task.query_begin = query_begin + static_cast<int32_t>(first - queries.begin());
        task.query_end = query_begin + static_cast<int32_t>(last - queries.begin());
        lists.tasks.push_back(task);
        check_count(lists.tasks.size(), "tasks");
    }

    /// Ends the tasks of a run and a KV head, which read the same queries. Members join a group
    /// until their queries fill the cache.
    void close_member() {
        constexpr int64_t bytes_of_element = 2 + 2 + 4;  // q, dout and the sums of dq
        group_bytes +=
            static_cast<int64_t>(queries.size()) * plan.group() * plan.head_dim * bytes_of_element;
        if (group_bytes >= schedule.group_bytes) {
            sort_group();
        }
    }

    /// Puts the tasks of the last group in the order of their work: whoever comes last has little.
    void sort_group() {
        const auto work = [](const Task &task) {
            return int64_t{task.num_keys} * (task.query_end - task.query_begin);
        };
        std::stable_sort(lists.tasks.begin() + group_begin, lists.tasks.end(),
                         [&](const Task &a, const Task &b) { return work(a) > work(b); });
        group_begin = static_cast<std::ptrdiff_t>(lists.tasks.size());
        group_bytes = 0;
    }

    static void check_count(size_t count, const char *what) {
        constexpr size_t limit = std::numeric_limits<int32_t>::max();
        if (count > limit) {
            fail(PAGEGRAD_UNSUPPORTED, "the plan has ", count, " ", what, ", expected at most ",
                 limit, " on GPUs");
        }
    }

    const pagegrad_plan &plan;
    const WorkSchedule schedule;
    WorkLists lists;
    std::vector<PlacedQuery> queries;  ///< of the run
    std::ptrdiff_t group_begin = 0;
    int64_t group_bytes = 0;
};

}  // namespace

WorkLists make_work_lists(const pagegrad_plan &plan, const WorkSchedule &schedule) {
    return WorkBuilder(plan, schedule).build();
}

}  // namespace pagegrad::cuda
