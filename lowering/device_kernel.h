/// A kernel for GPUs as the build embeds it: all that a launch needs, without Halide's runtime.
/// Arguments and layouts of each operation: lowering/README.md.
#pragma once

#include <cstddef>

namespace pagegrad {

/// A parameter of the entry function. Which ones a kernel has, and their order, follows from what
/// its code uses: arguments are passed by name.
struct DeviceParameter {
    const char *name;
    int bytes;  ///< 8: address in GPU memory; 4: int32 or float
};

struct DeviceKernel {
    const char *name;            ///< backward_bf16_d128_sm90
    const unsigned char *image;  ///< for cuModuleLoadData()
    size_t image_bytes;
    const char *entry;                  ///< for cuModuleGetFunction()
    int threads[3];                     ///< of a thread block
    int items_per_block;                ///< the grid is {ceil(items / items_per_block), 1, 1}
    int shared_bytes;                   ///< dynamic; opt in when over 48 KiB
    const DeviceParameter *parameters;  ///< in the order of cuLaunchKernel()
    int num_parameters;
};

}  // namespace pagegrad
