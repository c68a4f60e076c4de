// Softcap, ALiBi slopes, sinks, windows and values of another width where they are at their
// extremes. All kernels with all options: forward_test.cpp, backward_test.cpp.
#include "pagegrad/pagegrad.hpp"
#include "tests/support/geometries.h"
#include "tests/support/invariance.h"

#include <cfloat>
#include <cmath>
#include <limits>

namespace pagegrad::test {
namespace {

/// Options for the fused and for the materialised backward, each with and without lse.
std::vector<Options> schedules() {
    std::vector<Options> list;
    for (const char *kernel : {"", "materialised"}) {
        for (const bool with_lse : {true, false}) {
            list.emplace_back();
            list.back().kernel = kernel;
            list.back().with_lse = with_lse;
        }
    }
    return list;
}

void expect_both(const Problem &problem) {
    PagedCall call(problem);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    call.expect_forward();
    for (const Options &options : schedules()) {
        PagedCall backward(problem, options);
        ASSERT_EQ(backward.backward(), PAGEGRAD_OK) << backward.message();
        backward.expect_backward();
    }
}

struct Window {
    pagegrad_mask mask;
    int64_t left, right;
};

class Windows : public testing::TestWithParam<Window> {};

TEST_P(Windows, of_any_alignment_and_lengths) {
    const std::vector<std::pair<int32_t, int32_t>> lengths = {{5, 9},  {9, 5}, {7, 7}, {1, 20},
                                                              {20, 1}, {0, 3}, {3, 0}};
    Geometry geometry({}, {});
    for (const auto &[queries, keys] : lengths) {
        geometry.query_length.push_back(queries);
        geometry.kv_length.push_back(keys);
    }
    geometry.dim(8).heads(4, 2).block(3).slopes().sinks().dlse();
    geometry.mask = GetParam().mask;
    geometry.window(GetParam().left, GetParam().right);
    expect_both(make_problem(geometry));
}

std::vector<Window> windows() {
    constexpr int64_t widest = std::numeric_limits<int64_t>::max();
    std::vector<Window> list;
    for (const pagegrad_mask mask :
         {PAGEGRAD_MASK_NONE, PAGEGRAD_MASK_CAUSAL_TOP_LEFT, PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT}) {
        for (const int64_t left : {int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{6}, widest}) {
            for (const int64_t right : {int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{6}, widest}) {
                list.push_back({mask, left, right});
            }
        }
    }
    return list;
}

INSTANTIATE_TEST_SUITE_P(, Windows, testing::ValuesIn(windows()));

/// A problem whose sinks are all `sink`.
Problem with_sink(Geometry geometry, double sink) {
    Problem problem = make_problem(geometry);
    problem.inputs.sinks.assign(problem.inputs.num_heads, sink);
    return make_problem(problem.inputs, problem.form, problem.layout, problem.dtypes);
}

class Sinks : public testing::TestWithParam<float> {};

TEST_P(Sinks, of_any_size) {
    Geometry geometry({17, 33}, {5, 40});
    geometry.dim(64).heads(2, 1).bottom_right();  // with rows that see no key
    for (const bool with_dlse : {false, true}) {
        geometry.with_dlse = with_dlse;
        expect_both(with_sink(geometry, GetParam()));
    }
}

INSTANTIATE_TEST_SUITE_P(, Sinks,
                         testing::Values(0.0f, 88.0f, -88.0f, 1e4f, 1e30f, 2.3e38f, 2.4e38f,
                                         FLT_MAX, -1e4f, -2.4e38f, -FLT_MAX));

TEST(SinksEdge, huge_ones_take_all_of_the_softmax) {
    const Problem problem = with_sink(Geometry({9}, {20}).dim(64).heads(2, 1), 2.4e38f);
    PagedCall call(problem);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    const Results got = call.results();
    for (const float value : got.out) {
        EXPECT_EQ(value, 0);
    }
    for (const float value : got.lse) {
        EXPECT_EQ(value, 2.4e38f);
    }
    for (const std::vector<float> &gradient : {got.dq, got.dk_pool, got.dv_pool, got.dsinks}) {
        for (const float value : gradient) {
            EXPECT_EQ(value, 0);
        }
    }
}

TEST(SinksEdge, rows_without_keys_have_the_sink_as_lse) {
    const Problem problem = with_sink(Geometry({3}, {1}).dim(64).bottom_right().dlse(), 0.75);
    PagedCall call(problem);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    for (const int row : {0, 1}) {
        EXPECT_EQ(call.lse[row], 0.75f);
        EXPECT_EQ(call.out[row * 64], 0);
    }
    EXPECT_GT(call.lse[2], 0.75f);
}

TEST(SinksEdge, minus_infinity_is_none) {
    const Geometry geometry = Geometry({33, 5}, {20, 70}).dim(64).heads(2, 1).bottom_right();
    const Problem none = make_problem(geometry), infinite = with_sink(geometry, -INFINITY);
    for (const Pass pass : {&PagedCall::forward, &PagedCall::backward}) {
        PagedCall without(none), with(infinite);
        ASSERT_EQ((without.*pass)(), PAGEGRAD_OK) << without.message();
        ASSERT_EQ((with.*pass)(), PAGEGRAD_OK) << with.message();
        const Results a = without.results(), b = with.results();
        EXPECT_EQ(bits_of(a.out), bits_of(b.out));
        EXPECT_EQ(bits_of(a.lse), bits_of(b.lse));
        EXPECT_EQ(bits_of(a.dq), bits_of(b.dq));
        EXPECT_EQ(bits_of(a.dk_pool), bits_of(b.dk_pool));
        EXPECT_EQ(bits_of(a.dv_pool), bits_of(b.dv_pool));
        if (pass == &PagedCall::backward) {
            EXPECT_EQ(b.dsinks, std::vector<float>(2, 0));
        }
    }
}

/// A problem whose slopes are all `slope`.
Problem with_slope(const Geometry &geometry, double slope) {
    Problem problem = make_problem(geometry);
    problem.inputs.alibi_slopes.assign(problem.inputs.num_heads, slope);
    return make_problem(problem.inputs, problem.form, problem.layout, problem.dtypes);
}

class Slopes : public testing::TestWithParam<float> {};

TEST_P(Slopes, of_any_size) {
    expect_both(with_slope(Geometry({17, 3}, {40, 1}).dim(64).heads(2, 1), GetParam()));
}

INSTANTIATE_TEST_SUITE_P(, Slopes, testing::Values(0.0f, 1e-30f, 100.0f, -100.0f, 1e20f, 1e35f));

TEST(SlopesEdge, steep_ones_leave_the_diagonal_only) {
    Problem problem = with_slope(Geometry({9}, {9}).dim(16), FLT_MAX);
    PagedCall call(problem);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    for (std::size_t at = 0; at < problem.inputs.v_pool.size() / 16 * 9; at++) {
        EXPECT_EQ(call.out[static_cast<int64_t>(at)],
                  static_cast<float>(problem.inputs.v_pool[at]));
    }
}

TEST(SoftcapEdge, scores_far_beyond_it_are_equal) {
    const Geometry geometry = Geometry({5}, {16}).dim(64).cap(2).scaled(1e30);
    Problem problem = make_problem(geometry);
    std::fill(problem.inputs.q.begin(), problem.inputs.q.end(), 1.0);
    std::fill(problem.inputs.k_pool.begin(), problem.inputs.k_pool.end(), 1.0);
    const Problem absent = make_problem(problem.inputs);
    PagedCall call(absent);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    EXPECT_NEAR(call.lse[0], 2 + std::log(16.0), 1e-6);
}

TEST(ValueHeadDim, chooses_kernels_for_any) {
    const auto chosen = [](const Geometry &geometry, const char *operation) {
        const Problem problem = make_problem(geometry);
        PagedCall call(problem);
        const char *name = "";
        EXPECT_EQ(pagegrad_choose_kernel(call.plan(), operation, PAGEGRAD_FLOAT32, nullptr, &name,
                                         nullptr),
                  PAGEGRAD_OK);
        return std::string(name);
    };
    for (const std::string operation : {"forward", "backward"}) {
        const std::string any = chosen(Geometry({1}, {1}).dim(64).values(128), operation.c_str());
        EXPECT_NE(any.find(operation + "_f32_any_"), std::string::npos) << any;
        const std::string general =
            chosen(Geometry({1}, {1}).dim(64), (operation + "_general").c_str());
        EXPECT_NE(general.find(operation + "_general_f32_any_"), std::string::npos) << general;
    }
}

TEST(ValueHeadDim, may_be_given_as_that_of_keys) {
    expect_both(make_problem(Geometry({9}, {20}).dim(64).values(64)));
}

TEST(ValueHeadDim, is_gathered_and_scattered) {
    const Problem problem = make_problem(Geometry({1, 1}, {20, 7}).dim(64).values(24).heads(2, 2));
    PagedCall call(problem);
    const int64_t width = 24;
    GuardedTensor dense({27, 2, width}, Layout::Contiguous);
    ASSERT_EQ(call.gather(call.v_pool, dense), PAGEGRAD_OK) << call.message();
    const std::vector<int64_t> rows = call.gathered_rows();
    for (std::size_t row = 0; row < rows.size(); row++) {
        for (int64_t d = 0; d < width; d++) {
            ASSERT_EQ(dense[static_cast<int64_t>(row) * width + d],
                      call.v_pool[call.pool_row(rows[row]) * width + d]);
        }
    }
    GuardedTensor pool({call.pool_blocks(), 16, 2, width}, Layout::Contiguous);
    for (int64_t at = 0; at < pool.size(); at++) {
        pool.set(at, 0);
    }
    ASSERT_EQ(call.scatter_add(dense, pool), PAGEGRAD_OK) << call.message();
    for (const int64_t row : rows) {
        ASSERT_EQ(pool[call.pool_row(row) * width], call.v_pool[call.pool_row(row) * width]);
    }
    EXPECT_EQ(call.gather(call.k_pool, dense), PAGEGRAD_INVALID_ARGUMENT);
    EXPECT_NE(std::string(call.message()).find("dense.shape[2] is 24, expected 64 (head_dim)"),
              std::string::npos)
        << call.message();
}

/// The C++ interface hands every option on.
TEST(CppOptions, reach_the_library) {
    const int32_t query_length = 1, kv_length = 2, block = 0;
    const float k[4] = {3, 0, 0, 0}, v[2] = {1, 2}, q[2] = {1, 0}, slope = 0.5f, sink = 0.25f;
    AttentionConfig config(1, 1, 2, Mask::None);
    config.value_head_dim = 1;
    config.scale = 1;
    config.softcap = 2;
    const PagedKv kv = {{k, {1, 2, 1, 2}}, {v, {1, 2, 1, 1}}, &block, 1, &kv_length};
    const Plan plan(config, {&query_length, nullptr, 1}, kv);
    const HeadTerms terms = {{&slope, {1}}, {&sink, {1}}};
    float out = 0, lse = 0;
    forward(plan, {q, {1, 1, 2}}, kv, {&out, {1, 1, 1}}, {&lse, {1, 1}}, {}, terms);
    // Key 0 is one away from the diagonal.
    const double weights[] = {std::exp(2 * std::tanh(1.5) - 0.5), 1, std::exp(0.25)};
    const double sum = weights[0] + weights[1] + weights[2];
    EXPECT_NEAR(lse, std::log(sum), 1e-6);
    EXPECT_NEAR(out, (weights[0] * 1 + weights[1] * 2) / sum, 1e-6);

    const float dout = 1;
    float dq[2] = {}, dk[4] = {}, dv[2] = {}, dslope = 0, dsink = 0;
    const BackwardInputs inputs = {
        {&dout, {1, 1, 1}}, {q, {1, 1, 2}}, {&out, {1, 1, 1}}, {&lse, {1, 1}}, {}, terms};
    const Gradients gradients = {{dq, {1, 1, 2}},
                                 {dk, {1, 2, 1, 2}},
                                 {dv, {1, 2, 1, 1}},
                                 PoolMode::Overwrite,
                                 {{&dslope, {1}}, {&dsink, {1}}}};
    backward(plan, inputs, kv, gradients);
    EXPECT_NEAR(dv[0], weights[0] / sum, 1e-6);
    EXPECT_NEAR(dslope, -weights[0] / sum * (1 - out), 1e-6);
    EXPECT_NEAR(dsink, -weights[2] / sum * out, 1e-6);
    const double bend = 1 - std::tanh(1.5) * std::tanh(1.5);
    EXPECT_NEAR(dk[0], weights[0] / sum * (1 - out) * bend, 1e-6);
}

}  // namespace
}  // namespace pagegrad::test
