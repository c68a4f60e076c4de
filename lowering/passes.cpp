#include "passes.h"

namespace pagegrad {

void add_tile_passes(Halide::Pipeline pipeline, const StagingPlan &plan,
                     const std::string &output) {
    const auto add = [&](LoweringPass pass) { pipeline.add_custom_lowering_pass(pass.release()); };
    add(shift_shared_memory());
    add(trim_loops());
    add(stage_ahead(plan));
    add(prune_barriers());
    add(copy_asynchronously(plan));
    add(resolve_shared_addresses());
    add(privatize_registers());
    add(unswitch());
    add(discard_output(output));
    add(sink_host_values());
}

}  // namespace pagegrad
