/// The CUDA driver, opened at run time and never linked: programs start on hosts without a GPU.
///
/// Types and functions are declared here and not taken from cuda.h, so that every build has this
/// code, with a CUDA toolkit or without. The driver's binary interface makes that safe: a function
/// never changes, its successor gets a name of its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pagegrad::cuda {

using Result = int;
using Device = int;
using Context = struct ContextTag *;
using Stream = struct StreamTag *;
using Module = struct ModuleTag *;
using Function = struct FunctionTag *;
/// An address in GPU memory. CUdeviceptr is an integer of this size, which is passed alike.
using Address = void *;

constexpr Result success = 0, out_of_memory = 2, invalid_value = 1, no_device = 100;

enum class DeviceAttribute { compute_capability_major = 75, compute_capability_minor = 76 };
enum class PointerAttribute { memory_type = 2, device_ordinal = 9 };
enum class FunctionAttribute { max_dynamic_shared_bytes = 8 };
enum class MemoryType : unsigned { host = 1, device = 2, array = 3, unified = 4 };
enum class CaptureStatus { none = 0, active = 1, invalidated = 2 };

/// The functions that pagegrad calls: F(name, name in the library, parameters).
#define PAGEGRAD_DRIVER_FUNCTIONS(F)                                                               \
    F(init, "cuInit", unsigned flags)                                                              \
    F(error_name, "cuGetErrorName", Result, const char **)                                         \
    F(error_string, "cuGetErrorString", Result, const char **)                                     \
    F(device_count, "cuDeviceGetCount", int *)                                                     \
    F(device_attribute, "cuDeviceGetAttribute", int *, DeviceAttribute, Device)                    \
    F(current_context, "cuCtxGetCurrent", Context *)                                               \
    F(current_device, "cuCtxGetDevice", Device *)                                                  \
    F(context_id, "cuCtxGetId", Context, unsigned long long *)                                     \
    F(push_context, "cuCtxPushCurrent_v2", Context)                                                \
    F(pop_context, "cuCtxPopCurrent_v2", Context *)                                                \
    F(stream_context, "cuStreamGetCtx", Stream, Context *)                                         \
    F(stream_capture_status, "cuStreamIsCapturing", Stream, CaptureStatus *)                       \
    F(synchronize_stream, "cuStreamSynchronize", Stream)                                           \
    F(pointer_attribute, "cuPointerGetAttribute", void *, PointerAttribute, const void *)          \
    F(allocate, "cuMemAlloc_v2", Address *, size_t bytes)                                          \
    F(free, "cuMemFree_v2", Address)                                                               \
    F(copy_to_device, "cuMemcpyHtoDAsync_v2", Address, const void *, size_t bytes, Stream)         \
    F(copy_to_host, "cuMemcpyDtoHAsync_v2", void *, const void *, size_t bytes, Stream)            \
    F(fill, "cuMemsetD32Async", Address, uint32_t value, size_t count, Stream)                     \
    F(fill_2d, "cuMemsetD2D32Async", Address, size_t pitch_bytes, uint32_t value, size_t width,    \
      size_t height, Stream)                                                                       \
    F(load_module, "cuModuleLoadData", Module *, const void *image)                                \
    F(module_function, "cuModuleGetFunction", Function *, Module, const char *name)                \
    F(set_function_attribute, "cuFuncSetAttribute", Function, FunctionAttribute, int)              \
    F(launch, "cuLaunchKernel", Function, unsigned grid_x, unsigned grid_y, unsigned grid_z,       \
      unsigned threads_x, unsigned threads_y, unsigned threads_z, unsigned shared_bytes, Stream,   \
      void **arguments, void **extra)

/// The driver library, ready to be called.
struct Driver {
#define PAGEGRAD_DRIVER_MEMBER(member, name, ...) Result (*member)(__VA_ARGS__);
    PAGEGRAD_DRIVER_FUNCTIONS(PAGEGRAD_DRIVER_MEMBER)
#undef PAGEGRAD_DRIVER_MEMBER

    /// A function by its name in the library, for programs that need more than the above.
    template<typename F>
    F *function(const char *name) const {
        return reinterpret_cast<F *>(symbol(name));
    }

    void *library;

private:
    void *symbol(const char *name) const;
};

/// Opens the driver at the first call: libcuda.so.1, or what the environment variable
/// PAGEGRAD_CUDA_LIBRARY names. Fails with PAGEGRAD_NO_DEVICE where there is no driver or no GPU.
const Driver &driver();

/// Whether the driver is there; never fails.
bool has_driver();

/// Fails with the driver's own words unless a call succeeded.
void check(Result result, const char *what);

/// Makes a context current for the life of the object.
class CurrentContext {
public:
    explicit CurrentContext(Context context);
    ~CurrentContext();
    CurrentContext(const CurrentContext &) = delete;

private:
    bool pushed = false;
};

/// Where a call runs: the context of the stream, or the current one for the default stream.
struct Place {
    Context context;
    unsigned long long context_id;  ///< never used again, unlike the address
    Device device;
    Stream stream;

    /// Fails with PAGEGRAD_NO_DEVICE where no context is current.
    static Place of(void *stream);
};

/// Compute capability as a number: 90 for 9.0.
int compute_capability(Device device);

}  // namespace pagegrad::cuda
