/// From a lowered Halide module with a GPU kernel inside to the C++ source of a DeviceKernel.
#pragma once

#include "Halide.h"

#include <array>
#include <string>
#include <vector>

namespace pagegrad {

/// A kernel as Halide has lowered it, and how Halide would launch it.
struct LoweredKernel {
    struct Parameter {
        std::string name;  ///< of an input buffer (its address), a scalar, or <buffer>.stride.<i>
        int bytes;
    };

    std::string ptx, entry;
    std::array<int, 3> threads;
    int items_per_block;
    int shared_bytes;
    std::vector<Parameter> parameters;  ///< in the order of the entry function
};

/// Finds the kernel of a module that has exactly one. Throws if its launch depends on more than the
/// sizes of the output.
LoweredKernel find_kernel(const Halide::Module &module);

/// C++ that defines `pagegrad_device_kernel_<name>` (device_kernel.h).
std::string device_kernel_source(const std::string &name, const LoweredKernel &kernel,
                                 const std::string &image);

}  // namespace pagegrad
