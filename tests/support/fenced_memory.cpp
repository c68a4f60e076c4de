#include "fenced_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace pagegrad::test {

FencedMemory::FencedMemory(std::size_t bytes, Edge edge) {
    const std::size_t page = sysconf(_SC_PAGESIZE);
    const std::size_t inner = (bytes + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    void *pages = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED ||
        mprotect(static_cast<char *>(pages) + page, inner, PROT_READ | PROT_WRITE) != 0) {
        throw std::bad_alloc();
    }
    pages_ = static_cast<char *>(pages);
    data_ = pages_ + page + (edge == Edge::end ? inner - bytes : 0);
}

FencedMemory::~FencedMemory() {
    munmap(pages_, mapped_);
}

}  // namespace pagegrad::test
