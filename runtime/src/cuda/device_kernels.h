/// The GPU kernels of this build: which there are, which to use, and how they are launched.
#pragma once

#include "driver.h"
#include "lowering/device_kernel.h"
#include "pagegrad/pagegrad.h"

#include <string>
#include <vector>

namespace pagegrad::cuda {

/// Larger ones have kernels of their own, with smaller tiles.
constexpr int narrow_head_dim = 128;

/// A row of the table that the build writes.
struct KernelEntry {
    const char *operation;
    pagegrad_dtype dtype;
    int head_dim;      ///< 0: any multiple of 8 that is as large as
    int max_head_dim;  ///< this, and above narrow_head_dim if this is. 0: head_dim does not matter
    const char *target;
    const DeviceKernel *kernel;

    bool fits(int size) const;
    /// Compute capability that the kernel is for, as a number: 90 for "sm90".
    int compute_capability() const;
};

/// In the order of the table: best first. Empty in a build without GPU kernels.
const std::vector<KernelEntry> &kernel_entries();

/// Whether a GPU of this machine can run the kernel.
bool available(const KernelEntry &entry);

/// The best kernel for an operation on a GPU. `name` (may be null) restricts the choice to kernels
/// whose name contains it between underscores.
const KernelEntry &choose_kernel(const std::string &operation, pagegrad_dtype dtype, int head_dim,
                                 Device device, const char *name = nullptr);

/// The kernel of another operation that goes with one, or null if that needs none.
const KernelEntry *companion(const KernelEntry &kernel, const std::string &operation);

/// Loads all kernels for a head_dim that the GPU of a context can run. Kernels are loaded once for
/// each context, here or at their first launch.
void load_kernels(int head_dim, const Place &place);

/// Arguments by name, of which the last value given counts. Kernels pick those that they use.
class Arguments {
public:
    Arguments &pointer(const std::string &name, const void *value) {
        return set(name, 8, reinterpret_cast<uintptr_t>(value));
    }
    Arguments &integer(const std::string &name, int64_t value);
    Arguments &number(const std::string &name, float value);

    struct Argument {
        std::string name;
        int bytes;
        uint64_t value;  ///< in the first bytes
    };
    /// Null if there is none of this name.
    const Argument *find(const char *name) const;

private:
    Arguments &set(const std::string &name, int bytes, uint64_t value);

    std::vector<Argument> list;
};

/// Starts a kernel for `items` of its items on the stream; nothing for none.
void launch(const KernelEntry &entry, const Place &place, int64_t items,
            const Arguments &arguments);

}  // namespace pagegrad::cuda
