// The backward with every kernel of the build, fused and materialised, against the
// double-precision reference.
#include "tests/support/geometries.h"
#include "tests/support/invariance.h"

#include <cmath>
#include <thread>

namespace pagegrad::test {
namespace {

const std::vector<std::string> operations = {"backward", "backward_dense"};

class Backward : public testing::TestWithParam<KernelCase> {
protected:
    const Problem &problem = problem_of(GetParam());
    Options options() const {
        Options options;
        options.kernel = GetParam().kernel.name;
        return options;
    }
    static void expect_backward(const Problem &problem, const Options &options) {
        PagedCall call(problem, options);
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        EXPECT_STREQ(call.message(), "");
        call.expect_backward();
    }
};

TEST_P(Backward, matches_reference) {
    expect_backward(problem, options());
}

INSTANTIATE_TEST_SUITE_P(, Backward, testing::ValuesIn(with_kernels(geometries(), operations)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Options, Backward,
                         testing::ValuesIn(with_kernels(option_geometries(), operations)),
                         case_name);

class BackwardVariants : public Backward {
protected:
    static constexpr Pass pass = &PagedCall::backward;
};

TEST_P(BackwardVariants, without_lse) {
    Options without_lse = options();
    without_lse.with_lse = false;
    expect_backward(problem, without_lse);
}

TEST_P(BackwardVariants, adds_to_the_pool_gradients) {
    Options accumulate = options();
    accumulate.pool_mode = PAGEGRAD_POOL_ACCUMULATE;
    expect_backward(problem, accumulate);
}

TEST_P(BackwardVariants, without_gradients_of_heads) {
    Options without = options();
    without.with_head_gradients = false;
    expect_backward(problem, without);
}

TEST_P(BackwardVariants, accepts_infinite_lse_of_either_sign) {
    PagedCall call(problem, options());
    for (int64_t row = 0; row < call.saved_lse.size(); row++) {
        if (std::isinf(call.saved_lse[row])) {
            call.saved_lse.set(row, INFINITY);
        }
    }
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_backward();
}

TEST_P(BackwardVariants, same_for_threads) {
    expect_same_for_threads(problem, options(), pass);
}

TEST_P(BackwardVariants, same_for_placement_and_unused_memory) {
    expect_same_for_placement(problem, options(), pass);
    expect_same_for_unused_memory(problem, options(), pass);
}

TEST_P(BackwardVariants, same_with_callers_threads) {
    expect_same_with_callers_threads(problem, options(), pass);
}

TEST_P(BackwardVariants, respects_callers_workspace) {
    for (const bool with_lse : {true, false}) {
        Options given = options();
        given.with_lse = with_lse;
        PagedCall call(problem, given);
        std::size_t bytes = 0;
        ASSERT_EQ(pagegrad_backward_workspace(call.plan(), &call.backward_args, &call.execution,
                                              &bytes, nullptr),
                  PAGEGRAD_OK);
        expect_workspace_respected(problem, given, pass, bytes);
    }
}

INSTANTIATE_TEST_SUITE_P(, BackwardVariants,
                         testing::ValuesIn(with_kernels(invariance_geometries(), operations)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Options, BackwardVariants,
                         testing::ValuesIn(with_kernels(option_invariance_geometries(),
                                                        operations)),
                         case_name);

class PagedBackward : public testing::TestWithParam<KernelChoice> {};

TEST_P(PagedBackward, paged_bwd_matches_dense_reference) {
    const Problem problem = make_problem(Geometry({127, 64, 33}, {127, 65, 80})
                                             .dim(64)
                                             .heads(6, 2)
                                             .bottom_right()
                                             .prefix(3)
                                             .stored_as(GetParam().dtype));
    Options options;
    options.kernel = GetParam().name;
    PagedCall call(problem, options);
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_plain_bounds();
}

INSTANTIATE_TEST_SUITE_P(, PagedBackward, testing::ValuesIn(kernels_and_dispatch(operations, 64)),
                         [](const auto &info) { return label(info.param); });

/// One key of probability one: only dv is not zero.
TEST(BackwardEdge, single_key_gets_all_of_dout) {
    const Problem problem = make_problem(Geometry({1}, {1}).dim(16));
    PagedCall call(problem);
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    for (int d = 0; d < 16; d++) {
        EXPECT_NEAR(call.dq[d], 0, 1e-5);
        EXPECT_NEAR(call.dk_pool[call.pool_row(0) * 16 + d], 0, 1e-5);
        EXPECT_NEAR(call.dv_pool[call.pool_row(0) * 16 + d], call.dout[d], 1e-5);
    }
}

TEST(BackwardEdge, calls_at_the_same_time_share_a_plan) {
    const Problem problem = make_problem(
        Geometry({65, 33, 17}, {97, 65, 70}).dim(64).heads(6, 2).bottom_right().prefix(3));
    Options options;
    options.num_threads = 2;
    PagedCall first(problem, options), second(problem, options);
    pagegrad_status status = PAGEGRAD_INTERNAL;
    std::thread other([&] {
        status = pagegrad_backward(first.plan(), &second.backward_args, &second.execution, nullptr);
    });
    EXPECT_EQ(first.backward(), PAGEGRAD_OK) << first.message();
    other.join();
    EXPECT_EQ(status, PAGEGRAD_OK);
    first.expect_backward();
    second.expect_backward();
}

TEST(BackwardEdge, window_bounds_are_inclusive) {
    for (const int64_t left : {1, 2, 15, 16, 17}) {
        const Problem problem =
            make_problem(Geometry({1}, {40}).dim(8).bottom_right().window(left, -1));
        PagedCall call(problem);
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        const std::vector<float> dv = call.results().dv_pool;
        int64_t rows = 0;
        for (std::size_t at = 0; at < dv.size(); at += 8) {
            rows += dv[at] != 0;
        }
        EXPECT_EQ(rows, left + 1);
    }
}

}  // namespace
}  // namespace pagegrad::test
