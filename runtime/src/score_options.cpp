#include "score_options.h"

#include "status.h"
#include "tensors.h"

#include <cmath>

namespace pagegrad {

namespace {

/// One number stands for all heads where there is no tensor.
KernelBuffer head_buffer(const pagegrad_tensor &tensor, const pagegrad_plan &plan,
                         int32_t first_head, const float &absent) {
    const int64_t heads = plan.num_heads - first_head;
    const auto *values = static_cast<const float *>(tensor.data);
    return present(tensor) ? KernelBuffer(values + first_head, {{heads, 1}})
                           : KernelBuffer(&absent, {{heads, 0}});
}

}  // namespace

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

bool ScoreOptions::change_scores() const {
    return softcap > 0 || present(alibi_slopes);
}

KernelBuffer ScoreOptions::slopes_buffer(const pagegrad_plan &plan, int32_t first_head) const {
    static constexpr float none = 0;
    return head_buffer(alibi_slopes, plan, first_head, none);
}

KernelBuffer ScoreOptions::sinks_buffer(const pagegrad_plan &plan) const {
    static constexpr float none = -INFINITY;
    return head_buffer(sinks, plan, 0, none);
}

}  // namespace pagegrad
