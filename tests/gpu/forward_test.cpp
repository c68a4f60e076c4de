// The forward on a GPU against the double-precision reference, and what must not change it.
#include "gpu_cases.h"
#include "tests/support/invariance.h"

namespace pagegrad::test {
namespace {

class GpuForward : public OnGpu<testing::TestWithParam<GpuCase>> {
protected:
    static Results results_with(const Options &options) {
        DeviceCall call(gpu(), problem_of(GetParam()), GetParam().dtypes, options);
        EXPECT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
        EXPECT_STREQ(call.message(), "");
        call.expect_forward();
        return call.host.results();
    }
};

TEST_P(GpuForward, matches_reference) {
    results_with({});
}

INSTANTIATE_TEST_SUITE_P(, GpuForward, testing::ValuesIn(with_dtypes(gpu_geometries())), name_of);

INSTANTIATE_TEST_SUITE_P(float32_out, GpuForward,
                         testing::ValuesIn(with_float32_results(for_gpus(invariance_geometries()))),
                         name_of);

class GpuForwardVariants : public GpuForward {
protected:
    static void expect_same(const Results &got, const Results &expected) {
        EXPECT_EQ(bits_of(got.out), bits_of(expected.out));
        EXPECT_EQ(bits_of(got.lse), bits_of(expected.lse));
    }
};

TEST_P(GpuForwardVariants, without_lse) {
    Options without_lse;
    without_lse.with_lse = false;
    EXPECT_EQ(bits_of(results_with(without_lse).out), bits_of(results_with({}).out));
}

TEST_P(GpuForwardVariants, same_for_placement_and_unused_memory) {
    const Results expected = results_with({});
    Options other;
    other.placement = 2;
    expect_same(results_with(other), expected);
    other.unused_value = 0;
    other.unused_id = std::numeric_limits<int32_t>::max();
    expect_same(results_with(other), expected);
}

TEST_P(GpuForwardVariants, same_in_every_run) {
    const Results expected = results_with({});
    for (int run = 1; run < 20; run++) {
        expect_same(results_with({}), expected);
    }
}

INSTANTIATE_TEST_SUITE_P(, GpuForwardVariants,
                         testing::ValuesIn(with_dtypes(for_gpus(invariance_geometries()))),
                         name_of);

}  // namespace
}  // namespace pagegrad::test
