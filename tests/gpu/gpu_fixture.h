/// What tests need of a GPU. Without one they are skipped.
#pragma once

#include "device_call.h"

#include <gtest/gtest.h>

#include <optional>

namespace pagegrad::test {

/// A GPU that a kernel of this build fits, or the reason why tests have none.
class TestGpu {
public:
    static const TestGpu &instance();

    std::optional<Gpu> gpu;
    std::string missing;

private:
    TestGpu();
};

/// Whether the fake driver stands in for CUDA's.
bool is_fake();

/// Calls so far of a function of the fake driver.
int fake_calls(const char *name);

/// Skips its tests where there is no GPU.
template<typename Base>
class OnGpu : public Base {
protected:
    void SetUp() override {
        if (!TestGpu::instance().gpu) {
            GTEST_SKIP() << TestGpu::instance().missing;
        }
    }
    static const Gpu &gpu() {
        return *TestGpu::instance().gpu;
    }
};

using GpuTest = OnGpu<testing::Test>;

}  // namespace pagegrad::test
