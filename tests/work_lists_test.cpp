// The work lists of GPUs: every pair of a query and a key that it sees stands in exactly one task.
#include "cuda/work_lists.h"

#include "tests/support/geometries.h"

#include <algorithm>
#include <ostream>
#include <set>
#include <tuple>

namespace pagegrad::test {
namespace {

using cuda::KeyTask;
using cuda::Query;
using cuda::QueryTask;
using cuda::WorkLists;
using cuda::WorkSchedule;

/// Sequence, query, KV head, slot of the pool.
using Pair = std::tuple<int32_t, int64_t, int32_t, int64_t>;

struct WorkCase {
    std::string name;
    Geometry geometry;
};

std::ostream &operator<<(std::ostream &stream, const WorkCase &test) {
    return stream << test.name;
}

std::vector<WorkCase> work_cases() {
    auto list = geometries();
    list.emplace_back("window_over_shared_tiles", Geometry({40, 90, 17}, {300, 350, 300})
                                                      .heads(2, 2)
                                                      .prefix(18)
                                                      .window(70, -1)
                                                      .bottom_right());
    list.emplace_back("many_tiles", Geometry({600}, {600}).heads(2, 1).bottom_right());
    std::vector<WorkCase> cases;
    for (const auto &[name, geometry] : list) {
        cases.push_back({name, geometry});
    }
    return cases;
}

class WorkListsOf : public testing::TestWithParam<WorkCase> {
protected:
    const Problem problem = make_problem(GetParam().geometry);
    const PagedCall call{problem};
    const pagegrad_plan &plan = *call.plan();

    int64_t slot_of(const KeyTask &task, int32_t key) const {
        const int64_t place = task.first_slot + (key - task.first_key);
        return int64_t{plan.blocks[task.block_begin + place / plan.block_size]} * plan.block_size +
               place % plan.block_size;
    }
    int64_t slot_of(const QueryTask &task, int32_t key) const {
        return int64_t{plan.table[task.block_begin + key / plan.block_size]} * plan.block_size +
               key % plan.block_size;
    }

    std::vector<Pair> expected_pairs() const {
        std::vector<Pair> pairs;
        const AttentionInputs &in = problem.inputs;
        for (size_t b = 0; b < plan.sequences.size(); b++) {
            for (int64_t i = 0; i < in.query_length[b]; i++) {
                for (int64_t j = 0; j < in.kv_length[b]; j++) {
                    const int64_t block =
                        plan.table[plan.sequences[b].table_begin + j / plan.block_size];
                    for (int32_t head = 0;
                         head < plan.num_kv_heads && sees(in, static_cast<int>(b), i, j); head++) {
                        pairs.emplace_back(b, i, head,
                                           block * plan.block_size + j % plan.block_size);
                    }
                }
            }
        }
        std::sort(pairs.begin(), pairs.end());
        return pairs;
    }

    /// Adds what a task does with a query, whose name is its sequence and number.
    void add_pairs(std::vector<Pair> &pairs, const KeyTask &task, const Query &query,
                   std::pair<int32_t, int64_t> name) const {
        const int32_t end = std::min(task.first_key + task.num_keys, query.key_end);
        for (int32_t key = std::max(task.first_key, query.key_begin); key < end; key++) {
            pairs.emplace_back(name.first, name.second, task.kv_head, slot_of(task, key));
        }
    }
    void add_pairs(std::vector<Pair> &pairs, const QueryTask &task, const Query &query,
                   std::pair<int32_t, int64_t> name) const {
        const int32_t end = std::min(task.key_end, query.key_end);
        for (int32_t key = std::max(task.key_begin, query.key_begin); key < end; key++) {
            pairs.emplace_back(name.first, name.second, task.kv_head, slot_of(task, key));
        }
    }

    /// Queries of a task, as indices. Those of a task of queries stand there once for every head.
    static std::vector<int32_t> queries_of(const KeyTask &task, int) {
        std::vector<int32_t> queries;
        for (int32_t at = task.query_begin; at < task.query_end; at++) {
            queries.push_back(at);
        }
        return queries;
    }
    static std::vector<int32_t> queries_of(const QueryTask &task, int group) {
        std::vector<int32_t> queries;
        for (int32_t row = task.row_begin; row < task.row_end; row++) {
            queries.push_back(task.query_begin + row / group);
        }
        return queries;
    }

    /// Pairs of all tasks; `name` turns a query into its sequence and number.
    template<typename Task, typename Name>
    std::vector<Pair> pairs_of(const std::vector<Task> &tasks, const std::vector<Query> &queries,
                               const Name &name) const {
        std::vector<Pair> pairs;
        for (const Task &task : tasks) {
            for (const int32_t at : queries_of(task, plan.group())) {
                add_pairs(pairs, task, queries[at], name(queries[at]));
            }
        }
        std::sort(pairs.begin(), pairs.end());
        return pairs;
    }

    template<typename Task>
    void expect_pairs(const cuda::TaskList<Task> &list, const std::vector<Pair> &expected) const {
        EXPECT_EQ(pairs_of(list.tasks, list.batched_queries,
                           [](const Query &query) {
                               return std::pair<int32_t, int64_t>(query.batch, query.token);
                           }),
                  expected);
        EXPECT_EQ(pairs_of(list.tasks, list.packed_queries,
                           [&](const Query &query) { return packed_name(query); }),
                  expected);
    }

    std::pair<int32_t, int64_t> packed_name(const Query &query) const {
        EXPECT_EQ(query.batch, 0);
        for (size_t b = 0; b < plan.sequences.size(); b++) {
            const int64_t number = query.token - plan.sequences[b].query_start;
            if (number >= 0 && number < plan.sequences[b].query_length) {
                return {static_cast<int32_t>(b), number};
            }
        }
        ADD_FAILURE() << "token " << query.token << " is of no sequence";
        return {};
    }
};

TEST_P(WorkListsOf, hold_every_visible_pair_once_in_tasks_of_keys) {
    expect_pairs(cuda::make_work_lists(plan).keys, expected_pairs());
}

TEST_P(WorkListsOf, hold_every_visible_pair_once_for_each_head_in_tasks_of_queries) {
    std::vector<Pair> expected;
    for (const Pair &pair : expected_pairs()) {
        expected.insert(expected.end(), plan.group(), pair);
    }
    const WorkLists lists = cuda::make_work_lists(plan);
    expect_pairs(lists.queries, expected);
}

TEST_P(WorkListsOf, know_which_keys_all_rows_of_a_task_see) {
    const WorkLists lists = cuda::make_work_lists(plan);
    for (const QueryTask &task : lists.queries.tasks) {
        ASSERT_LT(task.key_begin, task.key_end);
        ASSERT_LE(task.row_end - task.row_begin, 192);
        for (const int32_t at : queries_of(task, plan.group())) {
            const Query &query = lists.queries.packed_queries[at];
            EXPECT_LE(query.key_begin, task.all_begin);
            EXPECT_GE(query.key_end, task.all_end);
        }
    }
}

TEST_P(WorkListsOf, have_tasks_without_idle_queries) {
    const WorkLists lists = cuda::make_work_lists(plan);
    for (const KeyTask &task : lists.keys.tasks) {
        ASSERT_GE(task.num_keys, 1);
        ASSERT_LE(task.num_keys, 128);
        ASSERT_LT(task.first_slot, plan.block_size);
        ASSERT_LT(task.query_begin, task.query_end);
        for (int32_t at = task.query_begin; at < task.query_end; at++) {
            const Query &query = lists.keys.packed_queries[at];
            EXPECT_LT(query.key_begin, task.first_key + task.num_keys);
            EXPECT_GT(query.key_end, task.first_key);
        }
    }
}

TEST_P(WorkListsOf, never_have_the_same_keys_twice) {
    std::set<std::pair<int32_t, int64_t>> seen;
    for (const KeyTask &task : cuda::make_work_lists(plan).keys.tasks) {
        for (int32_t key = task.first_key; key < task.first_key + task.num_keys; key++) {
            EXPECT_TRUE(seen.emplace(task.kv_head, slot_of(task, key)).second);
        }
    }
}

TEST_P(WorkListsOf, start_with_the_largest_task_of_a_group) {
    WorkSchedule one_group;
    one_group.group_tasks = std::numeric_limits<int32_t>::max();
    const auto tasks = cuda::make_work_lists(plan, one_group).keys.tasks;
    EXPECT_TRUE(std::is_sorted(tasks.begin(), tasks.end(), [](const KeyTask &a, const KeyTask &b) {
        return a.num_keys * (a.query_end - a.query_begin) >
               b.num_keys * (b.query_end - b.query_begin);
    }));
}

INSTANTIATE_TEST_SUITE_P(, WorkListsOf, testing::ValuesIn(work_cases()),
                         [](const auto &info) { return info.param.name; });

TEST(WorkGroups, keep_the_tasks_of_a_member_together) {
    const Problem problem = make_problem(Geometry({256, 256}).dim(64).heads(2, 2).bottom_right());
    const PagedCall call(problem);
    WorkSchedule small_groups;
    small_groups.group_tasks = 2;
    const auto tasks = cuda::make_work_lists(*call.plan(), small_groups).keys.tasks;
    ASSERT_EQ(tasks.size(), 8U);
    for (size_t first = 0; first < tasks.size(); first += 2) {
        EXPECT_EQ(tasks[first].kv_head, tasks[first + 1].kv_head);
        EXPECT_EQ(tasks[first].query_end, tasks[first + 1].query_end);
        EXPECT_LT(tasks[first].first_key, tasks[first + 1].first_key);
    }
}

}  // namespace
}  // namespace pagegrad::test
