/// Execution on GPUs.
#pragma once

#include "pagegrad/pagegrad.h"

#include <cstddef>

namespace pagegrad::cuda {

/// Bytes of GPU memory that a call needs as its workspace.
size_t forward_workspace(const pagegrad_plan &plan, const pagegrad_forward_args &args,
                         const pagegrad_execution &execution);
size_t backward_workspace(const pagegrad_plan &plan, const pagegrad_backward_args &args,
                          const pagegrad_execution &execution);

/// Puts a call on the caller's stream. Allocates nothing and waits for nothing once the plan is
/// prepared.
void forward(const pagegrad_plan &plan, const pagegrad_forward_args &args,
             const pagegrad_execution &execution);
void backward(const pagegrad_plan &plan, const pagegrad_backward_args &args,
              const pagegrad_execution &execution);

/// Makes everything ready that the plan needs on the GPU of the stream.
void prepare(const pagegrad_plan &plan, const pagegrad_execution &execution);

/// Name of the kernel that `operation` would use.
const char *chosen_kernel(const pagegrad_plan &plan, const char *operation, pagegrad_dtype dtype,
                          const pagegrad_execution &execution);

}  // namespace pagegrad::cuda
