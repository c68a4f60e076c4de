#include "execute.h"

#include "status.h"

namespace pagegrad {

void KernelStatus::check() const {
    if (first != 0) {
        fail(PAGEGRAD_INTERNAL, "a kernel failed with Halide's error code ", first.load());
    }
}

}  // namespace pagegrad
