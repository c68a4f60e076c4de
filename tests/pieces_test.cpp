// gather and scatter_add: copies and sums of pool rows, so results are compared bit by bit.
#include "tests/support/problem.h"

namespace pagegrad::test {
namespace {

std::vector<std::pair<std::string, Geometry>> geometries() {
    return {
        {"one_row_blocks", Geometry({5, 0, 31}).dim(8).heads(2, 1).block(1).half()},
        {"odd_blocks", Geometry({33, 1, 17}).dim(40).heads(3, 3).block(3).half()},
        {"odd_blocks_padded", Geometry({65, 16}).dim(72).heads(7, 7).block(17).padded().half()},
        {"large_block", Geometry({127, 15}).dim(1).heads(8, 8).block(544).half()},
        {"dim64", Geometry({64, 257}).dim(64).heads(2, 2).block(256).head_major().half()},
        {"dim128", Geometry({31, 64, 0}).dim(128).heads(3, 3)},
        {"dim256", Geometry({31, 17}).dim(256).heads(1, 1).padded()},
        {"prefix", Geometry({65, 70, 127, 64}).dim(64).heads(3, 3).prefix(4).half()},
        {"block_twice", Geometry({40, 33}).dim(96).heads(2, 1).table({{0, 1, 0}, {1, 1, 2}})},
        {"no_sequences", Geometry(std::vector<int32_t>{}).dim(64)},
    };
}

class Pieces : public testing::TestWithParam<KernelCase> {
protected:
    const Problem problem = make_problem(GetParam().geometry);
    const int width = problem.inputs.head_dim;
    Options options(int num_threads, unsigned placement) const {
        Options options;
        options.kernel = GetParam().kernel.name;
        options.num_threads = num_threads;
        options.placement = placement;
        return options;
    }
    GuardedTensor dense_tensor(const PagedCall &call) const {
        const int64_t heads = problem.inputs.num_kv_heads;
        const auto keys = static_cast<int64_t>(call.gathered_rows().size()) / heads;
        return GuardedTensor({keys, heads, width}, problem.layout, problem.dtypes.inputs);
    }
};

class Gather : public Pieces {};

TEST_P(Gather, copies_every_row) {
    for (const int num_threads : {1, 3}) {
        PagedCall call(problem, options(num_threads, 5));
        GuardedTensor dense = dense_tensor(call);
        ASSERT_EQ(call.gather(call.k_pool, dense), PAGEGRAD_OK) << call.message();
        EXPECT_TRUE(dense.guards_intact());
        const std::vector<int64_t> rows = call.gathered_rows();
        for (int64_t at = 0; at < dense.size(); at++) {
            const int64_t entry = call.pool_row(rows[at / width]) * width + at % width;
            ASSERT_EQ(dense[at], call.k_pool[entry]) << "entry " << at;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(, Gather, testing::ValuesIn(with_kernels(geometries(), {"gather"})),
                         case_name);

class ScatterAdd : public Pieces {};

/// Whole numbers, whose sums are exact in any order.
TEST_P(ScatterAdd, adds_every_row) {
    for (const int num_threads : {1, 3}) {
        Options with = options(num_threads, 6);
        with.pool_mode = PAGEGRAD_POOL_ACCUMULATE;  // fills used slots of dk_pool
        PagedCall call(problem, with);
        GuardedTensor dense = dense_tensor(call);
        std::vector<float> expected(call.dk_pool.size());
        for (int64_t at = 0; at < call.dk_pool.size(); at++) {
            expected[at] = call.dk_pool[at];
        }
        const std::vector<int64_t> rows = call.gathered_rows();
        for (int64_t at = 0; at < dense.size(); at++) {
            dense.set(at, static_cast<double>(at * 7 % 1000));
            expected[call.pool_row(rows[at / width]) * width + at % width] += dense[at];
        }
        ASSERT_EQ(call.scatter_add(dense, call.dk_pool), PAGEGRAD_OK) << call.message();
        EXPECT_TRUE(call.dk_pool.guards_intact());
        for (int64_t at = 0; at < call.dk_pool.size(); at++) {
            ASSERT_EQ(bits_of(call.dk_pool[at]), bits_of(expected[at])) << "entry " << at;
        }
    }
}

/// The order of the sum is that of the sequences, whatever the threads and the placement.
TEST_P(ScatterAdd, order_is_fixed) {
    std::vector<float> expected;
    for (const int num_threads : {1, 2, 3, 7}) {
        Options with = options(num_threads, num_threads);
        with.pool_mode = PAGEGRAD_POOL_ACCUMULATE;
        PagedCall call(problem, with);
        GuardedTensor dense = dense_tensor(call);
        for (int64_t at = 0; at < dense.size(); at++) {
            dense.set(at, static_cast<double>(at % 89) / 7 * (at % 3 == 0 ? 1e6 : 1));
        }
        ASSERT_EQ(call.scatter_add(dense, call.dk_pool), PAGEGRAD_OK) << call.message();
        const std::vector<float> got = call.results().dk_pool;
        if (expected.empty()) {
            expected = got;
        }
        EXPECT_EQ(bits_of(got), bits_of(expected));
    }
}

INSTANTIATE_TEST_SUITE_P(, ScatterAdd,
                         testing::ValuesIn(with_kernels(geometries(), {"scatter_add"})), case_name);

/// Two sequences of two blocks, [[0, 1], [2, 3]], of 3 keys each; block size 2, 2 KV heads. Every
/// entry of the pool is the number of its row.
TEST(Layout, row_indices_match_layout) {
    const int32_t length[] = {3, 3}, table[] = {0, 1, 2, 3};
    pagegrad_plan_desc desc{};
    desc.struct_size = sizeof(desc);
    desc.num_heads = desc.num_kv_heads = 2;
    desc.head_dim = 1;
    desc.window_left = desc.window_right = -1;
    desc.num_sequences = 2;
    desc.query_length = desc.kv_length = length;
    desc.block_table = table;
    desc.block_table_stride = desc.max_blocks = 2;
    desc.block_size = 2;
    desc.num_blocks = 4;
    pagegrad_plan *plan = nullptr;
    pagegrad_error error{};
    ASSERT_EQ(pagegrad_plan_create(&desc, &plan, &error), PAGEGRAD_OK) << error.message;

    GuardedTensor pool({4, 2, 2, 1}, Layout::Contiguous), dense({6, 2, 1}, Layout::Contiguous);
    for (int64_t row = 0; row < pool.size(); row++) {
        pool.set(row, static_cast<double>(row));
    }
    const pagegrad_tensor from = pool, to = dense;
    EXPECT_EQ(pagegrad_gather(plan, &from, &to, nullptr, &error), PAGEGRAD_OK) << error.message;
    pagegrad_plan_destroy(plan);

    const auto rows = [&dense](int sequence, int head) {
        std::vector<int> result;
        for (int key = 0; key < 3; key++) {
            result.push_back(static_cast<int>(dense[(sequence * 3 + key) * 2 + head]));
        }
        return result;
    };
    EXPECT_EQ(rows(0, 0), (std::vector<int>{0, 2, 4}));
    EXPECT_EQ(rows(0, 1), (std::vector<int>{1, 3, 5}));
    EXPECT_EQ(rows(1, 0), (std::vector<int>{8, 10, 12}));
    EXPECT_EQ(rows(1, 1), (std::vector<int>{9, 11, 13}));
}

}  // namespace
}  // namespace pagegrad::test
