/// Arguments of kernels: tensors and plain arrays as Halide buffers.
#pragma once

#include "HalideRuntime.h"

#include <cstdint>
#include <initializer_list>

namespace pagegrad {

/// One dimension, innermost first.
struct Extent {
    int64_t size, stride;
};

/// A Halide buffer over memory of someone else.
class KernelBuffer {
public:
    template<typename T>
    KernelBuffer(const T *data, std::initializer_list<Extent> extents)
        : KernelBuffer(data, halide_type_of<T>(), extents) {
    }
    KernelBuffer(const void *data, halide_type_t type, std::initializer_list<Extent> extents)
        : buffer{} {
        buffer.host = static_cast<uint8_t *>(const_cast<void *>(data));
        buffer.type = type;
        buffer.dim = dims;
        for (const Extent &extent : extents) {
            dims[buffer.dimensions++] = halide_dimension_t(0, static_cast<int32_t>(extent.size),
                                                           static_cast<int32_t>(extent.stride));
        }
    }
    KernelBuffer(const KernelBuffer &other) {
        *this = other;
    }
    KernelBuffer &operator=(const KernelBuffer &other) {
        buffer = other.buffer;
        for (int i = 0; i < buffer.dimensions; i++) {
            dims[i] = other.dims[i];
        }
        buffer.dim = dims;
        return *this;
    }
    /// Kernels take pointers to what they do not change.
    operator halide_buffer_t *() const {
        return const_cast<halide_buffer_t *>(&buffer);
    }

private:
    halide_buffer_t buffer;
    halide_dimension_t dims[4];
};

}  // namespace pagegrad
