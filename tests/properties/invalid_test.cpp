// Thousands of calls, each valid but for one thing: the status, a message that begins with the name
// of the argument, and nothing written.
#include "breakage.h"

#include <gtest/gtest.h>

namespace pagegrad::test {
namespace {

/// The kernels of the case, unless the name of the kernel is what is wrong.
void use_kernels(Attempt &attempt, const RandomCase &test, Function function) {
    const bool backward =
        function == &Attempt::backward || function == &Attempt::backward_workspace;
    const bool forward = function == &Attempt::forward || function == &Attempt::forward_workspace;
    const std::string &name = backward ? test.backward_kernel : test.forward_kernel;
    if (attempt.call.execution.kernel == nullptr && (backward || forward) && !name.empty()) {
        attempt.call.execution.kernel = name.c_str();
    }
}

void expect_refused(Attempt &attempt, Function function, const Expected &expected) {
    pagegrad_error error{};
    EXPECT_EQ((attempt.*function)(&error), expected.status) << error.message;
    EXPECT_EQ(std::string(error.message).substr(0, expected.argument.size()), expected.argument)
        << error.message;
    EXPECT_EQ((attempt.*function)(nullptr), expected.status);
}

/// Breaks a problem in one way, the first of some that has what is to be broken.
void run_case(uint64_t seed) {
    const Breakage &breakage = breakages()[seed % breakages().size()];
    for (uint64_t offset = 0; offset < 100; offset++) {
        const RandomCase test = random_case(seed + offset * 1'000'000);
        const Problem problem = make_problem(test.geometry);
        Attempt attempt(problem, test.options);
        Random random(seed + offset);
        const std::optional<Expected> expected = breakage.spoil(attempt, random);
        if (!expected) {
            continue;
        }
        SCOPED_TRACE(testing::Message()
                     << "seed " << seed << ", broken " << breakage.name << " of " << test);
        const auto before = attempt.bits();
        for (const Function function : breakage.functions) {
            const char *kernel = attempt.call.execution.kernel;
            use_kernels(attempt, test, function);
            expect_refused(attempt, function, *expected);
            attempt.call.execution.kernel = kernel;
        }
        EXPECT_TRUE(before == attempt.bits()) << "something was written";
        return;
    }
    ADD_FAILURE() << "no problem to break " << breakage.name << " of";
}

TEST(RandomRefusals, name_the_argument_and_write_nothing) {
    const Seeds range = seeds(1000);
    for (uint64_t seed = range.begin; seed < range.end && !HasFailure(); seed++) {
        run_case(seed);
    }
}

/// What the refusals start from is valid.
TEST(RandomRefusals, come_from_valid_calls) {
    for (uint64_t seed = 1; seed < 50; seed++) {
        SCOPED_TRACE(seed);
        const RandomCase test = random_case(seed);
        const Problem problem = make_problem(test.geometry);
        Attempt attempt(problem, test.options);
        pagegrad_plan *plan = nullptr;
        EXPECT_EQ(pagegrad_plan_create(&attempt.desc, &plan, nullptr), PAGEGRAD_OK);
        pagegrad_plan_destroy(plan);
        for (const Function function :
             {&Attempt::forward, &Attempt::backward, &Attempt::gather, &Attempt::scatter_add}) {
            pagegrad_error error{};
            EXPECT_EQ((attempt.*function)(&error), PAGEGRAD_OK) << error.message;
        }
    }
}

}  // namespace
}  // namespace pagegrad::test
