/// A GPU for the programs of this project: its primary context, a stream and memory. Failures are
/// pagegrad::Error.
#pragma once

#include "pagegrad/pagegrad.hpp"
#include "runtime/src/cuda/driver.h"

#include <cstddef>
#include <memory>
#include <vector>

namespace pagegrad {

/// A device whose primary context is current in this thread, with a stream of its own.
class Gpu {
public:
    explicit Gpu(int device = 0);
    ~Gpu();
    Gpu(const Gpu &) = delete;

    cuda::Stream stream() const {
        return stream_;
    }
    const cuda::Driver &driver() const {
        return *driver_;
    }
    /// Waits for all work on the stream.
    void synchronize() const;
    /// Execution on the stream.
    Execution execution() const;

    /// Calls a driver function by its name in the library.
    template<typename... Parameters, typename... Arguments>
    void call(const char *name, Arguments... arguments) const {
        check(symbol<cuda::Result(Parameters...)>(name)(arguments...), name);
    }
    /// Throws unless a call of the driver succeeded.
    void check(cuda::Result result, const char *what) const;

private:
    template<typename F>
    F *symbol(const char *name) const {
        return reinterpret_cast<F *>(find(name));
    }
    void *find(const char *name) const;

    const cuda::Driver *driver_;
    cuda::Device device_;
    cuda::Stream stream_ = nullptr;
};

/// Memory of a GPU, freed with the object.
class DeviceMemory {
public:
    DeviceMemory() = default;
    DeviceMemory(const Gpu &gpu, size_t bytes);
    /// A copy of `bytes` bytes of the host.
    DeviceMemory(const Gpu &gpu, const void *from, size_t bytes);

    void *data() const {
        return memory.get();
    }
    void upload(const void *from, size_t bytes) const;
    void download(void *to, size_t bytes) const;

private:
    const Gpu *gpu = nullptr;
    std::shared_ptr<void> memory;
};

}  // namespace pagegrad
