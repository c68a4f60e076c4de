/// Execution of validated calls on the CPU.
#pragma once

#include "kernels.h"
#include "parallel.h"
#include "plan.h"
#include "tensors.h"
#include "workspace.h"

#include <atomic>

namespace pagegrad {

/// First failure of the kernels of a call, from any thread.
class KernelStatus {
public:
    void record(int code) {
        if (code != 0) {
            int expected = 0;
            first.compare_exchange_strong(expected, code);
        }
    }
    /// Throws Failure if any kernel failed.
    void check() const;

private:
    std::atomic<int> first{0};
};

/// Bytes that a kernel on packed tiles may allocate in its arena: indices and bounds.
constexpr int64_t arena_bytes = 16 << 10;

/// A forward or backward call: `workspace_size` tells what `execute` needs.
struct ForwardCall {
    const pagegrad_plan &plan;
    const pagegrad_forward_args &args;
    Threads threads;
    pagegrad_dtype dtype;
    const Kernel &kernel;

    static ForwardCall check(const pagegrad_plan &plan, const pagegrad_forward_args &args,
                             const pagegrad_execution &execution);
    size_t workspace_size() const;
    void execute(void *workspace) const;
};

struct BackwardCall {
    const pagegrad_plan &plan;
    const pagegrad_backward_args &args;
    Threads threads;
    pagegrad_dtype dtype;
    const Kernel &kernel;

    static BackwardCall check(const pagegrad_plan &plan, const pagegrad_backward_args &args,
                              const pagegrad_execution &execution);
    size_t workspace_size() const;
    void execute(void *workspace) const;
};

/// Checks what every device asks of the arguments.
QueryLayout check_forward(const pagegrad_plan &plan, const pagegrad_forward_args &args);
QueryLayout check_backward(const pagegrad_plan &plan, const pagegrad_backward_args &args);

void gather(const pagegrad_plan &plan, const pagegrad_tensor &pool, const pagegrad_tensor &dense,
            const pagegrad_execution &execution);
void scatter_add(const pagegrad_plan &plan, const pagegrad_tensor &dense,
                 const pagegrad_tensor &pool, const pagegrad_execution &execution);

}  // namespace pagegrad
