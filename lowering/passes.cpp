#include "passes.h"

namespace pagegrad {
namespace {

void add(Halide::Pipeline &pipeline, LoweringPass pass) {
    pipeline.add_custom_lowering_pass(pass.release());
}

}  // namespace

void add_plain_passes(Halide::Pipeline pipeline) {
    add(pipeline, shift_shared_memory());
    add(pipeline, sink_host_values());
}

void add_tile_passes(Halide::Pipeline pipeline, const StagingPlan &plan,
                     const std::string &output) {
    add(pipeline, shift_shared_memory());
    add(pipeline, trim_loops());
    add(pipeline, prune_barriers());
    add(pipeline, pipeline_steps(plan));
    add(pipeline, copy_asynchronously(plan));
    add(pipeline, resolve_shared_addresses());
    add(pipeline, privatize_registers());
    add(pipeline, unswitch());
    add(pipeline, discard_output(output));
    add(pipeline, sink_host_values());
}

}  // namespace pagegrad
