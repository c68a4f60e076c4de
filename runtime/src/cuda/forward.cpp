/// The forward on GPUs.
#include "../execute.h"
#include "../status.h"
#include "../tensors.h"
#include "../workspace.h"
#include "call.h"
#include "device_kernels.h"
#include "device_tensors.h"
#include "execute.h"
#include "prepared_plan.h"

#include <cmath>

namespace pagegrad::cuda {

namespace {

constexpr uint32_t minus_infinity_bits = 0xff800000;

/// A forward whose arguments are checked. The context of its place is current.
class Forward {
public:
    Forward(const pagegrad_plan &plan, const pagegrad_forward_args &args,
            const pagegrad_execution &execution, const Place &place)
        : plan(plan), args(args), place(place), layout(check_forward(plan, args)),
          kernel(choose_kernel("forward", static_cast<pagegrad_dtype>(args.q.dtype), plan.head_dim,
                               place.device, execution.kernel)) {
        refuse_unsupported(plan);
        refuse_unsupported(ScoreOptions(args));
        check_device_tensor("q", args.q, vector_bytes, place);
        check_device_tensor("k_pool", args.k_pool, vector_bytes, place);
        check_device_tensor("v_pool", args.v_pool, vector_bytes, place);
        check_device_tensor("out", args.out, neighbour_bytes(args.out), place);
        check_device_tensor("lse", args.lse, word_bytes, place);
    }

    size_t workspace_size() const {
        Carver carver(nullptr);
        lse_of(carver);
        return carver.size();
    }

    void execute(void *memory) const {
        const DeviceLists &lists = plan.prepared->lists(plan, place);
        Carver carver(memory);
        const pagegrad_tensor lse = lse_of(carver);
        if (misses_rows(plan, layout, lists)) {
            fill(args.out, 0, place.stream);
            fill(lse, minus_infinity_bits, place.stream);
        }
        launch_tasks(kernel, place, layout, lists.queries, arguments(lse));
    }

private:
    /// The caller's tensor, or one of the workspace: the kernel writes it anyway.
    pagegrad_tensor lse_of(Carver &carver) const {
        return present(args.lse) ? args.lse
                                 : row_tensor(carver.take<float>(layout.rows(plan)), args.q);
    }

    Arguments arguments(const pagegrad_tensor &lse) const {
        Arguments arguments;
        arguments.integer("block_size", plan.block_size)
            .integer("group", plan.group())
            .integer("head_dim", plan.head_dim)
            .number("scale_log2", args.scale * static_cast<float>(M_LOG2E));
        add_tensor(arguments, "q", args.q, vector_bytes);
        add_tensor(arguments, "k_pool", args.k_pool, vector_bytes);
        add_tensor(arguments, "v_pool", args.v_pool, vector_bytes);
        add_output(arguments, "out", args.out);
        add_tensor(arguments, "lse", lse, word_bytes);
        return arguments;
    }

    const pagegrad_plan &plan;
    const pagegrad_forward_args &args;
    const Place &place;
    const QueryLayout layout;
    const KernelEntry &kernel;
};

}  // namespace

size_t forward_workspace(const pagegrad_plan &plan, const pagegrad_forward_args &args,
                         const pagegrad_execution &execution) {
    return workspace_of<Forward>(plan, args, execution);
}

void forward(const pagegrad_plan &plan, const pagegrad_forward_args &args,
             const pagegrad_execution &execution) {
    run<Forward>(plan, args, execution);
}

}  // namespace pagegrad::cuda
