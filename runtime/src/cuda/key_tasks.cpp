/// Tasks of tiles of keys.
#include "task_order.h"

namespace pagegrad::cuda {

namespace {

/// A run, cut into tiles of keys, with the queries that see it.
class TiledRun {
public:
    TiledRun(const pagegrad_plan &plan, const Run &run, int32_t tile_keys)
        : plan(plan), run(run), tile_keys(tile_keys) {
        find_queries();
    }

    int32_t num_tiles() const {
        return (run.num_keys - 1) / tile_keys + 1;
    }

    /// Which of the queries see a key of a tile. They are in the order of their diagonal: first
    /// those that end before the tile, last those that begin after it.
    Range seeing(int32_t tile) const {
        const Range keys = keys_of(tile);
        const auto first =
            std::partition_point(queries.begin(), queries.end(), [&](const PlacedQuery &query) {
                return query.keys.end <= keys.begin;
            });
        const auto last = std::partition_point(first, queries.end(), [&](const PlacedQuery &query) {
            return query.keys.begin < keys.end;
        });
        return {first - queries.begin(), last - queries.begin()};
    }

    KeyTask task(int32_t tile, int32_t kv_head, Range taken) const {
        const Range keys = keys_of(tile);
        const int64_t place = run.first_slot + keys.begin;
        KeyTask task{};
        task.block_begin = static_cast<int32_t>(run.first_block + place / plan.block_size);
        task.first_slot = static_cast<int32_t>(place % plan.block_size);
        task.first_key = static_cast<int32_t>(keys.begin);
        task.num_keys = static_cast<int32_t>(keys.size());
        task.kv_head = kv_head;
        task.query_begin = static_cast<int32_t>(first_entry + taken.begin);
        task.query_end = static_cast<int32_t>(first_entry + taken.end);
        return task;
    }

    /// Appends the queries to those of all runs.
    void add_queries(TaskList<KeyTask> &list) {
        first_entry = static_cast<int64_t>(list.packed_queries.size());
        for (const PlacedQuery &placed : queries) {
            add_query(list, plan, placed.sequence, placed.query, placed.keys);
        }
    }

private:
    /// A query that sees a key of the run. All but `query` count from the run's first key.
    struct PlacedQuery {
        int32_t sequence;
        int64_t query;
        int64_t diagonal;  ///< both ends of the keys grow with it
        Range keys;
    };

    void find_queries() {
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

    Range keys_of(int32_t tile) const {
        const int64_t begin = int64_t{tile} * tile_keys;
        return {begin, std::min<int64_t>(begin + tile_keys, run.num_keys)};
    }

    const pagegrad_plan &plan;
    const Run &run;
    const int32_t tile_keys;
    std::vector<PlacedQuery> queries;
    int64_t first_entry = 0;  ///< of the queries in the list
};

}  // namespace

void add_key_tasks(const pagegrad_plan &plan, const WorkSchedule &schedule, WorkLists &lists) {
    TaskOrder<KeyTask> order(lists.keys, schedule.group_tasks);
    for (const Run &run : plan.runs) {
        TiledRun tiled(plan, run, schedule.tile_keys);
        tiled.add_queries(lists.keys);
        for (int32_t kv_head = 0; kv_head < plan.num_kv_heads; kv_head++) {
            for (int32_t tile = 0; tile < tiled.num_tiles(); tile++) {
                const Range seeing = tiled.seeing(tile);
                if (!seeing.empty()) {
                    const KeyTask task = tiled.task(tile, kv_head, seeing);
                    order.add(task, task.num_keys * seeing.size());
                }
            }
            order.end_member();
        }
    }
    order.end_group();
}

}  // namespace pagegrad::cuda
