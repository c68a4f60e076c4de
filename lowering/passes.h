/// Lowering passes that a tile kernel (tiles.h) needs and Halide 21 does not have.
///
/// They run after Halide's own lowering, on the statement of one pipeline, in the order of
/// `add_tile_passes`. Each is a file of its own that says why the pass exists and when it is valid;
/// what can be checked is, by exceptions. Some act on marker calls that the algorithm contains:
///
///     loop_trip_count(loop variable, count)  the loop ends after `count` iterations
///     shared_address(first, last)            byte address of the element `first` in shared memory,
///                                            for an instruction that reads up to `last`
///     keep_alive(element, ...)               these elements are live until here
///     value_or_zero(value, condition)        in a copy: zero unless the condition holds
///     true_if(condition, value)              `value`, known to be true where `condition` is
///
/// A marker's elements are ordinary loads until the passes remove them, so that bounds inference
/// and storage folding see what an instruction reads.
#pragma once

#include "Halide.h"

#include <map>
#include <memory>
#include <set>
#include <string>

namespace pagegrad {

/// How the steps of a kernel's loop overlap.
struct StagingPlan {
    std::string loop;                   ///< name of the loop over steps
    std::map<std::string, int> staged;  ///< Funcs staged in every step: how many steps ahead
    std::set<std::string> copied;       ///< Funcs that are plain copies, of a step or of the block
    std::string issue;                  ///< Func that issues the first products of a step
    std::string addition;             ///< Func that adds sums to memory, one step later, after that
    int products_after_addition = 0;  ///< issued by then after the products that are added
    bool drained = false;             ///< whether products end within their step
};

using LoweringPass = std::unique_ptr<Halide::Internal::IRMutator>;

LoweringPass shift_shared_memory();
LoweringPass trim_loops();
LoweringPass prune_barriers();
LoweringPass pipeline_steps(const StagingPlan &plan);
LoweringPass copy_asynchronously(const StagingPlan &plan);
LoweringPass resolve_shared_addresses();
LoweringPass privatize_registers();
LoweringPass unswitch();
LoweringPass discard_output(const std::string &output);
LoweringPass sink_host_values();

/// Appends what every kernel needs that the runtime launches itself.
void add_plain_passes(Halide::Pipeline pipeline);

/// Appends all passes that a tile kernel needs to its pipeline, whose output carries no data.
void add_tile_passes(Halide::Pipeline pipeline, const StagingPlan &plan, const std::string &output);

}  // namespace pagegrad
