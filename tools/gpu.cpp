#include "tools/gpu.h"

#include "runtime/src/status.h"

#include <string>

namespace pagegrad {

namespace {

/// Runs code of the library, whose failures have a type of their own.
template<typename Body>
auto translate(const Body &body) {
    try {
        return body();
    } catch (const Failure &failure) {
        throw Error(failure.status, failure.message);
    }
}

}  // namespace

Gpu::Gpu(int device) : driver_(translate([] { return &cuda::driver(); })), device_(device) {
    cuda::Context context = nullptr;
    call<cuda::Context *, cuda::Device>("cuDevicePrimaryCtxRetain", &context, device);
    call<cuda::Context>("cuCtxSetCurrent", context);
    constexpr unsigned non_blocking = 1;
    call<cuda::Stream *, unsigned>("cuStreamCreate", &stream_, non_blocking);
}

Gpu::~Gpu() {
    symbol<cuda::Result(cuda::Stream)>("cuStreamDestroy_v2")(stream_);
    symbol<cuda::Result(cuda::Device)>("cuDevicePrimaryCtxRelease_v2")(device_);
}

void Gpu::synchronize() const {
    check(driver().synchronize_stream(stream_), "cuStreamSynchronize");
}

Execution Gpu::execution() const {
    Execution execution;
    execution.device = PAGEGRAD_CUDA;
    execution.stream = stream_;
    return execution;
}

void Gpu::check(cuda::Result result, const char *what) const {
    translate([&] { cuda::check(result, what); });
}

void *Gpu::find(const char *name) const {
    return translate([&] { return reinterpret_cast<void *>(driver().function<void()>(name)); });
}

DeviceMemory::DeviceMemory(const Gpu &gpu, size_t bytes) : gpu(&gpu) {
    cuda::Address address = nullptr;
    gpu.check(gpu.driver().allocate(&address, bytes > 0 ? bytes : 1), "cuMemAlloc");
    memory.reset(address, gpu.driver().free);
}

DeviceMemory::DeviceMemory(const Gpu &gpu, const void *from, size_t bytes)
    : DeviceMemory(gpu, bytes) {
    upload(from, bytes);
}

void DeviceMemory::upload(const void *from, size_t bytes) const {
    if (bytes > 0) {
        gpu->check(gpu->driver().copy_to_device(data(), from, bytes, gpu->stream()),
                   "cuMemcpyHtoDAsync");
        gpu->synchronize();
    }
}

void DeviceMemory::download(void *to, size_t bytes) const {
    if (bytes > 0) {
        gpu->check(gpu->driver().copy_to_host(to, data(), bytes, gpu->stream()),
                   "cuMemcpyDtoHAsync");
        gpu->synchronize();
    }
}

}  // namespace pagegrad
