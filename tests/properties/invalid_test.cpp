// Thousands of calls, each valid but for one thing: the status, a message that begins with the name
// of the argument, and nothing written.
#include "breakage.h"

#include <gtest/gtest.h>

namespace pagegrad::test {
namespace {

TEST(RandomRefusals, name_the_argument_and_write_nothing) {
    const Seeds range = seeds(1000);
    for (uint64_t seed = range.begin; seed < range.end && !HasFailure(); seed++) {
        expect_refusals(seed);
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
