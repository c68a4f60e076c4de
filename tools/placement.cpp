#include "tools/placement.h"

namespace pagegrad {

namespace {

size_t bytes_of(const Tensor &tensor) {
    size_t bytes = tensor.dtype == PAGEGRAD_FLOAT32 ? 4 : 2;
    for (int dim = 0; dim < tensor.rank; dim++) {
        bytes *= tensor.shape[dim];
    }
    return bytes;
}

}  // namespace

Placement::Placement(pagegrad_device device) {
    if (device == PAGEGRAD_CUDA) {
        gpu.emplace();
    }
}

Execution Placement::execution() const {
    return gpu ? gpu->execution() : Execution();
}

Tensor Placement::input(const Tensor &host) {
    Tensor device = host;
    if (gpu && host.rank > 0) {
        memory.emplace_back(*gpu, host.data, bytes_of(host));
        device.data = memory.back().data();
    }
    return device;
}

Tensor Placement::output(const Tensor &host) {
    const Tensor device = input(host);
    outputs.emplace_back(host, device);
    return device;
}

void Placement::make_workspace(Execution &execution, size_t bytes) {
    if (gpu) {
        memory.emplace_back(*gpu, bytes);
        execution.workspace = memory.back().data();
        execution.workspace_size = bytes;
    }
}

void Placement::wait() const {
    if (gpu) {
        gpu->synchronize();
    }
}

void Placement::finish() const {
    for (const auto &[host, device] : outputs) {
        if (gpu && bytes_of(host) > 0) {
            gpu->check(
                gpu->driver().copy_to_host(host.data, device.data, bytes_of(host), gpu->stream()),
                "cuMemcpyDtoHAsync");
        }
    }
    wait();
}

}  // namespace pagegrad
