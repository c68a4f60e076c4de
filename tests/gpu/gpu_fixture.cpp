#include "gpu_fixture.h"

#include "emulated_kernels.h"
#include "fake_driver.h"

#include <dlfcn.h>

namespace pagegrad::test {

namespace {

/// A function of the fake driver; null in another.
template<typename F>
F *fake_function(const char *name) {
    return cuda::has_driver() ? reinterpret_cast<F *>(dlsym(cuda::driver().library, name))
                              : nullptr;
}

}  // namespace

bool is_fake() {
    return fake_function<FakeSetLauncher>(fake_set_launcher) != nullptr;
}

int fake_calls(const char *name) {
    return fake_function<FakeCallCount>(fake_call_count)(name);
}

const TestGpu &TestGpu::instance() {
    static const TestGpu test;
    return test;
}

TestGpu::TestGpu() {
    try {
        gpu.emplace();
    } catch (const Error &error) {
        missing = error.what();
        return;
    }
    if (is_fake()) {
        fake_function<FakeSetLauncher>(fake_set_launcher)(emulate_launch);
    }
    const Problem problem = make_problem(Geometry({1}, {1}).dim(64));
    const PagedCall call(problem);
    const Execution execution = gpu->execution();
    const char *name = nullptr;
    pagegrad_error error{};
    if (pagegrad_choose_kernel(call.plan(), "backward", PAGEGRAD_BFLOAT16, &execution, &name,
                               &error) != PAGEGRAD_OK) {
        missing = error.message;
        gpu.reset();
    }
}

}  // namespace pagegrad::test
