#include "fake_driver.h"

#include "runtime/src/cuda/driver.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

using namespace pagegrad::cuda;
using namespace pagegrad::test;

namespace pagegrad::cuda {

struct ContextTag {
    Device device;
};
struct StreamTag {
    Context context;
    std::vector<std::function<void()>> *captured = nullptr;  ///< if a capture is going on
};
struct ModuleTag {
    const void *image;
};
struct FunctionTag {
    Module module;
    std::string entry;
};

}  // namespace pagegrad::cuda

namespace {

constexpr Result invalid_context = 201, capture_unsupported = 900;
constexpr int num_devices = 2;

struct Memory {
    size_t bytes;
    Device device;
};

ContextTag contexts[num_devices] = {{0}, {1}};
thread_local std::vector<Context> context_stack;
std::mutex mutex;                         ///< of all that follows
std::map<const char *, Memory> memories;  ///< by their first byte
std::map<std::string, int> calls;
std::deque<ModuleTag> modules;
std::deque<FunctionTag> functions;
FakeLauncher launcher = nullptr;

void count(const char *name) {
    const std::lock_guard<std::mutex> lock(mutex);
    calls[name]++;
}

Context current() {
    return context_stack.empty() ? nullptr : context_stack.back();
}

/// Runs work of a stream, or keeps it for the graph that captures it.
Result enqueue(Stream stream, std::function<void()> work) {
    if (stream && stream->captured) {
        stream->captured->push_back(std::move(work));
    } else {
        work();
    }
    return success;
}

bool is_capturing(Stream stream) {
    return stream && stream->captured;
}

}  // namespace

extern "C" {

void fake_set_launcher(FakeLauncher given) {
    launcher = given;
}
int fake_call_count(const char *name) {
    const std::lock_guard<std::mutex> lock(mutex);
    return calls[name];
}

Result cuInit(unsigned) {
    return success;
}
Result cuGetErrorName(Result result, const char **name) {
    static thread_local std::string text;
    text = "FAKE_ERROR_" + std::to_string(result);
    *name = text.c_str();
    return success;
}
Result cuGetErrorString(Result, const char **text) {
    *text = "of the fake driver";
    return success;
}
Result cuDeviceGetCount(int *count) {
    *count = num_devices;
    return success;
}
Result cuDeviceGetAttribute(int *value, DeviceAttribute attribute, Device) {
    *value = attribute == DeviceAttribute::compute_capability_major ? 9 : 0;
    return success;
}
Result cuDevicePrimaryCtxRetain(Context *context, Device device) {
    *context = &contexts[device];
    return success;
}
Result cuDevicePrimaryCtxRelease_v2(Device) {
    return success;
}
Result cuCtxSetCurrent(Context context) {
    context_stack.assign(context ? 1 : 0, context);
    return success;
}
Result cuCtxGetCurrent(Context *context) {
    *context = current();
    return success;
}
Result cuCtxGetDevice(Device *device) {
    if (!current()) {
        return invalid_context;
    }
    *device = current()->device;
    return success;
}
Result cuCtxGetId(Context context, unsigned long long *id) {
    *id = context->device + 1;
    return success;
}
Result cuCtxPushCurrent_v2(Context context) {
    context_stack.push_back(context);
    return success;
}
Result cuCtxPopCurrent_v2(Context *) {
    context_stack.pop_back();
    return success;
}

Result cuStreamCreate(Stream *stream, unsigned) {
    *stream = new StreamTag{current()};
    return success;
}
Result cuStreamDestroy_v2(Stream stream) {
    delete stream;
    return success;
}
Result cuStreamGetCtx(Stream stream, Context *context) {
    *context = stream->context;
    return success;
}
Result cuStreamSynchronize(Stream stream) {
    count("cuStreamSynchronize");
    return is_capturing(stream) ? capture_unsupported : success;
}
Result cuStreamIsCapturing(Stream stream, CaptureStatus *status) {
    *status = is_capturing(stream) ? CaptureStatus::active : CaptureStatus::none;
    return success;
}
Result cuStreamBeginCapture_v2(Stream stream, int) {
    stream->captured = new std::vector<std::function<void()>>;
    return success;
}
Result cuStreamEndCapture(Stream stream, void **graph) {
    *graph = std::exchange(stream->captured, nullptr);
    return success;
}
Result cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    *executable = new auto(*static_cast<std::vector<std::function<void()>> *>(graph));
    return success;
}
Result cuGraphLaunch(void *executable, Stream) {
    for (const auto &work : *static_cast<std::vector<std::function<void()>> *>(executable)) {
        work();
    }
    return success;
}
Result cuGraphExecDestroy(void *executable) {
    delete static_cast<std::vector<std::function<void()>> *>(executable);
    return success;
}
Result cuGraphDestroy(void *graph) {
    delete static_cast<std::vector<std::function<void()>> *>(graph);
    return success;
}

Result cuPointerGetAttribute(void *value, PointerAttribute attribute, const void *address) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto *byte = static_cast<const char *>(address);
    auto found = memories.upper_bound(byte);
    if (found == memories.begin()) {
        return invalid_value;
    }
    --found;
    if (byte >= found->first + found->second.bytes) {
        return invalid_value;
    }
    const unsigned type = static_cast<unsigned>(MemoryType::device);
    const void *from = attribute == PointerAttribute::memory_type
                           ? static_cast<const void *>(&type)
                           : static_cast<const void *>(&found->second.device);
    std::memcpy(value, from, sizeof(int));
    return success;
}
Result cuMemAlloc_v2(Address *address, size_t bytes) {
    count("cuMemAlloc");
    const std::lock_guard<std::mutex> lock(mutex);
    *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    memories[static_cast<char *>(*address)] = {bytes, current()->device};
    return success;
}
Result cuMemFree_v2(Address address) {
    count("cuMemFree");
    const std::lock_guard<std::mutex> lock(mutex);
    memories.erase(static_cast<char *>(address));
    std::free(address);
    return success;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream stream) {
    return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
Result cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, Stream stream) {
    return enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
Result cuMemsetD32Async(Address to, uint32_t value, size_t size, Stream stream) {
    return enqueue(stream, [=] { std::fill_n(static_cast<uint32_t *>(to), size, value); });
}
Result cuMemsetD2D32Async(Address to, size_t pitch, uint32_t value, size_t width, size_t height,
                          Stream stream) {
    return enqueue(stream, [=] {
        for (size_t row = 0; row < height; row++) {
            std::fill_n(static_cast<uint32_t *>(to) + row * pitch / sizeof(value), width, value);
        }
    });
}

Result cuModuleLoadData(Module *module, const void *image) {
    count("cuModuleLoadData");
    const std::lock_guard<std::mutex> lock(mutex);
    *module = &modules.emplace_back(ModuleTag{image});
    return success;
}
Result cuModuleGetFunction(Function *function, Module module, const char *name) {
    const std::lock_guard<std::mutex> lock(mutex);
    *function = &functions.emplace_back(FunctionTag{module, name});
    return success;
}
Result cuFuncSetAttribute(Function, FunctionAttribute, int) {
    count("cuFuncSetAttribute");
    return success;
}
Result cuLaunchKernel(Function function, unsigned blocks, unsigned, unsigned, unsigned, unsigned,
                      unsigned, unsigned, Stream stream, void **arguments, void **) {
    count("cuLaunchKernel");
    return enqueue(stream,
                   launcher(function->module->image, function->entry.c_str(), blocks, arguments));
}
}
