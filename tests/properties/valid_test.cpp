// Thousands of random problems against the double-precision reference.
#include "random_case.h"
#include "tests/support/invariance.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <array>

namespace pagegrad::test {
namespace {

/// Memory of exactly the size that a call asks for.
Workspace exact_workspace(PagedCall &call, Pass pass) {
    std::size_t bytes = 0;
    pagegrad_error error{};
    const pagegrad_status status =
        pass == &PagedCall::forward ? pagegrad_forward_workspace(call.plan(), &call.forward_args,
                                                                 &call.execution, &bytes, &error)
                                    : pagegrad_backward_workspace(call.plan(), &call.backward_args,
                                                                  &call.execution, &bytes, &error);
    EXPECT_EQ(status, PAGEGRAD_OK) << error.message;
    Workspace workspace(bytes);
    call.execution.workspace = workspace.data();
    call.execution.workspace_size = bytes;
    return workspace;
}

void run_in_exact_workspace(PagedCall &call, Pass pass, const std::string &kernel) {
    call.execution.kernel = kernel.empty() ? nullptr : kernel.c_str();
    const Workspace workspace = exact_workspace(call, pass);
    ASSERT_EQ((call.*pass)(), PAGEGRAD_OK) << call.message();
    EXPECT_TRUE(workspace.guards_intact()) << "workspace was written past its end";
    call.execution.workspace = nullptr;
}

std::array<std::vector<uint16_t>, 9> input_bits(const PagedCall &call) {
    return {call.q.bits(),      call.dout.bits(),         call.k_pool.bits(),
            call.v_pool.bits(), call.saved_out.bits(),    call.saved_lse.bits(),
            call.dlse.bits(),   call.alibi_slopes.bits(), call.sinks.bits()};
}

/// Forward and backward match the reference, write nothing else, and do not change in any bit with
/// threads, placement of blocks and unused memory.
void run_case(const RandomCase &test) {
    const Problem problem = make_problem(test.geometry);
    PagedCall call(problem, test.options);
    const auto inputs = input_bits(call);
    run_in_exact_workspace(call, &PagedCall::forward, test.forward_kernel);
    call.expect_forward();
    run_in_exact_workspace(call, &PagedCall::backward, test.backward_kernel);
    call.expect_backward();
    EXPECT_TRUE(inputs == input_bits(call)) << "an input was written to";

    Options other = test.options;
    other.num_threads = test.options.num_threads == 1 ? 3 : 1;
    other.placement++;
    other.unused_value = 0;
    other.unused_id = 0;
    PagedCall again(problem, other);
    run_in_exact_workspace(again, &PagedCall::forward, test.forward_kernel);
    run_in_exact_workspace(again, &PagedCall::backward, test.backward_kernel);
    expect_same_bits(again.results(), call.results());
}

/// What a case fails with; empty if it passes.
std::string failure_of(const RandomCase &test) {
    testing::TestPartResultArray results;
    {
        const testing::ScopedFakeTestPartResultReporter reporter(
            testing::ScopedFakeTestPartResultReporter::INTERCEPT_ALL_THREADS, &results);
        run_case(test);
    }
    for (int i = 0; i < results.size(); i++) {
        if (results.GetTestPartResult(i).failed()) {
            return results.GetTestPartResult(i).message();
        }
    }
    return "";
}

TEST(RandomProblems, match_the_reference) {
    const Seeds range = seeds(1000);
    for (uint64_t seed = range.begin; seed < range.end; seed++) {
        const Watchdog watchdog(seed);
        const RandomCase test = random_case(seed);
        const std::string failure = failure_of(test);
        if (!failure.empty()) {
            const auto fails = [](const RandomCase &c) { return !failure_of(c).empty(); };
            const RandomCase small = shrunk(test, fails);
            FAIL() << "seed " << seed << ", " << test << "\n"
                   << failure << "\nshrunk to " << small << "\n"
                   << failure_of(small);
        }
    }
}

// The shrinker is what makes a failure readable: it must find the one thing that matters.
TEST(Shrinking, keeps_what_matters_and_drops_the_rest) {
    RandomCase test = random_case(7);
    test.geometry.query_length = {9, 40, 3};
    test.geometry.kv_length = {5, 70, 11};
    test.geometry.blocks.clear();
    test.geometry.window(7, -1);
    test.options.num_threads = 3;
    const RandomCase small = shrunk(test, [](const RandomCase &c) {
        const auto &keys = c.geometry.kv_length;
        return c.geometry.window_left >= 0 &&
               std::any_of(keys.begin(), keys.end(), [](int32_t length) { return length > 20; });
    });
    EXPECT_EQ(small.geometry.kv_length, std::vector<int32_t>{21});
    EXPECT_EQ(small.geometry.query_length, std::vector<int32_t>{0});
    EXPECT_EQ(small.geometry.head_dim, 1);
    EXPECT_EQ(small.geometry.window_left, 7);
    EXPECT_EQ(small.options.num_threads, 1);
}

}  // namespace
}  // namespace pagegrad::test
