#include "workspace.h"

#include <cstdlib>

namespace pagegrad {

void *KernelArena::allocate(size_t bytes) {
    const size_t need = alignment + (bytes + alignment - 1) / alignment * alignment;
    if (size - top < need) {
        return std::aligned_alloc(alignment, need);  // kernels do not check what they get
    }
    new (buffer + top) Header{last, true};
    last = top;
    top += need;
    return buffer + last + alignment;
}

void KernelArena::release(void *pointer) {
    if (pointer < buffer || pointer >= buffer + size) {
        std::free(pointer);
        return;
    }
    reinterpret_cast<Header *>(static_cast<char *>(pointer) - alignment)->in_use = false;
    while (top > 0) {
        const Header *header = reinterpret_cast<Header *>(buffer + last);
        if (header->in_use) {
            return;
        }
        top = last;
        last = header->previous;
    }
}

}  // namespace pagegrad

// What kernels call for memory, under the names that cmake/kernels.cmake gives the calls. Kernels
// are compiled with a user context, which is the arena.
extern "C" {

void *pagegrad_halide_malloc(void *user_context, size_t bytes) {
    return static_cast<pagegrad::KernelArena *>(user_context)->allocate(bytes);
}

void pagegrad_halide_free(void *user_context, void *pointer) {
    static_cast<pagegrad::KernelArena *>(user_context)->release(pointer);
}
}
