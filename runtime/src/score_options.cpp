#include "score_options.h"

#include "status.h"
#include "tensors.h"

#include <cmath>

namespace pagegrad {

void ScoreOptions::check(const pagegrad_plan &plan) const {
    require(std::isfinite(softcap) && softcap >= 0, "softcap is ", softcap,
            ", expected a positive finite number, or 0 for none");
    if (present(alibi_slopes)) {
        check_head_tensor("alibi_slopes", plan, alibi_slopes, Access::read);
    }
    if (present(sinks)) {
        check_head_tensor("sinks", plan, sinks, Access::read);
    }
}

void ScoreOptions::check_values() const {
    const auto values = [](const pagegrad_tensor &t) { return static_cast<const float *>(t.data); };
    for (int64_t head = 0; present(alibi_slopes) && head < alibi_slopes.shape[0]; head++) {
        const float slope = values(alibi_slopes)[head];
        require(std::isfinite(slope), "alibi_slopes[", head, "] is ", slope,
                ", expected a finite number");
    }
    for (int64_t head = 0; present(sinks) && head < sinks.shape[0]; head++) {
        const float sink = values(sinks)[head];
        require(sink < INFINITY, "sinks[", head, "] is ", sink,
                ", expected a finite number, or -inf for no sink");
    }
}

void refuse_unsupported(const pagegrad_plan &plan, const ScoreOptions &options) {
    options.check_values();
    if (plan.value_head_dim != plan.head_dim) {
        fail(PAGEGRAD_UNSUPPORTED, "value_head_dim is ", plan.value_head_dim,
             ", expected head_dim, ", plan.head_dim,
             ": this build has no kernels for another one on CPUs");
    }
    if (options.softcap != 0) {
        fail(PAGEGRAD_UNSUPPORTED, "softcap is ", options.softcap,
             ", expected 0: this build has no kernels with a softcap on CPUs");
    }
    if (present(options.alibi_slopes) || present(options.sinks)) {
        fail(PAGEGRAD_UNSUPPORTED, present(options.sinks) ? "sinks" : "alibi_slopes",
             " are given, expected none: this build has no kernels with them on CPUs");
    }
}

}  // namespace pagegrad
