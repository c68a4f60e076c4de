// The plan: which pool rows form a run, who uses them, in which order; what is refused; and which
// queries see which keys.
#include "plan.h"
#include "status.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace pagegrad::test {
namespace {

constexpr int32_t max_int32 = std::numeric_limits<int32_t>::max();

/// A batch and the arrays that its descriptor points to.
struct Batch {
    std::vector<int32_t> query_length, kv_length, query_start;
    std::vector<std::vector<int32_t>> blocks;  ///< used table entries of each sequence
    int32_t block_size = 4;
    int64_t num_blocks = 100;
    pagegrad_mask mask = PAGEGRAD_MASK_NONE;
    int64_t window_left = -1, window_right = -1;
    int32_t num_heads = 6, num_kv_heads = 2;

    /// Has `rubbish` in unused columns. Valid until the next call.
    pagegrad_plan_desc desc(int32_t rubbish = -7) {
        int32_t max_blocks = 0;
        for (const std::vector<int32_t> &row : blocks) {
            max_blocks = std::max(max_blocks, static_cast<int32_t>(row.size()));
        }
        const int32_t stride = max_blocks + 3;
        table.assign(blocks.size() * stride, rubbish);
        for (size_t b = 0; b < blocks.size(); b++) {
            std::copy(blocks[b].begin(), blocks[b].end(), table.begin() + b * stride);
        }
        pagegrad_plan_desc desc{};
        desc.struct_size = sizeof desc;
        desc.num_heads = num_heads;
        desc.num_kv_heads = num_kv_heads;
        desc.head_dim = 8;
        desc.mask = mask;
        desc.window_left = window_left;
        desc.window_right = window_right;
        desc.num_sequences = static_cast<int32_t>(query_length.size());
        desc.query_length = query_length.data();
        desc.query_start = query_start.empty() ? nullptr : query_start.data();
        desc.kv_length = kv_length.data();
        desc.block_table = table.data();
        desc.block_table_stride = stride;
        desc.max_blocks = max_blocks;
        desc.block_size = block_size;
        desc.num_blocks = num_blocks;
        return desc;
    }

    pagegrad_plan plan() {
        return make_plan(desc());
    }

private:
    std::vector<int32_t> table;
};

/// Every sequence has as many queries as keys.
Batch batch_of(std::vector<int32_t> kv_length, std::vector<std::vector<int32_t>> blocks) {
    Batch batch;
    batch.query_length = kv_length;
    batch.kv_length = std::move(kv_length);
    batch.blocks = std::move(blocks);
    return batch;
}

using PoolRow = int64_t;
using User = std::pair<int32_t, int32_t>;  ///< sequence and key

PoolRow row_of_key(const Batch &batch, int32_t sequence, int32_t key) {
    const int64_t block = batch.blocks[sequence][key / batch.block_size];
    return block * batch.block_size + key % batch.block_size;
}

PoolRow row_of_run(const pagegrad_plan &plan, const Run &run, int32_t key) {
    const int32_t slot = run.first_slot + key;
    const int64_t block = plan.blocks[run.first_block + slot / plan.block_size];
    return block * plan.block_size + slot % plan.block_size;
}

/// Users of every used row, from the table alone.
std::map<PoolRow, std::set<User>> users_by_row(const Batch &batch) {
    std::map<PoolRow, std::set<User>> users;
    for (size_t b = 0; b < batch.kv_length.size(); b++) {
        for (int32_t key = 0; batch.query_length[b] > 0 && key < batch.kv_length[b]; key++) {
            const auto sequence = static_cast<int32_t>(b);
            users[row_of_key(batch, sequence, key)].insert({sequence, key});
        }
    }
    return users;
}

std::set<User> next_keys(const std::set<User> &users) {
    std::set<User> next;
    for (const User &user : users) {
        next.insert({user.first, user.second + 1});
    }
    return next;
}

/// Number of maximal spans of rows whose users step from key to key together.
int64_t count_runs(const std::map<PoolRow, std::set<User>> &users) {
    std::set<std::set<User>> all;
    for (const auto &[row, row_users] : users) {
        all.insert(row_users);
    }
    return std::count_if(users.begin(), users.end(), [&](const auto &row) {
        return all.count(next_keys(row.second)) == 0;  // the last row of its run
    });
}

int64_t work_of(const pagegrad_plan &plan, const Run &run) {
    int64_t rows = 0;
    for (int32_t u = run.users_begin; u < run.users_end; u++) {
        const RunUser &user = plan.users[u];
        rows += plan.visibility(plan.sequences[user.sequence])
                    .queries({user.first_key, int64_t{user.first_key} + run.num_keys})
                    .size();
    }
    return rows * run.num_keys;
}

/// Each used row is in one run, with the users that the table gives it; runs can't be longer.
void expect_runs_match_table(const Batch &batch, const pagegrad_plan &plan) {
    std::map<PoolRow, std::set<User>> expected = users_by_row(batch);
    EXPECT_EQ(static_cast<int64_t>(plan.runs.size()), count_runs(expected));
    for (const Run &run : plan.runs) {
        ASSERT_GE(run.num_keys, 1);
        ASSERT_LT(run.users_begin, run.users_end);
        for (int32_t key = 0; key < run.num_keys; key++) {
            std::set<User> users;
            for (int32_t u = run.users_begin; u < run.users_end; u++) {
                users.insert({plan.users[u].sequence, plan.users[u].first_key + key});
            }
            const PoolRow row = row_of_run(plan, run, key);
            ASSERT_EQ(expected.count(row), 1u) << "row " << row << " is unused or in two runs";
            ASSERT_EQ(users, expected[row]) << "row " << row;
            expected.erase(row);
        }
    }
    EXPECT_TRUE(expected.empty()) << "row " << expected.begin()->first << " is in no run";
}

/// The uses of a sequence cover each of its keys once, at its row, in the order of the runs.
void expect_uses_cover_keys(const Batch &batch, const pagegrad_plan &plan) {
    for (int32_t b = 0; b < static_cast<int32_t>(plan.sequences.size()); b++) {
        const Sequence &sequence = plan.sequences[b];
        std::vector<int> covered(sequence.query_length > 0 ? sequence.kv_length : 0);
        int32_t last_run = 0;
        for (int32_t i = sequence.uses_begin; i < sequence.uses_end; i++) {
            const Run &run = plan.runs[plan.uses[i].run];
            const RunUser &user = plan.users[plan.uses[i].user];
            EXPECT_LE(last_run, plan.uses[i].run);
            last_run = plan.uses[i].run;
            ASSERT_EQ(user.sequence, b);
            for (int32_t key = 0; key < run.num_keys; key++) {
                ASSERT_LT(user.first_key + key, static_cast<int32_t>(covered.size()));
                covered[user.first_key + key]++;
                ASSERT_EQ(row_of_run(plan, run, key), row_of_key(batch, b, user.first_key + key));
            }
        }
        EXPECT_EQ(std::count(covered.begin(), covered.end(), 1),
                  static_cast<int64_t>(covered.size()));
    }
}

void expect_order(const pagegrad_plan &plan) {
    for (size_t r = 1; r < plan.runs.size(); r++) {
        EXPECT_GE(work_of(plan, plan.runs[r - 1]), work_of(plan, plan.runs[r]));
    }
    const auto place = [](const RunUser &user) {
        return std::make_pair(user.sequence, user.first_key);
    };
    for (const Run &run : plan.runs) {
        for (int32_t u = run.users_begin + 1; u < run.users_end; u++) {
            EXPECT_LT(place(plan.users[u - 1]), place(plan.users[u]));
        }
    }
}

void expect_table_copied(const Batch &batch, const pagegrad_plan &plan) {
    for (size_t b = 0; b < batch.blocks.size(); b++) {
        const Sequence &sequence = plan.sequences[b];
        const auto begin = plan.table.begin() + sequence.table_begin;
        EXPECT_EQ(std::vector<int32_t>(begin, begin + sequence.num_blocks(plan.block_size)),
                  batch.blocks[b]);
    }
}

int64_t count_pairs(const Visibility &visibility, int64_t query_length) {
    int64_t pairs = 0;
    for (int64_t i = 0; i < query_length; i++) {
        pairs += visibility.keys(i).size();
    }
    return pairs;
}

void expect_totals(const Batch &batch, const pagegrad_plan &plan) {
    std::set<PoolRow> rows;
    int64_t pairs = 0;
    for (int32_t b = 0; b < static_cast<int32_t>(batch.kv_length.size()); b++) {
        for (int32_t key = 0; key < batch.kv_length[b]; key++) {
            rows.insert(row_of_key(batch, b, key));
        }
        pairs += count_pairs({batch.mask, batch.window_left, batch.window_right,
                              batch.query_length[b], batch.kv_length[b]},
                             batch.query_length[b]);
    }
    int64_t packed_rows = 0;
    for (const Run &run : plan.runs) {
        packed_rows += work_of(plan, run) / run.num_keys * plan.group();
    }
    const pagegrad_plan_info info = describe(plan);
    EXPECT_EQ(info.struct_size, sizeof info);
    EXPECT_EQ(info.query_tokens,
              std::accumulate(batch.query_length.begin(), batch.query_length.end(), int64_t{0}));
    EXPECT_EQ(info.kv_tokens,
              std::accumulate(batch.kv_length.begin(), batch.kv_length.end(), int64_t{0}));
    EXPECT_EQ(info.pool_rows, static_cast<int64_t>(rows.size()));
    EXPECT_EQ(info.runs, static_cast<int64_t>(plan.runs.size()));
    EXPECT_EQ(info.shared_runs,
              std::count_if(plan.runs.begin(), plan.runs.end(),
                            [](const Run &run) { return run.users_end - run.users_begin > 1; }));
    EXPECT_EQ(info.visible_pairs, pairs);
    EXPECT_EQ(info.packed_rows, packed_rows);
}

void expect_valid(const Batch &batch, const pagegrad_plan &plan) {
    expect_runs_match_table(batch, plan);
    expect_uses_cover_keys(batch, plan);
    expect_order(plan);
    expect_table_copied(batch, plan);
    expect_totals(batch, plan);
}

/// A run in words: first block, first slot, keys, users.
using RunSummary = std::tuple<int32_t, int32_t, int32_t, std::vector<User>>;

std::set<RunSummary> summary(const pagegrad_plan &plan) {
    std::set<RunSummary> runs;
    for (const Run &run : plan.runs) {
        std::vector<User> users;
        for (int32_t u = run.users_begin; u < run.users_end; u++) {
            users.emplace_back(plan.users[u].sequence, plan.users[u].first_key);
        }
        runs.insert({plan.blocks[run.first_block], run.first_slot, run.num_keys, users});
    }
    return runs;
}

TEST(Plan, unshared_sequence_is_one_run) {
    Batch batch = batch_of({11, 4}, {{5, 2, 9}, {3}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan), (std::set<RunSummary>{{5, 0, 11, {{0, 0}}}, {3, 0, 4, {{1, 0}}}}));
}

TEST(Plan, shared_prefix_is_one_run_with_all_users) {
    Batch batch = batch_of({10, 16, 9}, {{7, 1, 4}, {7, 1, 5, 6}, {7, 1, 8}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan), (std::set<RunSummary>{{7, 0, 8, {{0, 0}, {1, 0}, {2, 0}}},
                                                   {4, 0, 2, {{0, 8}}},
                                                   {5, 0, 8, {{1, 8}}},
                                                   {8, 0, 1, {{2, 8}}}}));
}

TEST(Plan, users_may_have_a_run_at_different_places) {
    Batch batch = batch_of({8, 16}, {{7, 1}, {3, 7, 1, 2}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan),
              (std::set<RunSummary>{
                  {7, 0, 8, {{0, 0}, {1, 4}}}, {3, 0, 4, {{1, 0}}}, {2, 0, 4, {{1, 12}}}}));
}

TEST(Plan, shared_blocks_in_another_order_are_runs_of_their_own) {
    Batch batch = batch_of({8, 8}, {{7, 1}, {1, 7}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(plan.runs.size(), 2u);
}

TEST(Plan, block_is_cut_where_a_user_ends) {
    Batch batch = batch_of({6, 5, 12}, {{7, 1}, {7, 1}, {7, 1, 2}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan), (std::set<RunSummary>{{7, 0, 5, {{0, 0}, {1, 0}, {2, 0}}},
                                                   {1, 1, 1, {{0, 5}, {2, 5}}},
                                                   {1, 2, 6, {{2, 6}}}}));
    EXPECT_EQ(plan.blocks, (std::vector<int32_t>{7, 1, 2}));
}

TEST(Plan, run_goes_on_past_the_end_of_its_first_user) {
    Batch batch = batch_of({2, 4, 8}, {{7}, {3}, {7, 1}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan),
              (std::set<RunSummary>{
                  {7, 0, 2, {{0, 0}, {2, 0}}}, {7, 2, 6, {{2, 2}}}, {3, 0, 4, {{1, 0}}}}));
}

TEST(Plan, last_block_that_all_users_see_alike_is_not_cut) {
    Batch batch = batch_of({6, 6}, {{7, 1}, {7, 1}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan), (std::set<RunSummary>{{7, 0, 6, {{0, 0}, {1, 0}}}}));
}

TEST(Plan, sequence_that_repeats_a_block_is_several_users) {
    Batch batch = batch_of({16, 11}, {{7, 1, 7, 1}, {3, 3, 3}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan), (std::set<RunSummary>{{7, 0, 8, {{0, 0}, {0, 8}}},
                                                   {3, 0, 3, {{1, 0}, {1, 4}, {1, 8}}},
                                                   {3, 3, 1, {{1, 3}, {1, 7}}}}));
}

TEST(Plan, sequences_without_queries_use_rows_but_no_runs) {
    Batch batch = batch_of({6, 8, 3}, {{7, 1}, {7, 2}, {7}});
    batch.query_length = {2, 0, 0};
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(summary(plan), (std::set<RunSummary>{{7, 0, 6, {{0, 0}}}}));
    EXPECT_EQ(plan.pool_rows, 10);
    EXPECT_EQ(plan.table, (std::vector<int32_t>{7, 1, 7, 2, 7}));
}

TEST(Plan, runs_come_by_work_and_equal_ones_in_the_order_of_sequences) {
    Batch batch = batch_of({4, 9, 4, 12}, {{5}, {6, 7, 8}, {3}, {0, 1, 2}});
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    std::vector<int32_t> order(plan.runs.size());
    std::transform(plan.runs.begin(), plan.runs.end(), order.begin(),
                   [&](const auto &run) { return plan.users[run.users_begin].sequence; });
    EXPECT_EQ(order, (std::vector<int32_t>{3, 1, 0, 2}));
}

TEST(Plan, window_leaves_runs_without_visible_queries) {
    Batch batch = batch_of({16, 16}, {{0, 1, 2, 3}, {0, 4, 5, 6}});
    batch.query_length = {2, 2};
    batch.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    batch.window_left = 2;
    const pagegrad_plan plan = batch.plan();
    expect_valid(batch, plan);
    EXPECT_EQ(plan.visible_pairs, 2 * (3 + 3));
}

TEST(Plan, queries_follow_each_other_without_starts) {
    Batch batch = batch_of({3, 0, 5}, {{0}, {}, {1, 2}});
    const pagegrad_plan plan = batch.plan();
    EXPECT_EQ(plan.sequences[0].query_start, 0);
    EXPECT_EQ(plan.sequences[1].query_start, 3);
    EXPECT_EQ(plan.sequences[2].query_start, 3);
    EXPECT_EQ(plan.sequences[2].kv_start, 3);
    EXPECT_EQ(plan.query_end, 8);
    EXPECT_EQ(plan.max_query_length, 5);
}

TEST(Plan, query_starts_may_be_in_any_order_with_gaps) {
    Batch batch = batch_of({3, 0, 5}, {{0}, {}, {1, 2}});
    batch.query_start = {9, 10, 1};  // the one in the middle has no tokens to overlap with
    const pagegrad_plan plan = batch.plan();
    EXPECT_EQ(plan.sequences[0].query_start, 9);
    EXPECT_EQ(plan.sequences[2].query_start, 1);
    EXPECT_EQ(plan.query_end, 12);
    EXPECT_EQ(plan.query_tokens, 8);
}

TEST(Plan, empty_batch_needs_no_pointers) {
    pagegrad_plan_desc desc = Batch{}.desc();
    desc.query_length = desc.kv_length = desc.block_table = nullptr;
    const pagegrad_plan plan = make_plan(desc);
    const pagegrad_plan_info info = describe(plan);
    EXPECT_EQ(info.runs, 0);
    EXPECT_EQ(info.pool_rows, 0);
    EXPECT_EQ(info.visible_pairs, 0);
    EXPECT_EQ(plan.query_end, 0);
}

TEST(Plan, batch_without_keys_needs_no_table) {
    Batch batch = batch_of({0, 0}, {{}, {}});
    batch.query_length = {3, 4};
    batch.num_blocks = 0;
    pagegrad_plan_desc desc = batch.desc();
    desc.block_table = nullptr;
    const pagegrad_plan plan = make_plan(desc);
    EXPECT_TRUE(plan.runs.empty());
    EXPECT_EQ(plan.query_tokens, 7);
}

TEST(Plan, unused_columns_are_not_read) {
    // The last row ends with its last used column, which is the end of the allocation.
    const std::vector<int32_t> table{4, -1, max_int32, 5, 6, 7};
    const std::vector<int32_t> length{1, 12};
    pagegrad_plan_desc desc = Batch{}.desc();
    desc.num_sequences = 2;
    desc.query_length = desc.kv_length = length.data();
    desc.block_table = table.data();
    desc.block_table_stride = desc.max_blocks = 3;
    EXPECT_EQ(make_plan(desc).table, (std::vector<int32_t>{4, 5, 6, 7}));
    desc.max_blocks = 10;
    desc.block_table_stride = 10;
    desc.num_sequences = 1;
    EXPECT_EQ(make_plan(desc).table, (std::vector<int32_t>{4}));
}

TEST(Plan, work_of_the_longest_sequence_is_counted_without_a_loop) {
    constexpr int32_t longest = max_int32 - 1024;
    Batch batch = batch_of({longest}, {{0}});
    batch.block_size = longest;
    batch.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    batch.num_heads = batch.num_kv_heads = 1;
    const pagegrad_plan plan = batch.plan();
    EXPECT_EQ(plan.visible_pairs, int64_t{longest} * (longest + 1) / 2);
    EXPECT_EQ(plan.runs.front().num_keys, longest);
}

/// Blocks from a small pool, so that sharing, repetition and unequal ends are common.
Batch random_batch(std::mt19937 &random) {
    const auto below = [&](int32_t end) { return static_cast<int32_t>(random() % end); };
    Batch batch;
    batch.block_size = std::vector<int32_t>{1, 2, 3, 5, 16}[below(5)];
    batch.mask = static_cast<pagegrad_mask>(below(3));
    batch.window_left = below(2) - 1 + below(2) * below(20);
    batch.window_right = below(2) - 1 + below(2) * below(20);
    const int32_t used_blocks = 1 + below(12);
    const int32_t first_block = below(2) * 80;
    batch.num_blocks = below(2) == 0 ? 100 : int64_t{1} << 40;  // an array or sorting finds sharers
    const int32_t num_sequences = below(7);
    const bool same_prefix = below(2) == 0;
    for (int32_t b = 0; b < num_sequences; b++) {
        batch.query_length.push_back(below(4) == 0 ? 0 : below(40));
        batch.kv_length.push_back(below(8 * batch.block_size));
        std::vector<int32_t> row;
        for (int32_t key = 0; key < batch.kv_length[b]; key += batch.block_size) {
            const auto column = static_cast<int32_t>(row.size());
            row.push_back(first_block + (same_prefix && column < 3 ? column : below(used_blocks)));
        }
        batch.blocks.push_back(row);
    }
    return batch;
}

TEST(Plan, random_tables_match_brute_force) {
    std::mt19937 random(11);
    for (int trial = 0; trial < 1500 && !testing::Test::HasFailure(); trial++) {
        SCOPED_TRACE(trial);
        Batch batch = random_batch(random);
        expect_valid(batch, batch.plan());
    }
}

TEST(Plan, is_the_same_for_any_rubbish_and_any_size_of_pool) {
    std::mt19937 random(5);
    for (int trial = 0; trial < 50; trial++) {
        Batch batch = random_batch(random);
        const pagegrad_plan plan = batch.plan();
        batch.num_blocks = int64_t{1} << (trial % 2 == 0 ? 7 : 50);
        const pagegrad_plan again = make_plan(batch.desc(max_int32));
        EXPECT_EQ(summary(plan), summary(again));
        EXPECT_EQ(plan.blocks, again.blocks);
    }
}

/// All of a plan that may decide the order of sums.
auto structure(const pagegrad_plan &plan) {
    std::vector<std::tuple<int32_t, int32_t, int32_t>> runs;
    runs.reserve(plan.runs.size());
    for (const Run &run : plan.runs) {
        runs.emplace_back(run.first_slot, run.num_keys, run.users_begin);
    }
    std::vector<User> users;
    users.reserve(plan.users.size());
    for (const RunUser &user : plan.users) {
        users.emplace_back(user.sequence, user.first_key);
    }
    return std::make_pair(runs, users);
}

TEST(Plan, does_not_depend_on_where_blocks_lie_in_the_pool) {
    std::mt19937 random(3);
    for (int trial = 0; trial < 50; trial++) {
        Batch batch = random_batch(random);
        const pagegrad_plan plan = batch.plan();
        std::vector<int32_t> placement(100);
        std::iota(placement.begin(), placement.end(), 0);
        std::shuffle(placement.begin(), placement.end(), random);
        for (std::vector<int32_t> &row : batch.blocks) {
            for (int32_t &block : row) {
                block = placement[block];
            }
        }
        EXPECT_EQ(structure(plan), structure(batch.plan()));
    }
}

/// What a change to a valid batch is refused with.
struct Refusal {
    std::string name;
    std::function<void(pagegrad_plan_desc &)> change;
    std::string message;
    pagegrad_status status = PAGEGRAD_INVALID_ARGUMENT;
};

void PrintTo(const Refusal &refusal, std::ostream *out) {
    *out << refusal.name;
}

class PlanRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(PlanRefusal, names_argument_value_and_expectation) {
    Batch batch = batch_of({6, 9}, {{7, 1}, {7, 2, 3}});
    pagegrad_plan_desc desc = batch.desc();
    GetParam().change(desc);
    try {
        make_plan(desc);
        FAIL() << "not refused";
    } catch (const Failure &failure) {
        EXPECT_EQ(failure.message, GetParam().message);
        EXPECT_EQ(failure.status, GetParam().status);
    }
}

using Desc = pagegrad_plan_desc;

/// Replaces an array of the batch, of static lifetime so that the descriptor may point to it.
template<int32_t... values>
const int32_t *numbers() {
    static const int32_t array[] = {values...};
    return array;
}

INSTANTIATE_TEST_SUITE_P(
    geometry, PlanRefusal,
    testing::Values(Refusal{"struct_size", [](Desc &desc) { desc.struct_size = 3; },
                            "struct_size is 3, expected " + std::to_string(sizeof(Desc))},
                    Refusal{"num_kv_heads", [](Desc &desc) { desc.num_kv_heads = 0; },
                            "num_kv_heads is 0, expected >= 1"},
                    Refusal{"num_heads_zero", [](Desc &desc) { desc.num_heads = 0; },
                            "num_heads is 0, expected a positive multiple of num_kv_heads, 2"},
                    Refusal{"num_heads_no_multiple", [](Desc &desc) { desc.num_heads = 7; },
                            "num_heads is 7, expected a positive multiple of num_kv_heads, 2"},
                    Refusal{"head_dim_zero", [](Desc &desc) { desc.head_dim = 0; },
                            "head_dim is 0, expected 1..512"},
                    Refusal{"head_dim_large", [](Desc &desc) { desc.head_dim = 513; },
                            "head_dim is 513, expected 1..512"},
                    Refusal{"value_head_dim_negative", [](Desc &desc) { desc.value_head_dim = -1; },
                            "value_head_dim is -1, expected 1..512, or 0 for head_dim"},
                    Refusal{"value_head_dim_large", [](Desc &desc) { desc.value_head_dim = 513; },
                            "value_head_dim is 513, expected 1..512, or 0 for head_dim"},
                    Refusal{"mask_negative", [](Desc &desc) { desc.mask = -1; },
                            "mask is -1, expected a pagegrad_mask, 0..2"},
                    Refusal{"mask_unknown", [](Desc &desc) { desc.mask = 3; },
                            "mask is 3, expected a pagegrad_mask, 0..2"},
                    Refusal{"window_left", [](Desc &desc) { desc.window_left = -2; },
                            "window_left is -2, expected >= 0, or -1 for no bound"},
                    Refusal{"window_right", [](Desc &desc) { desc.window_right = -9; },
                            "window_right is -9, expected >= 0, or -1 for no bound"}),
    [](const auto &info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    paging, PlanRefusal,
    testing::Values(Refusal{"num_sequences", [](Desc &desc) { desc.num_sequences = -1; },
                            "num_sequences is -1, expected >= 0"},
                    Refusal{"block_size", [](Desc &desc) { desc.block_size = 0; },
                            "block_size is 0, expected >= 1"},
                    Refusal{"num_blocks", [](Desc &desc) { desc.num_blocks = -4; },
                            "num_blocks is -4, expected >= 0"},
                    Refusal{"max_blocks", [](Desc &desc) { desc.max_blocks = -1; },
                            "max_blocks is -1, expected >= 0"},
                    Refusal{"block_table_stride", [](Desc &desc) { desc.block_table_stride = 2; },
                            "block_table_stride is 2, expected >= max_blocks, 3"},
                    Refusal{"no_query_length", [](Desc &desc) { desc.query_length = nullptr; },
                            "query_length is NULL, expected 2 lengths"},
                    Refusal{"no_kv_length", [](Desc &desc) { desc.kv_length = nullptr; },
                            "kv_length is NULL, expected 2 lengths"},
                    Refusal{"no_block_table", [](Desc &desc) { desc.block_table = nullptr; },
                            "block_table is NULL, expected 5 block ids"}),
    [](const auto &info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    sequences, PlanRefusal,
    testing::Values(
        Refusal{"query_length", [](Desc &desc) { desc.query_length = numbers<6, -1>(); },
                "query_length[1] is -1, expected >= 0"},
        Refusal{"kv_length_negative", [](Desc &desc) { desc.kv_length = numbers<-5, 9>(); },
                "kv_length[0] is -5, expected 0..max_blocks * block_size, 12"},
        Refusal{"kv_length_large", [](Desc &desc) { desc.kv_length = numbers<6, 13>(); },
                "kv_length[1] is 13, expected 0..max_blocks * block_size, 12"},
        Refusal{"block_negative",
                [](Desc &desc) {
                    desc.block_table = numbers<1, 2, 0, 3, -1, 4>();
                    desc.block_table_stride = 3;
                },
                "block_table[1][1] is -1, expected 0..num_blocks - 1, 99"},
        Refusal{"block_large", [](Desc &desc) { desc.num_blocks = 7; },
                "block_table[0][0] is 7, expected 0..num_blocks - 1, 6"},
        Refusal{"query_start_negative", [](Desc &desc) { desc.query_start = numbers<-1, 9>(); },
                "query_start[0] is -1, expected >= 0"},
        Refusal{"query_start_overlap", [](Desc &desc) { desc.query_start = numbers<0, 5>(); },
                "query_start[1] is 5, inside the tokens of sequence 0, expected >= 6"},
        Refusal{"query_start_overlap_backwards",
                [](Desc &desc) { desc.query_start = numbers<13, 5>(); },
                "query_start[0] is 13, inside the tokens of sequence 1, expected >= 14"}),
    [](const auto &info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    sizes, PlanRefusal,
    testing::Values(
        Refusal{"table_entries",
                [](Desc &desc) {
                    desc.block_size = 1;
                    desc.block_table_stride = desc.max_blocks = max_int32;
                    desc.kv_length = numbers<max_int32 - 1024, 1025>();
                },
                "kv_length: the sequences up to 1 use 2147483648 entries of block_table, "
                "expected <= 2147483647",
                PAGEGRAD_UNSUPPORTED},
        Refusal{"keys",
                [](Desc &desc) {
                    desc.block_size = max_int32;
                    desc.kv_length = numbers<1, max_int32 - 1023>();
                },
                "kv_length[1] is 2147482624, expected <= 2147482623", PAGEGRAD_UNSUPPORTED},
        Refusal{"heads", [](Desc &desc) { desc.num_heads = 65538; },
                "num_heads is 65538, expected <= 65536", PAGEGRAD_UNSUPPORTED},
        Refusal{"stride",
                [](Desc &desc) { desc.block_table_stride = std::numeric_limits<int64_t>::max(); },
                "block_table_stride is 9223372036854775807, expected <= 9007199254740992"},
        Refusal{"work",
                [](Desc &desc) {
                    desc.block_size = max_int32;
                    desc.query_length = desc.kv_length = numbers<max_int32 - 1024, 1>();
                },
                "query_length, kv_length: the sum of num_heads * query_length * kv_length is too "
                "large, expected <= 9223372036854775807",
                PAGEGRAD_UNSUPPORTED}),
    [](const auto &info) { return info.param.name; });

/// Mask and window as documented, one pair at a time.
bool sees(pagegrad_mask mask, int64_t left, int64_t right, int64_t queries, int64_t keys, int64_t i,
          int64_t j) {
    if (mask == PAGEGRAD_MASK_CAUSAL_TOP_LEFT && j > i) {
        return false;
    }
    if (mask == PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT && j > i + keys - queries) {
        return false;
    }
    const int64_t p = mask == PAGEGRAD_MASK_CAUSAL_TOP_LEFT ? i : i + keys - queries;
    return (left < 0 || p - j <= left) && (right < 0 || j - p <= right);
}

class MaskAndWindow : public testing::TestWithParam<std::tuple<pagegrad_mask, int64_t, int64_t>> {};

TEST_P(MaskAndWindow, matches_brute_force) {
    const auto [mask, left, right] = GetParam();
    for (int64_t queries = 0; queries < 8; queries++) {
        for (int64_t keys = 0; keys < 8; keys++) {
            SCOPED_TRACE(std::to_string(queries) + " queries, " + std::to_string(keys) + " keys");
            const Visibility visibility(mask, left, right, queries, keys);
            const auto see = [&, mask = mask, left = left, right = right](int64_t i, int64_t j) {
                return sees(mask, left, right, queries, keys, i, j);
            };
            int64_t pairs = 0;
            for (int64_t i = 0; i < queries; i++) {
                const Range seen = visibility.keys(i);
                EXPECT_LE(seen.begin, seen.end);
                for (int64_t j = 0; j < keys; j++) {
                    EXPECT_EQ(j >= seen.begin && j < seen.end, see(i, j)) << i << " sees " << j;
                    pairs += see(i, j);
                }
            }
            EXPECT_EQ(visibility.pairs(), pairs);
            for (int64_t begin = 0; begin < keys; begin++) {
                for (int64_t end = begin; end <= keys; end++) {
                    const Range range = visibility.queries({begin, end});
                    for (int64_t i = 0; i < queries; i++) {
                        bool any = false;
                        for (int64_t j = begin; j < end; j++) {
                            any = any || see(i, j);
                        }
                        EXPECT_EQ(i >= range.begin && i < range.end, any)
                            << i << " sees a key of [" << begin << ", " << end << ")";
                    }
                }
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
    , MaskAndWindow,
    testing::Combine(testing::Values(PAGEGRAD_MASK_NONE, PAGEGRAD_MASK_CAUSAL_TOP_LEFT,
                                     PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT),
                     testing::Values(-1, 0, 1, 3, 8, std::numeric_limits<int64_t>::max()),
                     testing::Values(-1, 0, 1, 3, 8, std::numeric_limits<int64_t>::max())));

}  // namespace
}  // namespace pagegrad::test
