/// Tensors of a call in the memory of the device that it runs on.
#pragma once

#include "tools/gpu.h"

#include <optional>
#include <utility>
#include <vector>

namespace pagegrad {

/// Contiguous tensors of the host as they are, for calls on the CPU, or copies on a GPU.
class Placement {
public:
    explicit Placement(pagegrad_device device);

    /// How to execute there.
    Execution execution() const;
    Tensor input(const Tensor &host);
    /// A tensor that finish() copies back.
    Tensor output(const Tensor &host);
    /// Gives a call the workspace that it needs; on the CPU it allocates its own.
    void make_workspace(Execution &execution, size_t bytes);
    /// Waits for what has been started.
    void wait() const;
    /// Copies the outputs back.
    void finish() const;

private:
    std::optional<Gpu> gpu;
    std::vector<DeviceMemory> memory;
    std::vector<std::pair<Tensor, Tensor>> outputs;  ///< host, device
};

}  // namespace pagegrad
