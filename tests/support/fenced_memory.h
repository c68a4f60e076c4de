/// Memory with pages before and behind it that nobody may touch.
#pragma once

#include <cstddef>

namespace pagegrad::test {

/// Kernels are not instrumented for sanitizers: the processor itself notices what they read beyond
/// a tensor, if it is at the edge of a page.
class FencedMemory {
public:
    enum class Edge { begin, end };

    /// `bytes` that begin right after a fence, or end right before one.
    FencedMemory(std::size_t bytes, Edge edge);
    FencedMemory(const FencedMemory &) = delete;
    FencedMemory &operator=(const FencedMemory &) = delete;
    ~FencedMemory();

    void *data() {
        return data_;
    }

private:
    std::size_t mapped_;
    char *pages_, *data_;
};

}  // namespace pagegrad::test
