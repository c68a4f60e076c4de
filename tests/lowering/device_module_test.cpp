/// What is found of a kernel in a lowered module.
#include "lowering/device_module.h"
#include "lowering/passes.h"

#include "Halide.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>

namespace pagegrad {
namespace {

using namespace Halide;

const Target target("x86-64-linux-cuda-cuda_capability_80-no_asserts-no_bounds_query-no_runtime");

/// out(x, y) = scale * in(x, y), in thread blocks of 8 rows.
class Scaled {
public:
    Scaled() {
        in.dim(0).set_bounds(0, 64);
        in.dim(1).set_min(0);
        out(x, y) = in(x, y) * scale;
        out.output_buffer().dim(0).set_bounds(0, 64);
        out.output_buffer().dim(1).set_min(0);
    }

    LoweredKernel lower() {
        Pipeline pipeline(out);
        add_plain_passes(pipeline);
        return find_kernel(pipeline.compile_to_module({in, scale}, "scaled", target));
    }

    ImageParam in{Float(32), 2, "in"};
    Param<float> scale{"scale"};
    Var x{"x"}, y{"y"}, block{"block"};
    Func out{"out"};
};

TEST(DeviceModule, FindsHowToLaunch) {
    Scaled scaled;
    scaled.out.split(scaled.y, scaled.block, scaled.y, 8, TailStrategy::GuardWithIf)
        .gpu_blocks(scaled.block)
        .gpu_threads(scaled.x, scaled.y);
    const LoweredKernel kernel = scaled.lower();
    EXPECT_EQ(kernel.threads, (std::array<int, 3>{64, 8, 1}));
    EXPECT_EQ(kernel.items_per_block, 8);
    EXPECT_NE(kernel.ptx.find(".entry " + kernel.entry), std::string::npos);
    const auto bytes_of = [&](const std::string &name) {
        for (const auto &parameter : kernel.parameters) {
            if (parameter.name == name) {
                return parameter.bytes;
            }
        }
        return 0;
    };
    EXPECT_EQ(bytes_of("in"), 8);
    EXPECT_EQ(bytes_of("out"), 8);
    EXPECT_EQ(bytes_of("scale"), 4);
    EXPECT_EQ(bytes_of("in.stride.1"), 4);
}

TEST(DeviceModule, RefusesModulesWithoutOneKernel) {
    Scaled on_cpu;
    EXPECT_THROW(on_cpu.lower(), std::runtime_error);
}

TEST(DeviceModule, RefusesGridsThatItCannotDescribe) {
    Scaled scaled;
    Var block_x("block_x");
    scaled.out.gpu_tile(scaled.x, scaled.y, block_x, scaled.block, scaled.x, scaled.y, 8, 8);
    EXPECT_THROW(scaled.lower(), std::runtime_error);
}

TEST(DeviceModule, WritesSource) {
    const LoweredKernel kernel{"", "entry", {32, 8, 1}, 4, 2048, {{"q", 8}, {"q.stride.1", 4}}};
    const std::string source = device_kernel_source("f_sm90", kernel, std::string("\x7f\xff", 2));
    for (const char *part : {"pagegrad_device_kernel_f_sm90 = {", "127,255,", "{\"q.stride.1\", 4}",
                             "\"entry\", {32, 8, 1}, 4, 2048, parameters, 2}"}) {
        EXPECT_NE(source.find(part), std::string::npos) << part << " is not in\n" << source;
    }
}

}  // namespace
}  // namespace pagegrad
