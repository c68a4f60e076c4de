// The backward on a GPU against the double-precision reference, and what must not change it.
#include "gpu_cases.h"
#include "half_problem.h"
#include "tests/support/invariance.h"

#include <cmath>
#include <thread>

namespace pagegrad::test {
namespace {

using GpuBackwardInAnyOrder = GpuTest;

class GpuBackward : public OnGpu<testing::TestWithParam<GpuCase>> {
protected:
    const Problem &problem() const {
        return problem_of(GetParam());
    }
    DeviceCall make_call(const Options &options = {}) const {
        return make_call(gpu(), problem(), options);
    }
    static DeviceCall make_call(const Gpu &gpu, const Problem &problem,
                                const Options &options = {}) {
        return {gpu, problem, GetParam().dtypes, options, GetParam().ordered};
    }
    static void expect_backward(DeviceCall &call) {
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        EXPECT_STREQ(call.message(), "");
        call.expect_backward();
    }
    /// The results of a call that must be right.
    Results results_with(const Options &options) const {
        DeviceCall call = make_call(options);
        expect_backward(call);
        return call.host.results();
    }
};

TEST_P(GpuBackward, matches_reference) {
    DeviceCall call = make_call();
    expect_backward(call);
}

INSTANTIATE_TEST_SUITE_P(, GpuBackward, testing::ValuesIn(with_both_orders(gpu_geometries())),
                         name_of);

INSTANTIATE_TEST_SUITE_P(float32_results, GpuBackward,
                         testing::ValuesIn(with_float32_results(for_gpus(invariance_geometries()))),
                         name_of);

/// Kernels that add in any order have no float32 dq: one with a fixed order does it then.
TEST_F(GpuBackwardInAnyOrder, has_float32_results) {
    const Geometry geometry = Geometry({65, 17}, {65, 33}).dim(64).heads(4, 2).bottom_right();
    const Dtypes dtypes(PAGEGRAD_BFLOAT16, PAGEGRAD_FLOAT32, PAGEGRAD_FLOAT32);
    const Problem problem = make_half_problem(geometry, dtypes);
    DeviceCall call(gpu(), problem, dtypes, {}, false);
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_backward();
}

class GpuBackwardVariants : public GpuBackward {
protected:
    /// Bits of the gradients whose sums have a fixed order.
    static std::vector<std::vector<uint32_t>> ordered_bits(const Results &results) {
        std::vector<std::vector<uint32_t>> bits = {bits_of(results.dk_pool),
                                                   bits_of(results.dv_pool)};
        if (GetParam().ordered) {
            bits.push_back(bits_of(results.dq));
        }
        return bits;
    }
};

TEST_P(GpuBackwardVariants, adds_to_the_pool_gradients) {
    Options accumulate;
    accumulate.pool_mode = PAGEGRAD_POOL_ACCUMULATE;
    results_with(accumulate);
}

TEST_P(GpuBackwardVariants, without_lse) {
    Options without_lse;
    without_lse.with_lse = false;
    results_with(without_lse);
}

TEST_P(GpuBackwardVariants, accepts_infinite_lse_of_either_sign) {
    Problem changed = problem();
    for (double &lse : changed.expected.lse.value) {
        lse = std::isinf(lse) ? -lse : lse;
    }
    DeviceCall call = make_call(gpu(), changed);
    expect_backward(call);
}

TEST_P(GpuBackwardVariants, same_for_placement_and_unused_memory) {
    const auto expected = ordered_bits(results_with({}));
    Options other;
    other.placement = 2;
    EXPECT_EQ(ordered_bits(results_with(other)), expected);
    other.unused_value = 0;
    other.unused_id = std::numeric_limits<int32_t>::max();
    EXPECT_EQ(ordered_bits(results_with(other)), expected);
}

TEST_P(GpuBackwardVariants, same_in_every_run) {
    DeviceCall call = make_call();
    expect_backward(call);
    const auto expected = ordered_bits(call.host.results());
    const int runs = is_fake() ? 3 : 200;
    for (int run = 1; run < runs; run++) {
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        call.download();
        ASSERT_EQ(ordered_bits(call.host.results()), expected) << "run " << run;
    }
    call.expect_backward();
}

TEST_P(GpuBackwardVariants, runs_in_a_graph) {
    DeviceCall call = make_call();
    ASSERT_EQ(pagegrad_plan_prepare(call.host.plan(), &call.execution, nullptr), PAGEGRAD_OK);
    constexpr int thread_local_mode = 1;
    void *graph = nullptr, *executable = nullptr;
    const cuda::Stream stream = gpu().stream();
    gpu().call<cuda::Stream, int>("cuStreamBeginCapture_v2", stream, thread_local_mode);
    EXPECT_EQ(call.start(), PAGEGRAD_OK) << call.message();
    gpu().call<cuda::Stream, void **>("cuStreamEndCapture", stream, &graph);
    gpu().call<void **, void *, unsigned long long>("cuGraphInstantiateWithFlags", &executable,
                                                    graph, 0ULL);
    for (int run = 0; run < 3; run++) {
        gpu().call<void *, cuda::Stream>("cuGraphLaunch", executable, stream);
        gpu().synchronize();
        call.expect_backward();
    }
    gpu().call<void *>("cuGraphExecDestroy", executable);
    gpu().call<void *>("cuGraphDestroy", graph);
}

TEST_P(GpuBackwardVariants, capture_needs_a_prepared_plan) {
    DeviceCall call = make_call();
    void *graph = nullptr;
    constexpr int thread_local_mode = 1;
    gpu().call<cuda::Stream, int>("cuStreamBeginCapture_v2", gpu().stream(), thread_local_mode);
    EXPECT_EQ(call.start(), PAGEGRAD_INVALID_ARGUMENT);
    EXPECT_NE(std::string(call.message()).find("pagegrad_plan_prepare"), std::string::npos);
    gpu().call<cuda::Stream, void **>("cuStreamEndCapture", gpu().stream(), &graph);
    gpu().call<void *>("cuGraphDestroy", graph);
    expect_backward(call);
}

TEST_P(GpuBackwardVariants, threads_with_streams_of_their_own_share_a_plan) {
    DeviceCall first = make_call();
    std::thread other([&] {
        const Gpu gpu;
        DeviceCall second = make_call(gpu, problem());
        EXPECT_EQ(pagegrad_backward(first.host.plan(), &second.args, &second.execution, nullptr),
                  PAGEGRAD_OK);
        gpu.synchronize();
        second.expect_backward();
    });
    expect_backward(first);
    other.join();
}

INSTANTIATE_TEST_SUITE_P(, GpuBackwardVariants,
                         testing::ValuesIn(with_both_orders(for_gpus(invariance_geometries()))),
                         name_of);

}  // namespace
}  // namespace pagegrad::test
