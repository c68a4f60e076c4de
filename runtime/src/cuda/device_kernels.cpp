#include "device_kernels.h"

#include "../kernels.h"
#include "../status.h"
#include "../tensors.h"
#include "device_kernel_headers.inc"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

namespace pagegrad::cuda {

namespace {

// As the table names them.
[[maybe_unused]] constexpr pagegrad_dtype bf16 = PAGEGRAD_BFLOAT16, f16 = PAGEGRAD_FLOAT16;

constexpr int shared_bytes_without_asking = 48 << 10;

const KernelEntry *best(const std::string &operation, pagegrad_dtype dtype, int head_dim,
                        int capability, const char *name) {
    for (const KernelEntry &entry : kernel_entries()) {
        if (entry.operation == operation && entry.dtype == dtype && entry.fits(head_dim) &&
            entry.compute_capability() == capability &&
            (!name || has_part(entry.kernel->name, name))) {
            return &entry;
        }
    }
    return nullptr;
}

/// Functions of the kernels in all contexts. Modules stay loaded as long as their context lives.
class LoadedKernels {
public:
    static LoadedKernels &instance() {
        static LoadedKernels loaded;
        return loaded;
    }

    Function function(const DeviceKernel &kernel, const Place &place) {
        const std::lock_guard<std::mutex> lock(mutex);
        Function &function = functions[{place.context_id, &kernel}];
        if (!function) {
            function = load(kernel);
        }
        return function;
    }

private:
    static Function load(const DeviceKernel &kernel) {
        Module module = nullptr;
        Function function = nullptr;
        check(driver().load_module(&module, kernel.image), kernel.name);
        check(driver().module_function(&function, module, kernel.entry), kernel.name);
        if (kernel.shared_bytes > shared_bytes_without_asking) {
            check(driver().set_function_attribute(
                      function, FunctionAttribute::max_dynamic_shared_bytes, kernel.shared_bytes),
                  kernel.name);
        }
        return function;
    }

    std::mutex mutex;
    std::map<std::pair<uint64_t, const DeviceKernel *>, Function> functions;
};

}  // namespace

bool KernelEntry::fits(int size) const {
    if (max_head_dim == 0) {
        return true;
    }
    const bool same_tiles = (size > narrow_head_dim) == (max_head_dim > narrow_head_dim);
    return head_dim == 0 ? size <= max_head_dim && same_tiles && size % 8 == 0 : size == head_dim;
}

int KernelEntry::compute_capability() const {
    return std::atoi(target + std::strlen("sm"));
}

const std::vector<KernelEntry> &kernel_entries() {
    static const std::vector<KernelEntry> entries = {
#define PAGEGRAD_DEVICE_KERNEL(operation, dtype, head_dim, max_head_dim, target, name, symbol)     \
    {#operation, dtype, head_dim, max_head_dim, #target, &(symbol)},
#include "device_kernel_table.inc"
#undef PAGEGRAD_DEVICE_KERNEL
    };
    return entries;
}

bool available(const KernelEntry &entry) {
    int devices = 0;
    if (!has_driver() || driver().device_count(&devices) != success) {
        return false;
    }
    for (Device device = 0; device < devices; device++) {
        if (compute_capability(device) == entry.compute_capability()) {
            return true;
        }
    }
    return false;
}

const KernelEntry &choose_kernel(const std::string &operation, pagegrad_dtype dtype, int head_dim,
                                 Device device, const char *name) {
    const int capability = compute_capability(device);
    const KernelEntry *entry = best(operation, dtype, head_dim, capability, name);
    if (!entry && name && best(operation, dtype, head_dim, capability, nullptr)) {
        fail(PAGEGRAD_INVALID_ARGUMENT, "execution.kernel is \"", name,
             "\", expected the name of a ", operation, " kernel that fits head_dim ", head_dim,
             " and that the GPU can run");
    }
    if (!entry) {
        fail(PAGEGRAD_UNSUPPORTED, "no ", operation, " kernel of this build for ",
             dtype_name(dtype), ", head_dim ", head_dim, " and GPUs of compute capability ",
             capability / 10, ".", capability % 10);
    }
    return *entry;
}

const KernelEntry *companion(const KernelEntry &kernel, const std::string &operation) {
    for (const KernelEntry &entry : kernel_entries()) {
        if (entry.operation == operation && entry.dtype == kernel.dtype &&
            entry.head_dim == kernel.head_dim && entry.max_head_dim == kernel.max_head_dim &&
            entry.compute_capability() == kernel.compute_capability()) {
            return &entry;
        }
    }
    return nullptr;
}

void load_kernels(int head_dim, const Place &place) {
    const int capability = compute_capability(place.device);
    for (const KernelEntry &entry : kernel_entries()) {
        if (entry.fits(head_dim) && entry.compute_capability() == capability) {
            LoadedKernels::instance().function(*entry.kernel, place);
        }
    }
}

Arguments &Arguments::integer(const std::string &name, int64_t value) {
    if (value < std::numeric_limits<int32_t>::min() ||
        value > std::numeric_limits<int32_t>::max()) {
        fail(PAGEGRAD_UNSUPPORTED, name, " is ", value, ", expected 32 bits on GPUs");
    }
    return set(name, 4, static_cast<uint32_t>(value));
}

Arguments &Arguments::number(const std::string &name, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return set(name, 4, bits);
}

Arguments &Arguments::set(const std::string &name, int bytes, uint64_t value) {
    const auto found = std::find_if(list.begin(), list.end(),
                                    [&](const Argument &item) { return item.name == name; });
    if (found == list.end()) {
        list.push_back({name, bytes, value});
    } else {
        *found = {name, bytes, value};
    }
    return *this;
}

const Arguments::Argument *Arguments::find(const char *name) const {
    const auto found = std::find_if(list.begin(), list.end(),
                                    [name](const Argument &item) { return item.name == name; });
    return found == list.end() ? nullptr : &*found;
}

void launch(const KernelEntry &entry, const Place &place, int64_t items,
            const Arguments &arguments) {
    if (items == 0) {
        return;
    }
    const DeviceKernel &kernel = *entry.kernel;
    std::vector<void *> values;
    for (int i = 0; i < kernel.num_parameters; i++) {
        const DeviceParameter &parameter = kernel.parameters[i];
        const Arguments::Argument *argument = arguments.find(parameter.name);
        if (!argument || argument->bytes != parameter.bytes) {
            fail(PAGEGRAD_INTERNAL, kernel.name, " wants ", parameter.name, " of ", parameter.bytes,
                 " bytes, which its caller does not have");
        }
        values.push_back(const_cast<uint64_t *>(&argument->value));
    }
    const int64_t blocks = (items + kernel.items_per_block - 1) / kernel.items_per_block;
    check(driver().launch(LoadedKernels::instance().function(kernel, place),
                          static_cast<unsigned>(blocks), 1, 1, kernel.threads[0], kernel.threads[1],
                          kernel.threads[2], kernel.shared_bytes, place.stream, values.data(),
                          nullptr),
          kernel.name);
}

}  // namespace pagegrad::cuda
