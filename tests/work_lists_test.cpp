// The work lists of GPUs: every pair of a query and a key that it sees stands in exactly one task.
#include "cuda/work_lists.h"

#include "tests/support/geometries.h"

#include <algorithm>
#include <set>
#include <tuple>

namespace pagegrad::test {
namespace {

using cuda::Query;
using cuda::Task;
using cuda::WorkLists;

/// Sequence, query, KV head, pool row.
using Pair = std::tuple<int32_t, int64_t, int32_t, int64_t>;

struct WorkCase {
    std::string name;
    Geometry geometry;
};

std::ostream &operator<<(std::ostream &stream, const WorkCase &test) {
    return stream << test.name;
}

std::vector<WorkCase> work_cases() {
    std::vector<WorkCase> cases;
    for (const auto &[name, geometry] : geometries()) {
        cases.push_back({name, geometry});
    }
    cases.push_back({"window_over_shared_tiles", Geometry({40, 90, 17}, {300, 350, 300})
                                                     .heads(2, 2)
                                                     .prefix(18)
                                                     .window(70, -1)
                                                     .bottom_right()});
    return cases;
}

class WorkListsOf : public testing::TestWithParam<WorkCase> {
protected:
    const Problem problem = make_problem(GetParam().geometry);
    const PagedCall call{problem};
    const pagegrad_plan &plan = *call.plan();

    int64_t slot_of(const Task &task, int32_t key) const {
        const int64_t place = task.first_slot + (key - task.first_key);
        return int64_t{plan.blocks[task.block_begin + place / plan.block_size]} * plan.block_size +
               place % plan.block_size;
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

    /// Pairs of all tasks; `name` turns a query into its sequence and number.
    template<typename Name>
    std::vector<Pair> pairs_of(const WorkLists &lists, const std::vector<Query> &queries,
                               const Name &name) const {
        std::vector<Pair> pairs;
        for (const Task &task : lists.tasks) {
            for (int32_t at = task.query_begin; at < task.query_end; at++) {
                const auto [sequence, query] = name(queries[at]);
                for (int32_t key = task.first_key; key < task.first_key + task.num_keys; key++) {
                    if (key >= queries[at].key_begin && key < queries[at].key_end) {
                        pairs.emplace_back(sequence, query, task.kv_head, slot_of(task, key));
                    }
                }
            }
        }
        std::sort(pairs.begin(), pairs.end());
        return pairs;
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

TEST_P(WorkListsOf, hold_every_visible_pair_once) {
    const WorkLists lists = cuda::make_work_lists(plan);
    const std::vector<Pair> expected = expected_pairs();
    EXPECT_EQ(pairs_of(lists, lists.batched_queries,
                       [](const Query &query) {
                           return std::pair<int32_t, int64_t>(query.batch, query.token);
                       }),
              expected);
    EXPECT_EQ(pairs_of(lists, lists.packed_queries,
                       [&](const Query &query) { return packed_name(query); }),
              expected);
}

TEST_P(WorkListsOf, have_tasks_without_idle_queries_or_common_keys) {
    const WorkLists lists = cuda::make_work_lists(plan);
    std::set<std::pair<int32_t, int64_t>> seen;
    for (const Task &task : lists.tasks) {
        ASSERT_GE(task.num_keys, 1);
        ASSERT_LE(task.num_keys, 128);
        ASSERT_LT(task.first_slot, plan.block_size);
        ASSERT_LT(task.query_begin, task.query_end);
        for (int32_t at = task.query_begin; at < task.query_end; at++) {
            EXPECT_LT(lists.packed_queries[at].key_begin, task.first_key + task.num_keys);
            EXPECT_GT(lists.packed_queries[at].key_end, task.first_key);
        }
        for (int32_t key = task.first_key; key < task.first_key + task.num_keys; key++) {
            EXPECT_TRUE(seen.emplace(task.kv_head, slot_of(task, key)).second);
        }
    }
}

TEST_P(WorkListsOf, start_with_the_largest_task_of_a_group) {
    cuda::WorkSchedule one_group;
    one_group.group_bytes = std::numeric_limits<int64_t>::max();
    const std::vector<Task> tasks = cuda::make_work_lists(plan, one_group).tasks;
    EXPECT_TRUE(std::is_sorted(tasks.begin(), tasks.end(), [](const Task &a, const Task &b) {
        return a.num_keys * (a.query_end - a.query_begin) >
               b.num_keys * (b.query_end - b.query_begin);
    }));
    EXPECT_EQ(tasks.size(), cuda::make_work_lists(plan).tasks.size());
}

INSTANTIATE_TEST_SUITE_P(, WorkListsOf, testing::ValuesIn(work_cases()),
                         [](const auto &info) { return info.param.name; });

TEST(WorkGroups, keep_the_queries_of_a_group_together) {
    const Problem problem = make_problem(Geometry({256, 256}).dim(64).heads(2, 2).bottom_right());
    const PagedCall call(problem);
    cuda::WorkSchedule small_groups;
    small_groups.group_bytes = 1;
    const std::vector<Task> tasks = cuda::make_work_lists(*call.plan(), small_groups).tasks;
    ASSERT_EQ(tasks.size(), 8U);
    for (size_t first = 0; first < tasks.size(); first += 2) {
        EXPECT_EQ(tasks[first].kv_head, tasks[first + 1].kv_head);
        EXPECT_EQ(tasks[first].query_end, tasks[first + 1].query_end);
        EXPECT_LT(tasks[first].first_key, tasks[first + 1].first_key);
    }
}

}  // namespace
}  // namespace pagegrad::test
