/// Tasks of the backward: in one launch, or in several so that every sum has a fixed order.
#include "task_order.h"

#include <cmath>

namespace pagegrad::cuda {

namespace {

/// A query that sees a key of a run. All but `query` count from the run's first key.
struct PlacedQuery {
    int32_t sequence;
    int64_t query;
    int64_t diagonal;  ///< both ends of the keys grow with it
    Range keys;
};

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

    /// The task of a tile and some of the queries, for KV head 0.
    BackwardTask task(int32_t tile, Range taken) const {
        const Range keys = keys_of(tile);
        const int64_t place = run.first_slot + keys.begin;
        BackwardTask task{};
        task.block_begin = static_cast<int32_t>(run.first_block + place / plan.block_size);
        task.first_slot = static_cast<int32_t>(place % plan.block_size);
        task.first_key = static_cast<int32_t>(keys.begin);
        task.num_keys = static_cast<int32_t>(keys.size());
        task.query_begin = static_cast<int32_t>(first_entry + taken.begin);
        task.query_end = static_cast<int32_t>(first_entry + taken.end);
        return task;
    }

    /// Appends the queries to those of all runs.
    void add_queries(TaskList<BackwardTask> &list) {
        first_entry = static_cast<int64_t>(list.packed_queries.size());
        for (const PlacedQuery &placed : queries) {
            add_query(list, plan, placed.sequence, placed.query, placed.keys);
        }
    }

    std::vector<PlacedQuery> queries;

private:
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
    int64_t first_entry = 0;
};

int64_t work_of(const BackwardTask &task) {
    return int64_t{task.num_keys} * (task.query_end - task.query_begin);
}

double work_of(const pagegrad_plan &plan, const Run &run) {
    return static_cast<double>(run.num_keys) * static_cast<double>(visible_tokens(plan, run));
}

/// One launch, a task for each tile.
void add_unordered(const pagegrad_plan &plan, const WorkSchedule &schedule,
                   TaskList<BackwardTask> &list) {
    TaskOrder<BackwardTask> order(list, schedule.group_tasks);
    for (const Run &run : plan.runs) {
        TiledRun tiled(plan, run, schedule.tile_keys);
        tiled.add_queries(list);
        for (int32_t kv_head = 0; kv_head < plan.num_kv_heads; kv_head++) {
            for (int32_t tile = 0; tile < tiled.num_tiles(); tile++) {
                const Range seeing = tiled.seeing(tile);
                if (!seeing.empty()) {
                    BackwardTask task = tiled.task(tile, seeing);
                    task.kv_head = kv_head;
                    order.add(task, work_of(task));
                }
            }
            order.end_member();
        }
    }
    order.end_launch();
}

/// Launches in which no two tasks add to the same sum.
///
/// The queries of a run are cut into chunks, and a task is a tile and a chunk. In one launch every
/// tile takes another chunk, in the next launch the one after it. A task is in the first launch
/// after all that hold its keys or one of its queries.
class OrderedLaunches {
public:
    OrderedLaunches(const pagegrad_plan &plan, const WorkSchedule &schedule,
                    TaskList<BackwardTask> &list)
        : plan(plan), schedule(schedule), list(list) {
        int64_t queries = 0;
        for (const Sequence &sequence : plan.sequences) {
            first_query.push_back(queries);
            queries += sequence.query_length;
        }
        free_launch.resize(queries);
        last_part.resize(queries);
    }

    void build() {
        for (const Run &run : plan.runs) {
            all_work += work_of(plan, run);
        }
        for (const Run &run : plan.runs) {
            TiledRun tiled(plan, run, schedule.tile_keys);
            tiled.add_queries(list);
            add_run(tiled, chunk_size(run, tiled));
        }
        std::stable_sort(pieces.begin(), pieces.end(),
                         [](const Piece &a, const Piece &b) { return a.launch < b.launch; });
        TaskOrder<BackwardTask> order(list, std::numeric_limits<int32_t>::max());
        for (size_t i = 0; i < pieces.size(); i++) {
            if (i > 0 && pieces[i].launch != pieces[i - 1].launch) {
                order.end_launch();
            }
            BackwardTask task = pieces[i].task;
            for (task.kv_head = 0; task.kv_head < plan.num_kv_heads; task.kv_head++) {
                order.add(task, work_of(task));
            }
        }
        order.end_launch();
    }

private:
    /// A task of all KV heads.
    struct Piece {
        int32_t launch;
        BackwardTask task;
    };

    /// Queries of a chunk: enough chunks for the GPU to be busy, given that other runs have tasks
    /// in a launch too; but no more than there are tiles to take them.
    int64_t chunk_size(const Run &run, const TiledRun &tiled) const {
        const double tasks_per_chunk = plan.num_kv_heads * all_work / work_of(plan, run);
        const double wanted = std::ceil(schedule.ordered_tasks / tasks_per_chunk);
        const auto chunks = static_cast<int64_t>(std::min<double>(wanted, tiled.num_tiles()));
        const int64_t step_queries = std::max(1, schedule.step_rows / plan.group());
        const auto queries = static_cast<int64_t>(tiled.queries.size());
        return ((queries - 1) / chunks / step_queries + 1) * step_queries;
    }

    void add_run(const TiledRun &tiled, int64_t chunk_size) {
        const int32_t tiles = tiled.num_tiles();
        std::vector<int32_t> free_launch_of_tile(tiles);
        std::vector<Range> seeing;
        for (int32_t tile = 0; tile < tiles; tile++) {
            seeing.push_back(tiled.seeing(tile));
        }
        const auto queries = static_cast<int64_t>(tiled.queries.size());
        const int64_t steps = std::max<int64_t>(tiles, (queries - 1) / chunk_size + 1);
        for (int64_t step = 0; step < steps; step++) {
            for (int32_t tile = 0; tile < tiles; tile++) {
                const int64_t begin = (tile + step) % steps * chunk_size;
                Range taken{std::max(begin, seeing[tile].begin),
                            std::min(begin + chunk_size, seeing[tile].end)};
                while (!taken.empty()) {
                    const Range part = without_repeats(tiled, taken);
                    const int32_t launch = find_launch(tiled, part, free_launch_of_tile[tile]);
                    pieces.push_back({launch, tiled.task(tile, part)});
                    taken.begin = part.end;
                }
            }
        }
    }

    /// The first part in which no query stands twice, as it may where its sequence uses a run
    /// twice.
    Range without_repeats(const TiledRun &tiled, Range taken) {
        num_parts++;
        int64_t end = taken.begin;
        while (end < taken.end && last_part[number_of(tiled.queries[end])] != num_parts) {
            last_part[number_of(tiled.queries[end++])] = num_parts;
        }
        return {taken.begin, end};
    }

    /// Takes the first launch from `free_of_tile` on in which nobody has the queries.
    int32_t find_launch(const TiledRun &tiled, Range taken, int32_t &free_of_tile) {
        int32_t launch = free_of_tile;
        for (int64_t i = taken.begin; i < taken.end; i++) {
            launch = std::max(launch, free_launch[number_of(tiled.queries[i])]);
        }
        for (int64_t i = taken.begin; i < taken.end; i++) {
            free_launch[number_of(tiled.queries[i])] = launch + 1;
        }
        free_of_tile = launch + 1;
        return launch;
    }

    /// Place of a query among those of all sequences.
    int64_t number_of(const PlacedQuery &query) const {
        return first_query[query.sequence] + query.query;
    }

    const pagegrad_plan &plan;
    const WorkSchedule &schedule;
    TaskList<BackwardTask> &list;
    double all_work = 0;
    std::vector<int64_t> first_query;  ///< number of each sequence's first
    std::vector<int32_t> free_launch;  ///< of each query: the first after all that have it
    std::vector<int64_t> last_part;    ///< of each query: the last that has it
    int64_t num_parts = 0;
    std::vector<Piece> pieces;
};

}  // namespace

void add_backward_tasks(const pagegrad_plan &plan, const WorkSchedule &schedule,
                        TaskList<BackwardTask> &list) {
    if (schedule.ordered) {
        OrderedLaunches(plan, schedule, list).build();
    } else {
        add_unordered(plan, schedule, list);
    }
}

}  // namespace pagegrad::cuda
