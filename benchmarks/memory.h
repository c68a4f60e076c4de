/// Memory with the alignment that the library asks of a workspace.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace pagegrad::bench {

/// Owned bytes, 64-byte aligned, set to zero so that their pages exist.
class Memory {
public:
    explicit Memory(size_t bytes = 0) : owner(allocate(bytes), std::free) {
    }
    void *data() const {
        return owner.get();
    }

private:
    static void *allocate(size_t bytes) {
        constexpr size_t alignment = 64;
        const size_t rounded = (bytes + alignment) / alignment * alignment;  // never 0
        void *memory = std::aligned_alloc(alignment, rounded);
        if (!memory) {
            throw std::bad_alloc();
        }
        return std::memset(memory, 0, rounded);
    }

    std::unique_ptr<void, decltype(&std::free)> owner;
};

}  // namespace pagegrad::bench
