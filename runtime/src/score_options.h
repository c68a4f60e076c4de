/// The options of the scores, which forward and backward share: softcap, ALiBi slopes and sinks.
#pragma once

#include "kernel_buffer.h"
#include "plan.h"

namespace pagegrad {

struct ScoreOptions {
    const float softcap;  ///< 0: none
    const pagegrad_tensor &alibi_slopes, &sinks;

    /// Of the arguments of a forward or a backward.
    template<typename Args>
    explicit ScoreOptions(const Args &args)
        : softcap(args.softcap), alibi_slopes(args.alibi_slopes), sinks(args.sinks) {
    }

    /// Refuses what no device can do.
    void check(const pagegrad_plan &plan) const;

    /// Refuses slopes and sinks that are no numbers. They must be in host memory.
    void check_values() const;

    /// Whether scores are more than scaled and masked: a task for general kernels.
    bool change_scores() const;

    /// Arguments of kernels: one float per head, from a head on.
    KernelBuffer slopes_buffer(const pagegrad_plan &plan, int32_t first_head = 0) const;
    KernelBuffer sinks_buffer(const pagegrad_plan &plan) const;
};

}  // namespace pagegrad
