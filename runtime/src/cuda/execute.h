/// Execution on GPUs.
#pragma once

#include "pagegrad/pagegrad.h"

#include <cstddef>

namespace pagegrad::cuda {

/// Bytes of GPU memory that `backward` needs as its workspace.
size_t backward_workspace(const pagegrad_plan &plan, const pagegrad_backward_args &args,
                          const pagegrad_execution &execution);

/// Puts the backward on the caller's stream. Allocates nothing and waits for nothing once the plan
/// is prepared.
void backward(const pagegrad_plan &plan, const pagegrad_backward_args &args,
              const pagegrad_execution &execution);

/// Makes everything ready that the plan needs on the GPU of the stream.
void prepare(const pagegrad_plan &plan, const pagegrad_execution &execution);

/// Name of the kernel that `operation` would use.
const char *chosen_kernel(const pagegrad_plan &plan, const char *operation, pagegrad_dtype dtype,
                          const pagegrad_execution &execution);

}  // namespace pagegrad::cuda
