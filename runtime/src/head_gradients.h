/// Gradients of what a layer learns for each query head: ALiBi slopes and sinks.
#pragma once

#include "execute.h"

namespace pagegrad {

/// Writes the gradients that the caller wants. A head has its sums from one thread, in the order of
/// the plan, and from rows of sequences only.
/// @param lse           as in pagegrad_backward_args, present
/// @param delta         [batch][token][head]
/// @param distance_sums [batch][token][head], sum_j dS[i,j] |p_i - j|: needed for slopes only
void sum_head_gradients(const BackwardCall &call, const QueryLayout &layout,
                        const pagegrad_tensor &lse, const float *delta, const float *distance_sums);

}  // namespace pagegrad
