// The forward with every kernel of the build against the double-precision reference.
#include "tests/support/geometries.h"
#include "tests/support/invariance.h"

#include <cmath>

namespace pagegrad::test {
namespace {

class Forward : public testing::TestWithParam<KernelCase> {
protected:
    const Problem &problem = problem_of(GetParam());
    Options options() const {
        Options options;
        options.kernel = GetParam().kernel.name;
        return options;
    }
};

TEST_P(Forward, matches_reference) {
    PagedCall call(problem, options());
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    EXPECT_STREQ(call.message(), "");
    call.expect_forward();
}

INSTANTIATE_TEST_SUITE_P(, Forward, testing::ValuesIn(with_kernels(geometries(), {"forward"})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Options, Forward,
                         testing::ValuesIn(with_kernels(option_geometries(), {"forward"})),
                         case_name);

class ForwardInvariance : public Forward {
protected:
    static constexpr Pass pass = &PagedCall::forward;
};

TEST_P(ForwardInvariance, threads) {
    expect_same_for_threads(problem, options(), pass);
}

TEST_P(ForwardInvariance, placement_and_unused_memory) {
    expect_same_for_placement(problem, options(), pass);
    expect_same_for_unused_memory(problem, options(), pass);
}

TEST_P(ForwardInvariance, callers_threads) {
    expect_same_with_callers_threads(problem, options(), pass);
}

TEST_P(ForwardInvariance, callers_workspace) {
    PagedCall call(problem, options());
    std::size_t bytes = 0;
    ASSERT_EQ(pagegrad_forward_workspace(call.plan(), &call.forward_args, &call.execution, &bytes,
                                         nullptr),
              PAGEGRAD_OK);
    expect_workspace_respected(problem, options(), pass, bytes);
}

TEST_P(ForwardInvariance, out_without_lse) {
    Options without_lse = options();
    without_lse.with_lse = false;
    PagedCall call(problem, without_lse);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    call.expect_forward();
}

INSTANTIATE_TEST_SUITE_P(, ForwardInvariance,
                         testing::ValuesIn(with_kernels(invariance_geometries(), {"forward"})),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Options, ForwardInvariance,
                         testing::ValuesIn(with_kernels(option_invariance_geometries(),
                                                        {"forward"})),
                         case_name);

TEST(ForwardLse, is_a_natural_logarithm) {
    const Problem problem = make_problem(Geometry({1}, {8}).dim(64));
    AttentionInputs in = problem.inputs;
    std::fill(in.k_pool.begin(), in.k_pool.end(), 0.0);
    const Problem equal_scores = make_problem(in);
    PagedCall call(equal_scores);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    EXPECT_NEAR(call.lse[0], std::log(8.0), 1e-6);
}

TEST(ForwardLse, of_rows_without_keys_is_minus_infinity) {
    const Problem problem = make_problem(Geometry({3}, {1}).dim(64).bottom_right());
    PagedCall call(problem);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    EXPECT_EQ(call.lse[0], -INFINITY);
    EXPECT_EQ(call.lse[1], -INFINITY);
    EXPECT_TRUE(std::isfinite(call.lse[2]));
}

}  // namespace
}  // namespace pagegrad::test
