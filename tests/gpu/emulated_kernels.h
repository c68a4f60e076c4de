/// What the GPU kernels compute, written from the tables of lowering/README.md, for the fake
/// driver.
#pragma once

#include <functional>

namespace pagegrad::test {

/// A launch of a kernel of the build, as FakeLauncher wants it.
std::function<void()> emulate_launch(const void *image, const char *entry, unsigned blocks,
                                     void **arguments);

}  // namespace pagegrad::test
