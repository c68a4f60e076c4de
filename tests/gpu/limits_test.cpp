// Numbers at the edge of what a GPU counts or addresses.
#include "gpu_fixture.h"
#include "half_problem.h"

#include <vector>

namespace pagegrad::test {
namespace {

class GpuLimits : public GpuTest {};

/// Grids have at most 65535 blocks in their second and third dimension.
TEST_F(GpuLimits, more_sequences_and_heads_than_16_bits_count) {
    const int count = 9000;
    Geometry geometry(std::vector<int32_t>(count, 1), std::vector<int32_t>(count, 2));
    geometry.dim(8).heads(8, 8).block(2).blocks.resize(count);
    for (int b = 0; b < count; b++) {
        geometry.blocks[b] = {b % 500};
    }
    const Problem problem = make_half_problem(geometry, PAGEGRAD_BFLOAT16);
    for (const bool ordered : {true, false}) {
        DeviceCall call(gpu(), problem, PAGEGRAD_BFLOAT16, {}, ordered);
        ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
        call.expect_backward();
    }
    DeviceCall call(gpu(), problem, PAGEGRAD_BFLOAT16);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    call.expect_forward();
}

/// Kernels address tensors with 32 bits, in units of a vector.
TEST_F(GpuLimits, tensors_beyond_32_bits_are_refused) {
    const Problem problem =
        make_half_problem(Geometry({17, 5}, {33, 5}).dim(64).heads(2, 1), PAGEGRAD_BFLOAT16);
    DeviceCall call(gpu(), problem, PAGEGRAD_BFLOAT16);
    call.args.q.stride[0] = call.forward_args.q.stride[0] = INT32_MAX - 7;
    EXPECT_EQ(call.start(), PAGEGRAD_UNSUPPORTED);
    EXPECT_NE(std::string(call.message()).find("q spans"), std::string::npos) << call.message();
    std::size_t bytes = 0;
    EXPECT_EQ(pagegrad_forward_workspace(call.host.plan(), &call.forward_args, &call.execution,
                                         &bytes, nullptr),
              PAGEGRAD_UNSUPPORTED);
}

}  // namespace
}  // namespace pagegrad::test
