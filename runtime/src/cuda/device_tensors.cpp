#include "device_tensors.h"

#include "../status.h"
#include "../tensors.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace pagegrad::cuda {

namespace {

/// Extents of a tensor in words of 32 bits, from the smallest stride to the largest; those that lie
/// without gaps as one.
std::vector<Extent> merged_extents(const pagegrad_tensor &tensor) {
    const int64_t words = word_bytes / element_size(tensor.dtype);
    std::vector<Extent> extents;
    for (int dim = 0; dim + 1 < tensor.rank; dim++) {
        if (tensor.shape[dim] > 1) {
            extents.push_back({tensor.shape[dim], tensor.stride[dim] / words});
        }
    }
    extents.push_back({tensor.shape[tensor.rank - 1] / words, 1});
    std::sort(extents.begin(), extents.end(),
              [](const Extent &a, const Extent &b) { return a.stride < b.stride; });
    std::vector<Extent> merged = {{1, 1}};
    for (const Extent &extent : extents) {
        Extent &last = merged.back();
        if (extent.stride == last.size * last.stride) {
            last.size *= extent.size;
        } else {
            merged.push_back(extent);
        }
    }
    return merged;
}

/// Fills the `levels` innermost extents.
void fill(uint32_t *data, const std::vector<Extent> &extents, size_t levels, uint32_t value,
          Stream stream) {
    if (levels == 1) {
        check(driver().fill(data, value, extents[0].size, stream), "cuMemsetD32Async");
    } else if (levels == 2) {
        check(driver().fill_2d(data, extents[1].stride * word_bytes, value, extents[0].size,
                               extents[1].size, stream),
              "cuMemsetD2D32Async");
    } else {
        const Extent &outer = extents[levels - 1];
        for (int64_t i = 0; i < outer.size; i++) {
            fill(data + i * outer.stride, extents, levels - 1, value, stream);
        }
    }
}

}  // namespace

int neighbour_bytes(const pagegrad_tensor &tensor) {
    return tensor.dtype == PAGEGRAD_FLOAT32 ? pair_bytes : word_bytes;
}

void check_device_memory(const std::string &name, const void *data, const Place &place) {
    unsigned type = 0;
    // The driver knows nothing of plain host memory and refuses its address.
    const bool known =
        driver().pointer_attribute(&type, PointerAttribute::memory_type, data) == success;
    require(known && static_cast<MemoryType>(type) == MemoryType::device, name, " is ", data,
            ", host memory, expected memory of CUDA device ", place.device);
    int ordinal = -1;
    check(driver().pointer_attribute(&ordinal, PointerAttribute::device_ordinal, data),
          "cuPointerGetAttribute");
    require(ordinal == place.device, name, " is ", data, ", memory of CUDA device ", ordinal,
            ", expected that of device ", place.device);
}

void check_device_tensor(const std::string &name, const pagegrad_tensor &tensor, int unit_bytes,
                         const Place &place) {
    if (!present(tensor) || empty(tensor)) {
        return;
    }
    check_device_memory(name + ".data", tensor.data, place);
    if (reinterpret_cast<uintptr_t>(tensor.data) % unit_bytes != 0) {
        fail(PAGEGRAD_UNSUPPORTED, name, ".data is ", tensor.data,
             ", expected an address aligned to ", unit_bytes, " bytes on GPUs");
    }
    const int64_t unit = unit_bytes / element_size(tensor.dtype);
    int64_t last = 0;
    for (int dim = 0; dim + 1 < tensor.rank; dim++) {
        if (tensor.shape[dim] > 1) {
            if (tensor.stride[dim] % unit != 0) {
                fail(PAGEGRAD_UNSUPPORTED, name, ".stride[", dim, "] is ", tensor.stride[dim],
                     ", expected a multiple of ", unit, " on GPUs");
            }
            last += (tensor.shape[dim] - 1) * tensor.stride[dim];
        }
    }
    constexpr int64_t limit = std::numeric_limits<int32_t>::max();
    if (last / unit > limit - tensor.shape[tensor.rank - 1]) {
        fail(PAGEGRAD_UNSUPPORTED, name, " spans ", last / unit, " units of ", unit_bytes,
             " bytes, expected less than ", limit, " on GPUs");
    }
}

void add_tensor(Arguments &arguments, const std::string &name, const pagegrad_tensor &tensor,
                int unit_bytes) {
    const int64_t unit = unit_bytes / element_size(tensor.dtype);
    arguments.pointer(name, tensor.data);
    for (int i = 0; i < PAGEGRAD_MAX_RANK; i++) {
        const int dim = tensor.rank - 1 - i;
        arguments.integer(name + ".stride." + std::to_string(i),
                          dim < 0 ? 0 : tensor.stride[dim] / unit);
    }
}

void add_output(Arguments &arguments, const std::string &name, const pagegrad_tensor &tensor) {
    add_tensor(arguments, name, tensor, word_bytes);
    add_tensor(arguments, name + "_f32", tensor, pair_bytes);
    arguments.integer(name + "_is_f32", tensor.dtype == PAGEGRAD_FLOAT32);
}

void fill(const pagegrad_tensor &tensor, uint32_t value, Stream stream) {
    if (!empty(tensor)) {
        const std::vector<Extent> extents = merged_extents(tensor);
        fill(static_cast<uint32_t *>(tensor.data), extents, extents.size(), value, stream);
    }
}

}  // namespace pagegrad::cuda
