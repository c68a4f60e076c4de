/// What is done ahead of calls on a GPU.
#include "call.h"
#include "device_kernels.h"
#include "execute.h"
#include "prepared_plan.h"

#include <utility>

namespace pagegrad::cuda {

void refuse_unsupported(const pagegrad_plan &plan) {
    if (plan.value_head_dim != plan.head_dim) {
        fail(PAGEGRAD_UNSUPPORTED, "value_head_dim is ", plan.value_head_dim,
             ", expected head_dim, ", plan.head_dim,
             ": this build has no kernels for another one on GPUs");
    }
}

void refuse_unsupported(const ScoreOptions &options) {
    if (options.softcap != 0) {
        fail(PAGEGRAD_UNSUPPORTED, "softcap is ", options.softcap,
             ", expected 0: this build has no kernels with a softcap on GPUs");
    }
    for (const auto &[name, given] : {std::pair("alibi_slopes", present(options.alibi_slopes)),
                                      std::pair("sinks", present(options.sinks))}) {
        if (given) {
            fail(PAGEGRAD_UNSUPPORTED, name, " is given, expected none: this build has no kernels ",
                 "with ", name, " on GPUs");
        }
    }
}

void prepare(const pagegrad_plan &plan, const pagegrad_execution &execution) {
    refuse_unsupported(plan);
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    plan.prepared->lists(plan, place);
}

const char *chosen_kernel(const pagegrad_plan &plan, const char *operation, pagegrad_dtype dtype,
                          const pagegrad_execution &execution) {
    refuse_unsupported(plan);
    const Place place = Place::of(execution.stream);
    const std::string wanted = operation;
    return choose_kernel(wanted == "backward" ? backward_operation(plan, execution) : wanted, dtype,
                         plan.head_dim, place.device, execution.kernel)
        .kernel->name;
}

}  // namespace pagegrad::cuda
