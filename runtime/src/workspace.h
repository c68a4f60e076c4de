/// Memory of a call: carved from one buffer, whose size is found by carving nothing.
#pragma once

#include "status.h"

#include <cstddef>
#include <cstdint>
#include <new>

namespace pagegrad {

/// a * b, or a failure: no memory can hold what the product counts.
inline int64_t counted(int64_t a, int64_t b) {
    int64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product) || product > int64_t{1} << 60) {
        fail(PAGEGRAD_OUT_OF_MEMORY, "the call needs a workspace of more than 2^60 bytes");
    }
    return product;
}

/// Hands out 64-byte aligned pieces of a buffer. With no buffer it only counts.
class Carver {
public:
    explicit Carver(void *buffer) : buffer(static_cast<char *>(buffer)) {
    }
    template<typename T>
    T *take(int64_t count) {
        T *piece = buffer ? reinterpret_cast<T *>(buffer + used) : nullptr;
        used = counted(used / 64 + (counted(count, sizeof(T)) + 63) / 64, 64);
        return piece;
    }
    size_t size() const {
        return used;
    }

private:
    char *buffer;
    int64_t used = 0;
};

/// Memory for what a kernel allocates during one call: a stack whose top shrinks as soon as the
/// pieces on it are free. Kernels reach it through their user context. The buffer is sized to be
/// enough; what does not fit comes from the heap.
class KernelArena {
public:
    KernelArena() = default;
    KernelArena(char *buffer, size_t size) : buffer(buffer), size(size) {
    }
    void *allocate(size_t bytes);
    void release(void *pointer);

private:
    struct Header {
        size_t previous;
        bool in_use;
    };
    static constexpr size_t alignment = 64;
    char *buffer = nullptr;
    size_t size = 0;
    size_t top = 0;   ///< first free byte
    size_t last = 0;  ///< header of the topmost piece; meaningful if top > 0
};

}  // namespace pagegrad
