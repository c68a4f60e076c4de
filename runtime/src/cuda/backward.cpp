/// The backward on GPUs: row statistics, gradients tile by tile, and the sums of dq in its dtype.
#include "../execute.h"
#include "../status.h"
#include "../tensors.h"
#include "../workspace.h"
#include "device_kernels.h"
#include "device_tensors.h"
#include "execute.h"
#include "prepared_plan.h"

#include <cmath>
#include <cstdint>
#include <limits>

namespace pagegrad::cuda {

namespace {

// Units in which kernels address tensors (lowering/README.md).
constexpr int vector_bytes = 16, pair_bytes = 8, word_bytes = 4;

/// Memory of a call.
struct Workspace {
    float *statistics;  ///< [row][lse in base 2, delta]
    float *dq;          ///< [row][columns], sums without the scale

    Workspace(int64_t rows, int columns, Carver &carver)
        : statistics(carver.take<float>(2 * rows)), dq(carver.take<float>(rows * columns)) {
    }
};

/// A backward whose arguments are checked. The context of its place is current.
class Backward {
public:
    Backward(const pagegrad_plan &plan, const pagegrad_backward_args &args,
             const pagegrad_execution &execution, const Place &place)
        : plan(plan), args(args), place(place), layout(check_backward(plan, args)),
          rows(layout.rows(plan)), kernel(choose("backward", execution.kernel)),
          statistics_kernel(choose("row_statistics")), finish_kernel(choose("backward_finish")) {
        if (!present(args.lse)) {
            fail(PAGEGRAD_UNSUPPORTED, "lse is absent, expected that of the forward on GPUs");
        }
        check_tensors();
        constexpr int64_t limit = std::numeric_limits<int32_t>::max();
        if (rows > limit / kernel.columns()) {
            fail(PAGEGRAD_UNSUPPORTED, "dq has ", rows, " rows, expected at most ",
                 limit / kernel.columns(), " on GPUs");
        }
    }

    size_t workspace_size() const {
        Carver carver(nullptr);
        const Workspace sizes(rows, kernel.columns(), carver);
        return carver.size();
    }

    void execute(void *memory) const {
        const DeviceLists &lists = plan.prepared->lists(plan, place);
        Carver carver(memory);
        const Workspace workspace(rows, kernel.columns(), carver);
        if (args.pool_mode == PAGEGRAD_POOL_OVERWRITE) {
            zero(args.dk_pool, place.stream);
            zero(args.dv_pool, place.stream);
        }
        if (rows == 0) {
            return;
        }
        check(driver().fill(workspace.dq, 0, rows * kernel.columns(), place.stream),
              "cuMemsetD32Async");
        launch(statistics_kernel, place, rows, statistics_arguments(workspace));
        launch(kernel, place, lists.num_tasks, gradient_arguments(workspace, lists));
        launch(finish_kernel, place, rows, finish_arguments(workspace));
    }

private:
    const KernelEntry &choose(const char *operation, const char *name = nullptr) const {
        return choose_kernel(operation, static_cast<pagegrad_dtype>(args.q.dtype), plan.head_dim,
                             place.device, name);
    }

    void check_tensors() const {
        check_device_tensor("q", args.q, vector_bytes, place);
        check_device_tensor("dout", args.dout, vector_bytes, place);
        check_device_tensor("k_pool", args.k_pool, vector_bytes, place);
        check_device_tensor("v_pool", args.v_pool, vector_bytes, place);
        check_device_tensor("out", args.out, word_bytes, place);
        check_device_tensor("lse", args.lse, word_bytes, place);
        check_device_tensor("dlse", args.dlse, word_bytes, place);
        check_device_tensor("dq", args.dq, word_bytes, place);
        check_device_tensor("dk_pool", args.dk_pool, pair_bytes, place);
        check_device_tensor("dv_pool", args.dv_pool, pair_bytes, place);
    }

    Arguments row_arguments() const {
        Arguments arguments;
        arguments.integer("head_dim", plan.head_dim)
            .integer("num_rows", rows)
            .integer("num_heads", plan.num_heads)
            .integer("num_tokens", layout.tokens);
        return arguments;
    }

    Arguments statistics_arguments(const Workspace &workspace) const {
        Arguments arguments = row_arguments();
        const bool has_dlse = present(args.dlse);
        add_tensor(arguments, "dout", args.dout, word_bytes);
        add_tensor(arguments, "out", args.out, word_bytes);
        add_tensor(arguments, "lse", args.lse, word_bytes);
        add_tensor(arguments, "dlse", has_dlse ? args.dlse : args.lse, word_bytes);
        arguments.integer("has_dlse", has_dlse).pointer("statistics", workspace.statistics);
        return arguments;
    }

    Arguments gradient_arguments(const Workspace &workspace, const DeviceLists &lists) const {
        Arguments arguments;
        arguments.pointer("tasks", lists.tasks)
            .pointer("queries", layout.batched ? lists.batched_queries : lists.packed_queries)
            .pointer("blocks", lists.blocks)
            .pointer("statistics", workspace.statistics)
            .pointer("dq", workspace.dq)
            .integer("block_size", plan.block_size)
            .integer("group", plan.group())
            .integer("num_heads", plan.num_heads)
            .integer("num_tokens", layout.tokens)
            .integer("head_dim", plan.head_dim)
            .number("scale", args.scale)
            .number("scale_log2", args.scale * static_cast<float>(M_LOG2E));
        add_tensor(arguments, "q", args.q, vector_bytes);
        add_tensor(arguments, "dout", args.dout, vector_bytes);
        add_tensor(arguments, "k_pool", args.k_pool, vector_bytes);
        add_tensor(arguments, "v_pool", args.v_pool, vector_bytes);
        add_tensor(arguments, "dk_pool", args.dk_pool, pair_bytes);
        add_tensor(arguments, "dv_pool", args.dv_pool, pair_bytes);
        return arguments;
    }

    Arguments finish_arguments(const Workspace &workspace) const {
        Arguments arguments = row_arguments();
        arguments.pointer("dq_sum", workspace.dq)
            .integer("dq_sum.stride.1", kernel.columns())
            .number("scale", args.scale);
        add_tensor(arguments, "dq", args.dq, word_bytes);
        return arguments;
    }

    const pagegrad_plan &plan;
    const pagegrad_backward_args &args;
    const Place &place;
    const QueryLayout layout;
    const int64_t rows;
    const KernelEntry &kernel, &statistics_kernel, &finish_kernel;
};

void check_workspace(const pagegrad_execution &execution, size_t size, const Place &place) {
    if (size == 0) {
        return;
    }
    require(execution.workspace != nullptr, "execution.workspace is null, expected ", size,
            " bytes of GPU memory");
    if (execution.workspace_size < size) {
        fail(PAGEGRAD_WORKSPACE_TOO_SMALL, "execution.workspace_size is ", execution.workspace_size,
             ", expected at least ", size, " bytes");
    }
    check_device_memory("execution.workspace", execution.workspace, place);
}

}  // namespace

size_t backward_workspace(const pagegrad_plan &plan, const pagegrad_backward_args &args,
                          const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    return Backward(plan, args, execution, place).workspace_size();
}

void backward(const pagegrad_plan &plan, const pagegrad_backward_args &args,
              const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    const Backward call(plan, args, execution, place);
    check_workspace(execution, call.workspace_size(), place);
    call.execute(execution.workspace);
}

void prepare(const pagegrad_plan &plan, const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    const CurrentContext current(place.context);
    plan.prepared->lists(plan, place);
}

const char *chosen_kernel(const pagegrad_plan &plan, const char *operation, pagegrad_dtype dtype,
                          const pagegrad_execution &execution) {
    const Place place = Place::of(execution.stream);
    return choose_kernel(operation, dtype, plan.head_dim, place.device, execution.kernel)
        .kernel->name;
}

}  // namespace pagegrad::cuda
