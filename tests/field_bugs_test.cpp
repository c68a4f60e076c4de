// What broke for the users of other libraries: docs/field-bugs.md tells where, and names the tests
// here and elsewhere that keep it from breaking here.
#include "tests/support/invariance.h"
#include "tests/support/problem.h"
#include "tests/support/rounding.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace pagegrad::test {
namespace {

using Geometries = std::vector<std::pair<std::string, Geometry>>;

const std::vector<int32_t> tile_lengths = {1, 2, 3, 15, 16, 17, 31, 33, 63, 65, 127, 129, 257};

/// Every query length with every key length.
Geometry all_pairs_of_lengths() {
    std::vector<int32_t> queries, keys;
    for (const int32_t query_length : tile_lengths) {
        for (const int32_t kv_length : tile_lengths) {
            queries.push_back(query_length);
            keys.push_back(kv_length);
        }
    }
    return {queries, keys};
}

Geometries field_geometries() {
    Geometries list = {
        {"tile_lengths", all_pairs_of_lengths().dim(8).block(16).half()},
        {"tile_lengths_causal", all_pairs_of_lengths().dim(8).block(16).bottom_right()},
        {"empty_and_long", Geometry({0, 0, 1023}, {0, 1, 2045}).dim(8).bottom_right()},
        {"queries_outnumber_keys", Geometry({64}, {32}).dim(64).bottom_right().half()},
        {"three_queries", Geometry({3}, {128}).dim(64).bottom_right()},
        {"dim46", Geometry({33, 5}, {40, 17}).dim(46).heads(2, 1).bottom_right().half()},
        {"dim129", Geometry({17, 9}, {33, 20}).dim(129).heads(2, 1).bottom_right().half()},
        {"outliers_of_two_sequences",
         Geometry({33, 17}, {65, 40}).dim(256).heads(16, 2).bottom_right().skewed().half()},
        {"nearly_one_hot",
         Geometry({33, 17}, {65, 40}).dim(64).heads(2, 1).bottom_right().scaled(3).half()},
        {"large_half", Geometry({256}, {256}).dim(128).bottom_right().scaled(0.8f).half()},
        {"many_sequences",
         Geometry(std::vector<int32_t>(3000, 1), std::vector<int32_t>(3000, 2)).dim(8).half()},
    };
    for (const int size : {1, 3, 16, 24, 128, 256, 544, 768, 1056}) {
        list.emplace_back(
            "block" + std::to_string(size),
            Geometry({33, 5}, {130, 40}).dim(64).heads(2, 1).block(size).bottom_right().half());
    }
    for (const int group : {1, 2, 3, 4, 7, 8, 16}) {
        const int kv_heads = group == 3 ? 2 : 3;
        list.emplace_back("group" + std::to_string(group), Geometry({17, 9}, {33, 20})
                                                               .dim(64)
                                                               .heads(kv_heads * group, kv_heads)
                                                               .bottom_right()
                                                               .half());
    }
    return list;
}

class FieldBug : public testing::TestWithParam<KernelCase> {
protected:
    const Problem &problem = problem_of(GetParam());
    PagedCall call() const {
        Options options;
        options.kernel = GetParam().kernel.name;
        return PagedCall(problem, options);
    }
};

class FieldBugForward : public FieldBug {};

TEST_P(FieldBugForward, matches_reference) {
    PagedCall forward = call();
    ASSERT_EQ(forward.forward(), PAGEGRAD_OK) << forward.message();
    forward.expect_forward();
}

INSTANTIATE_TEST_SUITE_P(, FieldBugForward,
                         testing::ValuesIn(with_kernels(field_geometries(), {"forward"})),
                         case_name);

class FieldBugBackward : public FieldBug {};

TEST_P(FieldBugBackward, matches_reference) {
    PagedCall backward = call();
    ASSERT_EQ(backward.backward(), PAGEGRAD_OK) << backward.message();
    backward.expect_backward();
}

INSTANTIATE_TEST_SUITE_P(, FieldBugBackward,
                         testing::ValuesIn(with_kernels(field_geometries(),
                                                        {"backward", "backward_dense"})),
                         case_name);

/// With every kernel and dtype.
class FieldBugKernel : public testing::TestWithParam<KernelChoice> {
protected:
    Options options() const {
        Options options;
        options.kernel = GetParam().name;
        return options;
    }
    /// A problem whose tensors are made by hand.
    Problem problem(const Geometry &geometry,
                    const std::function<void(AttentionInputs &)> &change) const {
        AttentionInputs inputs = make_problem(geometry).inputs;
        change(inputs);
        return make_problem(std::move(inputs), Form::Packed, Layout::Contiguous, GetParam().dtype);
    }
};

/// Of one key P is 1: dv is the sum of dout, to the bit.
TEST_P(FieldBugKernel, one_key_takes_all_of_dout) {
    const Problem one_key = problem(Geometry({1, 3}, {1, 1}).dim(64), [](AttentionInputs &in) {
        std::fill(in.dout.begin(), in.dout.end(), 1.0);
        for (double &value : in.q) {
            value *= 3;
        }
    });
    PagedCall call(one_key, options());
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_backward();
    const Results got = call.results();
    for (std::size_t d = 0; d < 64; d++) {
        EXPECT_FLOAT_EQ(got.dv_pool[d], 1);
    }
}

/// Every product is the same and huge, but every score can be told from infinity.
TEST_P(FieldBugKernel, large_equal_inputs_give_finite_gradients) {
    const double value = GetParam().dtype == PAGEGRAD_FLOAT16    ? 200
                         : GetParam().dtype == PAGEGRAD_BFLOAT16 ? 133120
                                                                 : 5e8;
    const Problem large = problem(Geometry({40}, {70}).dim(64), [value](AttentionInputs &in) {
        std::fill(in.q.begin(), in.q.end(), value);
        std::fill(in.k_pool.begin(), in.k_pool.end(), value);
    });
    PagedCall call(large, options());
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    const Results got = call.results();
    for (const std::vector<float> *gradient : {&got.dq, &got.dk_pool, &got.dv_pool}) {
        EXPECT_TRUE(std::all_of(gradient->begin(), gradient->end(),
                                [](float x) { return std::isfinite(x); }));
    }
}

INSTANTIATE_TEST_SUITE_P(, FieldBugKernel,
                         testing::ValuesIn(kernels_and_dispatch({"backward", "backward_dense"},
                                                                64)),
                         [](const auto &info) { return label(info.param); });

/// A hidden key has probability 0, not a tiny one that a large value makes visible.
TEST(FieldBugs, hidden_keys_add_nothing_whatever_their_value) {
    for (const KernelChoice &kernel : kernels_and_dispatch({"forward"}, 64)) {
        if (kernel.dtype == PAGEGRAD_FLOAT16) {
            continue;  // has no large numbers
        }
        SCOPED_TRACE(label(kernel));
        AttentionInputs in = make_problem(Geometry({40}).dim(64).bottom_right()).inputs;
        std::fill(in.v_pool.begin() + std::ptrdiff_t{64 * 39}, in.v_pool.end(), 1e38);
        const Problem problem = make_problem(in, Form::Packed, Layout::Contiguous, kernel.dtype);
        Options options;
        options.kernel = kernel.name;
        PagedCall call(problem, options);
        ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
        call.expect_forward();
    }
}

/// Tensors without elements: whatever their strides, and all at one address or at none.
TEST(FieldBugs, empty_tensors_need_neither_strides_nor_memory) {
    float memory = 5;
    for (const bool batched : {false, true}) {
        for (void *data : {static_cast<void *>(nullptr), static_cast<void *>(&memory)}) {
            const auto empty = [&](std::vector<int64_t> shape) {
                pagegrad_tensor tensor{};
                tensor.data = data;
                tensor.rank = static_cast<int32_t>(shape.size());
                std::copy(shape.begin(), shape.end(), tensor.shape);
                return tensor;
            };
            pagegrad_plan_desc desc{};
            desc.struct_size = sizeof(desc);
            desc.num_heads = desc.num_kv_heads = 10;
            desc.head_dim = 64;
            desc.window_left = desc.window_right = -1;
            desc.block_size = 16;
            pagegrad_plan *plan = nullptr;
            pagegrad_error error{};
            ASSERT_EQ(pagegrad_plan_create(&desc, &plan, &error), PAGEGRAD_OK) << error.message;
            const pagegrad_tensor rows = batched ? empty({0, 3952, 10, 64}) : empty({0, 10, 64});
            const pagegrad_tensor lse = batched ? empty({0, 3952, 10}) : empty({0, 10});
            const pagegrad_tensor pool = empty({0, 16, 10, 64}), dense = empty({0, 10, 64});
            pagegrad_forward_args forward{};
            forward.struct_size = sizeof(forward);
            forward.q = forward.out = rows;
            forward.lse = lse;
            forward.k_pool = forward.v_pool = pool;
            pagegrad_backward_args backward{};
            backward.struct_size = sizeof(backward);
            backward.dout = backward.q = backward.out = backward.dq = rows;
            backward.lse = backward.dlse = lse;
            backward.k_pool = backward.v_pool = backward.dk_pool = backward.dv_pool = pool;
            EXPECT_EQ(pagegrad_forward(plan, &forward, nullptr, &error), PAGEGRAD_OK)
                << error.message;
            for (const int32_t mode : {PAGEGRAD_POOL_ACCUMULATE, PAGEGRAD_POOL_OVERWRITE}) {
                backward.pool_mode = mode;
                EXPECT_EQ(pagegrad_backward(plan, &backward, nullptr, &error), PAGEGRAD_OK)
                    << error.message;
            }
            EXPECT_EQ(pagegrad_gather(plan, &pool, &dense, nullptr, &error), PAGEGRAD_OK)
                << error.message;
            EXPECT_EQ(pagegrad_scatter_add(plan, &dense, &pool, nullptr, &error), PAGEGRAD_OK)
                << error.message;
            pagegrad_plan_destroy(plan);
        }
    }
    EXPECT_EQ(memory, 5);
}

/// The first S_q - S_k rows of a bottom-right mask see nothing; those of a top-left one do.
TEST(FieldBugs, alignment_decides_which_rows_see_nothing) {
    const Problem bottom_right = make_problem(Geometry({64}, {32}).dim(8).bottom_right());
    const Problem top_left = make_problem(Geometry({64}, {32}).dim(8).top_left());
    PagedCall blind(bottom_right), seeing(top_left);
    ASSERT_EQ(blind.forward(), PAGEGRAD_OK);
    ASSERT_EQ(blind.backward(), PAGEGRAD_OK);
    ASSERT_EQ(seeing.forward(), PAGEGRAD_OK);
    for (int row = 0; row < 64; row++) {
        EXPECT_EQ(blind.lse[row] == -INFINITY, row < 32) << row;
        EXPECT_EQ(blind.out[8 * row] == 0, row < 32) << row;
        EXPECT_EQ(blind.dq[8 * row] == 0, row <= 32) << row;  // of one key dq is 0 too
        EXPECT_TRUE(std::isfinite(seeing.lse[row])) << row;
    }
}

/// Seconds of the fastest of some calls.
double time_of(PagedCall &call) {
    double best = HUGE_VAL;
    for (int i = 0; i < 3; i++) {
        const auto start = std::chrono::steady_clock::now();
        EXPECT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        best = std::min(best, time.count());
    }
    return best;
}

/// 8192 tokens with a window of 64 keys: 1/64 of the work. A backward that goes over all queries of
/// each tile of keys takes as long as without the window.
TEST(FieldBugs, windowed_work_grows_with_the_window) {
    const auto time = [](int64_t window) {
        Problem problem = make_problem(Geometry({0}, {0}).dim(64));
        AttentionInputs in = problem.inputs;
        in.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
        in.window_left = window;
        const int32_t length = 8192;
        in.query_length = in.kv_length = {length};
        in.blocks = {std::vector<int32_t>(length / in.block_size)};
        for (std::size_t column = 0; column < in.blocks[0].size(); column++) {
            in.blocks[0][column] = static_cast<int32_t>(column);
        }
        in.q = in.dout = in.k_pool = in.v_pool = std::vector<double>(length * 64, 0.125);
        problem.num_blocks = length / in.block_size;
        problem.used.assign(length, true);
        problem.expected.out = Quantity(in.q.size());  // not compared
        problem.expected.lse = Quantity(length);
        problem.inputs = in;
        PagedCall call(problem);
        return time_of(call);
    };
    EXPECT_LT(time(63), time(-1) / 4);
}

/// 200 runs, several threads that are more than the processors, shared blocks.
TEST(FieldBugs, every_run_has_the_same_bits) {
    const Problem problem = make_problem(
        Geometry({65, 33, 17, 40}, {97, 65, 70, 64}).dim(64).heads(4, 2).bottom_right().prefix(3));
    Options options;
    options.num_threads = 5;
    PagedCall call(problem, options);
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    const Results expected = call.results();
    for (int run = 0; run < 200 && !testing::Test::HasFailure(); run++) {
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        expect_same_bits(call.results(), expected);
    }
}

/// 1000 calls, each with a workspace full of NaN: nothing is read that the call did not write.
TEST(FieldBugs, scratch_may_hold_anything) {
    const Problem problem =
        make_problem(Geometry({9, 17}, {12, 33}).dim(8).heads(2, 1).bottom_right().prefix(1));
    Options options;
    options.num_threads = 2;
    options.with_lse = false;
    PagedCall call(problem, options);
    std::size_t bytes = 0;
    ASSERT_EQ(pagegrad_backward_workspace(call.plan(), &call.backward_args, &call.execution, &bytes,
                                          nullptr),
              PAGEGRAD_OK);
    call.execution.workspace_size = bytes;
    for (int run = 0; run < 1000 && !testing::Test::HasFailure(); run++) {
        Workspace workspace(bytes);
        call.execution.workspace = workspace.data();
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        call.expect_backward();
    }
}

/// Workspace of a backward without lse, from shapes alone.
std::size_t workspace_of(int32_t batch, int32_t queries, int32_t keys, int32_t heads, int32_t dim,
                         const char *kernel, pagegrad_dtype dtype) {
    const int32_t block_size = 1024;
    const int32_t columns = (keys + block_size - 1) / block_size;
    const std::vector<int32_t> query_length(batch, queries), kv_length(batch, keys);
    const std::vector<int32_t> table(int64_t{batch} * columns, 0);
    pagegrad_plan_desc desc{};
    desc.struct_size = sizeof(desc);
    desc.num_heads = heads;
    desc.num_kv_heads = 2;
    desc.head_dim = dim;
    desc.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    desc.window_left = desc.window_right = -1;
    desc.num_sequences = batch;
    desc.query_length = query_length.data();
    desc.kv_length = kv_length.data();
    desc.block_table = table.data();
    desc.block_table_stride = desc.max_blocks = columns;
    desc.block_size = block_size;
    desc.num_blocks = 1;
    pagegrad_plan *plan = nullptr;
    pagegrad_error error{};
    EXPECT_EQ(pagegrad_plan_create(&desc, &plan, &error), PAGEGRAD_OK) << error.message;
    const auto tensor = [](uintptr_t address, pagegrad_dtype type, std::vector<int64_t> shape) {
        pagegrad_tensor view{};
        view.data = reinterpret_cast<void *>(address);  // of no memory: nothing is executed
        view.dtype = type;
        view.rank = static_cast<int32_t>(shape.size());
        int64_t step = 1;
        for (int i = view.rank - 1; i >= 0; i--) {
            view.shape[i] = shape[i];
            view.stride[i] = step;
            step *= shape[i];
        }
        return view;
    };
    const std::vector<int64_t> rows = {int64_t{batch} * queries, heads, dim};
    const std::vector<int64_t> pool = {1, block_size, 2, dim};
    pagegrad_backward_args args{};
    args.struct_size = sizeof(args);
    args.dout = tensor(64, dtype, rows);
    args.q = tensor(128, dtype, rows);
    args.k_pool = tensor(192, dtype, pool);
    args.v_pool = tensor(256, dtype, pool);
    args.out = tensor(320, dtype, rows);
    args.dq = tensor(384, dtype, rows);
    args.dk_pool = tensor(448, PAGEGRAD_FLOAT32, pool);
    args.dv_pool = tensor(512, PAGEGRAD_FLOAT32, pool);
    pagegrad_execution execution{};
    execution.struct_size = sizeof(execution);
    execution.num_threads = 1;
    execution.kernel = kernel;
    std::size_t bytes = 0;
    EXPECT_EQ(pagegrad_backward_workspace(plan, &args, &execution, &bytes, &error), PAGEGRAD_OK)
        << error.message;
    pagegrad_plan_destroy(plan);
    return bytes;
}

/// No buffer of queries by keys, nor of keys by query heads.
TEST(FieldBugs, workspace_is_linear_in_tokens) {
    for (const char *kernel : {static_cast<const char *>(nullptr), "any"}) {
        const std::size_t once = workspace_of(1, 8192, 8192, 16, 128, kernel, PAGEGRAD_FLOAT32);
        const std::size_t twice = workspace_of(1, 16384, 16384, 16, 128, kernel, PAGEGRAD_FLOAT32);
        EXPECT_LE(twice, 2 * once);
        // 24 sequences of 256 queries after 12288 keys.
        const std::size_t few = workspace_of(24, 256, 256, 16, 512, kernel, PAGEGRAD_BFLOAT16);
        const std::size_t many = workspace_of(24, 256, 12288, 16, 512, kernel, PAGEGRAD_BFLOAT16);
        EXPECT_LE(many, few + (1 << 20));
    }
}

/// 400 * 4 * 10496 * 128 elements of a dq accumulator are more than 2^31.
TEST(FieldBugs, workspace_sizes_have_64_bits) {
    const std::size_t bytes = workspace_of(400, 10496, 10496, 4, 128, nullptr, PAGEGRAD_BFLOAT16);
    EXPECT_GT(bytes, std::size_t{400} * 4 * 10496 * 128 * 4);
    EXPECT_LT(bytes, 2 * std::size_t{400} * 4 * 10496 * 128 * 4);
}

}  // namespace
}  // namespace pagegrad::test
