/// A CUDA driver for hosts without a GPU: its devices are host memory, its streams run at once.
///
/// A shared library that PAGEGRAD_CUDA_LIBRARY names instead of libcuda. It knows what a kernel
/// does only from the launcher that a test sets.
#pragma once

#include <functional>

namespace pagegrad::test {

/// Makes what a launch does from the image and entry function of its kernel, the thread blocks and
/// the arguments, which it copies.
using FakeLauncher = std::function<void()> (*)(const void *image, const char *entry,
                                               unsigned blocks, void **arguments);

extern "C" {
/// Sets what runs kernels.
using FakeSetLauncher = void(FakeLauncher);
/// Calls so far of a function of the driver.
using FakeCallCount = int(const char *name);
}
constexpr char fake_set_launcher[] = "fake_set_launcher", fake_call_count[] = "fake_call_count";

}  // namespace pagegrad::test
