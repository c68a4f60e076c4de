/// What the calls that run on a GPU have in common.
#pragma once

#include "../score_options.h"
#include "../status.h"
#include "../tensors.h"
#include "device_kernels.h"
#include "device_tensors.h"
#include "prepared_plan.h"

#include <cstddef>

namespace pagegrad::cuda {

/// The operation whose kernel the caller chooses for a backward.
const char *backward_operation(const pagegrad_plan &plan, const pagegrad_execution &execution);

/// Refuses what the kernels for GPUs cannot do.
void refuse_unsupported(const pagegrad_plan &plan);
void refuse_unsupported(const ScoreOptions &options);

/// Whether the query tasks leave rows alone: those of no sequence, and some that see no key.
inline bool misses_rows(const pagegrad_plan &plan, const QueryLayout &layout,
                        const DeviceLists &lists) {
    return lists.has_blind_queries || plan.query_tokens < layout.tokens * layout.batches;
}

/// Starts a kernel for the tasks of a list.
template<typename Task>
void launch_tasks(const KernelEntry &kernel, const Place &place, const QueryLayout &layout,
                  const DeviceTaskList<Task> &list, Arguments arguments) {
    arguments.pointer("tasks", list.tasks)
        .pointer("queries", layout.batched ? list.batched_queries : list.packed_queries)
        .pointer("blocks", list.blocks);
    launch(kernel, place, list.num_tasks, arguments);
}

/// Bytes of workspace of a call.
template<typename Call, typename Args>
size_t workspace_of(const pagegrad_plan &plan, const Args &args,
                    const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    return Call(plan, args, execution, place).workspace_size();
}

/// Checks a call and puts it on the stream.
template<typename Call, typename Args>
void run(const pagegrad_plan &plan, const Args &args, const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    const Call call(plan, args, execution, place);
    const size_t size = call.workspace_size();
    if (size > 0) {
        require(execution.workspace != nullptr, "execution.workspace is null, expected ", size,
                " bytes of GPU memory");
        if (execution.workspace_size < size) {
            fail(PAGEGRAD_WORKSPACE_TOO_SMALL, "execution.workspace_size is ",
                 execution.workspace_size, ", expected at least ", size, " bytes");
        }
        check_device_memory("execution.workspace", execution.workspace, place);
    }
    call.execute(execution.workspace);
}

}  // namespace pagegrad::cuda
