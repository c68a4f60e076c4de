// Random problems on a GPU, valid ones against the double-precision reference.
#include "gpu_cases.h"
#include "half_problem.h"
#include "tests/properties/breakage.h"
#include "tests/properties/random_case.h"

#include <algorithm>

namespace pagegrad::test {
namespace {

/// The case with what GPU kernels take.
RandomCase for_gpus(RandomCase test) {
    Geometry &geometry = test.geometry;
    geometry.head_dim = std::min((geometry.head_dim + 7) / 8 * 8, 128);
    if (geometry.layout == Layout::Shuffled) {
        geometry.layout = Layout::Padded;
    }
    geometry.dtypes = {};  // half_problem rounds
    geometry.value_head_dim = 0;
    geometry.softcap = 0;
    geometry.with_slopes = geometry.with_sinks = false;
    if (is_fake()) {
        // The emulated kernels round at each pair that they add to what a pool held before.
        test.options.pool_mode = PAGEGRAD_POOL_OVERWRITE;
    }
    return test;
}

class GpuRandomProblems : public GpuTest {};

TEST_F(GpuRandomProblems, match_the_reference) {
    const Seeds range = seeds(100);
    for (uint64_t seed = range.begin; seed < range.end && !HasFailure(); seed++) {
        const RandomCase test = for_gpus(random_case(seed));
        const pagegrad_dtype dtype = seed % 2 == 0 ? PAGEGRAD_BFLOAT16 : PAGEGRAD_FLOAT16;
        const bool ordered = seed % 3 != 0;
        SCOPED_TRACE(testing::Message()
                     << "seed " << seed << ", " << (dtype == PAGEGRAD_BFLOAT16 ? "bf16" : "f16")
                     << (ordered ? "" : ", unordered") << ", " << test);
        const Problem problem = make_half_problem(test.geometry, dtype);
        DeviceCall forward(gpu(), problem, dtype, test.options, ordered);
        ASSERT_EQ(forward.forward(), PAGEGRAD_OK) << forward.message();
        forward.expect_forward();
        DeviceCall backward(gpu(), problem, dtype, test.options, ordered);
        ASSERT_EQ(backward.backward(), PAGEGRAD_OK) << backward.message();
        backward.expect_backward();
    }
}

/// Descriptors are checked before anything of the GPU is: what they point to here is host memory.
TEST_F(GpuRandomProblems, are_refused_as_on_cpus) {
    const Execution execution = gpu().execution();
    const Seeds range = seeds(300);
    for (uint64_t seed = range.begin; seed < range.end && !HasFailure(); seed++) {
        expect_refusals(seed, &execution);
    }
}

}  // namespace
}  // namespace pagegrad::test
