/// Tasks of tiles of query rows.
#include "task_order.h"

namespace pagegrad::cuda {

namespace {

class QueryTaskBuilder {
public:
    QueryTaskBuilder(const pagegrad_plan &plan, const WorkSchedule &schedule, WorkLists &lists)
        : plan(plan), tile_rows(schedule.tile_rows), lists(lists),
          order(lists.queries, schedule.group_tasks) {
    }

    void build() {
        for (size_t b = 0; b < plan.sequences.size(); b++) {
            add_sequence(static_cast<int32_t>(b));
        }
        order.end_group();
    }

private:
    void add_sequence(int32_t index) {
        const Sequence &sequence = plan.sequences[index];
        const Visibility mask = plan.visibility(sequence);
        const auto first_entry = static_cast<int32_t>(lists.queries.packed_queries.size());
        for (int64_t query = 0; query < sequence.query_length; query++) {
            const Range keys = mask.keys(query);
            add_query(lists.queries, plan, index, query, keys);
            lists.has_blind_queries |= keys.empty();
        }
        const int64_t rows = int64_t{sequence.query_length} * plan.group();
        check_count(rows, "query rows of a sequence");
        for (int32_t kv_head = 0; kv_head < plan.num_kv_heads; kv_head++) {
            for (int64_t row = 0; row < rows; row += tile_rows) {
                add_task(sequence, mask, kv_head, {row, std::min(row + tile_rows, rows)},
                         first_entry);
            }
            order.end_member();
        }
    }

    void add_task(const Sequence &sequence, const Visibility &mask, int32_t kv_head, Range rows,
                  int32_t first_entry) {
        // Both ends grow with the query.
        const Range first = mask.keys(rows.begin / plan.group());
        const Range last = mask.keys((rows.end - 1) / plan.group());
        const Range any{first.begin, last.end};
        if (any.empty()) {
            return;
        }
        QueryTask task{};
        task.block_begin = sequence.table_begin;
        task.key_begin = static_cast<int32_t>(any.begin);
        task.key_end = static_cast<int32_t>(any.end);
        task.all_begin = static_cast<int32_t>(last.begin);
        task.all_end = static_cast<int32_t>(first.end);
        task.kv_head = kv_head;
        task.query_begin = first_entry;
        task.row_begin = static_cast<int32_t>(rows.begin);
        task.row_end = static_cast<int32_t>(rows.end);
        order.add(task, rows.size() * any.size());
    }

    const pagegrad_plan &plan;
    const int32_t tile_rows;
    WorkLists &lists;
    TaskOrder<QueryTask> order;
};

}  // namespace

void add_query_tasks(const pagegrad_plan &plan, const WorkSchedule &schedule, WorkLists &lists) {
    QueryTaskBuilder(plan, schedule, lists).build();
}

}  // namespace pagegrad::cuda
