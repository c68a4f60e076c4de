/// What is done ahead of calls on a GPU.
#include "call.h"
#include "device_kernels.h"
#include "execute.h"
#include "prepared_plan.h"

namespace pagegrad::cuda {

void prepare(const pagegrad_plan &plan, const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    plan.prepared->lists(plan, place);
}

const char *chosen_kernel(const pagegrad_plan &plan, const char *operation, pagegrad_dtype dtype,
                          const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const std::string wanted = operation;
    return choose_kernel(wanted == "backward" ? backward_operation(plan, execution) : wanted, dtype,
                         plan.head_dim, place.device, execution.kernel)
        .kernel->name;
}

}  // namespace pagegrad::cuda
