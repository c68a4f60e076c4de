// One plan, many threads: every call of the library at the same time as every other.
#include "random_case.h"
#include "tests/support/invariance.h"

#include <gtest/gtest.h>

#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>

namespace pagegrad::test {
namespace {

/// Calls with memory of their own and the plan of another call.
class Caller {
public:
    Caller(const Problem &problem, const Options &options, const pagegrad_plan *plan)
        : call_(problem, options), plan_(plan) {
    }

    void run() {
        check(pagegrad_forward(plan_, &call_.forward_args, &call_.execution, &error_));
        check(pagegrad_backward(plan_, &call_.backward_args, &call_.execution, &error_));
        pagegrad_plan_info info{};
        info.struct_size = sizeof(info);
        check(pagegrad_plan_get_info(plan_, &info, &error_));
        const char *name = nullptr;
        const int32_t dtype = call_.q.dtype();
        check(pagegrad_choose_kernel(plan_, "forward", dtype, &call_.execution, &name, &error_));
        check(pagegrad_plan_prepare(plan_, &call_.execution, &error_));
        pagegrad_plan *own = nullptr;
        check(pagegrad_plan_create(&call_.desc, &own, &error_));
        pagegrad_plan_destroy(own);
    }
    Results results() const {
        return call_.results();
    }
    const std::string &failure() const {
        return failure_;
    }

private:
    void check(pagegrad_status status) {
        if (status != PAGEGRAD_OK) {
            failure_ = error_.message;
        }
    }

    PagedCall call_;
    const pagegrad_plan *plan_;
    pagegrad_error error_{};
    std::string failure_;
};

TEST(Concurrent, calls_share_a_plan) {
    for (uint64_t seed = 1; seed <= 20; seed++) {
        SCOPED_TRACE(seed);
        RandomCase test = random_case(seed);
        test.options.num_threads = 3;
        const Problem problem = make_problem(test.geometry);
        PagedCall alone(problem, test.options);
        ASSERT_EQ(alone.forward(), PAGEGRAD_OK) << alone.message();
        ASSERT_EQ(alone.backward(), PAGEGRAD_OK) << alone.message();
        std::vector<std::unique_ptr<Caller>> callers;
        std::vector<std::thread> threads;
        for (int i = 0; i < 6; i++) {
            callers.push_back(std::make_unique<Caller>(problem, test.options, alone.plan()));
        }
        threads.reserve(callers.size());
        for (const auto &caller : callers) {
            threads.emplace_back([&caller] { caller->run(); });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
        for (const auto &caller : callers) {
            EXPECT_EQ(caller->failure(), "");
            expect_same_bits(caller->results(), alone.results());
        }
    }
}

TEST(Concurrent, more_threads_than_tasks) {
    const Problem problem = make_problem(Geometry({3, 2}, {5, 9}).dim(16));
    Options options;
    options.num_threads = 300;
    PagedCall call(problem, options);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_forward();
    call.expect_backward();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
/// Asks for 64 threads with address space for the stacks of two. Ends the program.
void run_without_room_for_threads() {
    const Problem problem = make_problem(Geometry({3, 2}, {5, 9}).dim(16));
    Options options;
    options.num_threads = 64;
    PagedCall call(problem, options);
    std::size_t bytes = 0;
    pagegrad_forward_workspace(call.plan(), &call.forward_args, &call.execution, &bytes, nullptr);
    Workspace workspace(bytes);
    call.execution.workspace = workspace.data();
    call.execution.workspace_size = bytes;
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlim_t limit = pages * sysconf(_SC_PAGESIZE) + (rlim_t{20} << 20);
    const rlimit limits{limit, limit};
    setrlimit(RLIMIT_AS, &limits);
    const pagegrad_status status = call.forward();
    std::fputs(call.message(), stderr);
    std::exit(status == PAGEGRAD_OK ? 0 : 1);
}

TEST(ConcurrentDeathTest, fewer_threads_do_the_work_where_the_system_has_no_more) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(run_without_room_for_threads(), testing::ExitedWithCode(0), "^$");
}
#endif

}  // namespace
}  // namespace pagegrad::test
