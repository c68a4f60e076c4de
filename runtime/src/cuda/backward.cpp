/// The backward on GPUs. In a fixed order it goes over the keys for dk and dv and over the queries
/// for dq, seven products; else over the keys alone, five products, with float32 sums of dq that
/// thread blocks add to as they come.
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
#include <cstdint>
#include <limits>

namespace pagegrad::cuda {

namespace {

/// The operation of a backward in a fixed order.
constexpr char fixed_order[] = "backward_keys";

/// Memory of a call.
struct Workspace {
    float *statistics;               ///< [row][lse in base 2, delta]
    float *dq = nullptr;             ///< [row][columns], unordered sums without the scale
    float *lse = nullptr;            ///< [row], if the caller has none
    uint16_t *out_of_lse = nullptr;  ///< [row][d], which is computed with it
};

/// A backward whose arguments are checked. The context of its place is current.
class Backward {
public:
    Backward(const pagegrad_plan &plan, const pagegrad_backward_args &args,
             const pagegrad_execution &execution, const Place &place)
        : plan(plan), args(args), execution(execution), place(place),
          layout(check_backward(plan, args)), rows(layout.rows(plan)),
          kernel(choose(args.dq.dtype == args.q.dtype ? backward_operation(plan, execution)
                                                      : fixed_order,
                        execution.kernel)),
          statistics_kernel(choose("row_statistics")), finish_kernel(choose("backward_finish")),
          values_kernel(companion(kernel, "backward_values")),
          queries_kernel(companion(kernel, "backward_queries")),
          ordered(std::string(kernel.operation) != "backward") {
        refuse_unsupported(plan);
        refuse_unsupported(ScoreOptions(args));
        check_tensors();
        constexpr int64_t limit = std::numeric_limits<int32_t>::max();
        if (!ordered && rows > limit / kernel.max_head_dim) {
            fail(PAGEGRAD_UNSUPPORTED, "dq has ", rows, " rows, expected at most ",
                 limit / kernel.max_head_dim, " on GPUs");
        }
    }

    size_t workspace_size() const {
        Carver carver(nullptr);
        carve(carver);
        return carver.size();
    }

    void execute(void *memory) const {
        const DeviceLists &lists = plan.prepared->lists(plan, place);
        Carver carver(memory);
        const Workspace workspace = carve(carver);
        if (!present(args.lse)) {
            compute_lse(workspace);
        }
        if (args.pool_mode == PAGEGRAD_POOL_OVERWRITE) {
            fill(args.dk_pool, 0, place.stream);
            fill(args.dv_pool, 0, place.stream);
        }
        if (rows == 0) {
            return;
        }
        launch(statistics_kernel, place, rows, statistics_arguments(workspace));
        ordered ? add_ordered(lists, workspace) : add_unordered(lists, workspace);
    }

private:
    const KernelEntry &choose(const std::string &operation, const char *name = nullptr) const {
        return choose_kernel(operation, static_cast<pagegrad_dtype>(args.q.dtype), plan.head_dim,
                             place.device, name);
    }

    Workspace carve(Carver &carver) const {
        Workspace workspace{};
        workspace.statistics = carver.take<float>(2 * rows);
        if (!ordered) {
            workspace.dq = carver.take<float>(rows * kernel.max_head_dim);
        }
        if (!present(args.lse)) {
            workspace.lse = carver.take<float>(rows);
            workspace.out_of_lse = carver.take<uint16_t>(rows * plan.head_dim);
        }
        return workspace;
    }

    void add_ordered(const DeviceLists &lists, const Workspace &workspace) const {
        if (misses_rows(plan, layout, lists)) {
            fill(args.dq, 0, place.stream);
        }
        Arguments arguments = gradient_arguments(workspace);
        launch_tasks(kernel, place, layout, lists.keys, arguments);
        if (values_kernel) {
            launch_tasks(*values_kernel, place, layout, lists.keys, arguments);
        }
        add_output(arguments, "dq", args.dq);
        launch_tasks(*queries_kernel, place, layout, lists.queries, arguments);
    }

    void add_unordered(const DeviceLists &lists, const Workspace &workspace) const {
        check(driver().fill(workspace.dq, 0, rows * kernel.max_head_dim, place.stream),
              "cuMemsetD32Async");
        Arguments arguments = gradient_arguments(workspace);
        arguments.pointer("dq", workspace.dq);
        launch_tasks(kernel, place, layout, lists.keys, arguments);
        launch(finish_kernel, place, rows, finish_arguments(workspace));
    }

    pagegrad_tensor lse_of(const Workspace &workspace) const {
        return present(args.lse) ? args.lse : row_tensor(workspace.lse, args.q);
    }

    void compute_lse(const Workspace &workspace) const {
        pagegrad_forward_args forward{};
        forward.struct_size = sizeof(forward);
        forward.scale = args.scale;
        forward.q = args.q;
        forward.k_pool = args.k_pool;
        forward.v_pool = args.v_pool;
        forward.out = contiguous_like(args.q, args.q.rank, nullptr);
        forward.out.data = workspace.out_of_lse;
        forward.out.dtype = args.q.dtype;
        forward.lse = lse_of(workspace);
        pagegrad_execution any_kernel = execution;
        any_kernel.kernel = nullptr;  // the caller's is one of the backward
        cuda::forward(plan, forward, any_kernel);
    }

    void check_tensors() const {
        check_device_tensor("q", args.q, vector_bytes, place);
        check_device_tensor("dout", args.dout, vector_bytes, place);
        check_device_tensor("k_pool", args.k_pool, vector_bytes, place);
        check_device_tensor("v_pool", args.v_pool, vector_bytes, place);
        check_device_tensor("out", args.out, word_bytes, place);
        check_device_tensor("lse", args.lse, word_bytes, place);
        check_device_tensor("dlse", args.dlse, word_bytes, place);
        check_device_tensor("dq", args.dq, neighbour_bytes(args.dq), place);
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
        const pagegrad_tensor lse = lse_of(workspace);
        add_tensor(arguments, "dout", args.dout, word_bytes);
        add_tensor(arguments, "out", args.out, word_bytes);
        arguments.integer("out_is_f32", args.out.dtype == PAGEGRAD_FLOAT32);
        add_tensor(arguments, "lse", lse, word_bytes);
        add_tensor(arguments, "dlse", has_dlse ? args.dlse : lse, word_bytes);
        arguments.integer("has_dlse", has_dlse).pointer("statistics", workspace.statistics);
        return arguments;
    }

    Arguments gradient_arguments(const Workspace &workspace) const {
        Arguments arguments;
        arguments.pointer("statistics", workspace.statistics)
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
            .integer("dq_sum.stride.1", kernel.max_head_dim)
            .number("scale", args.scale);
        add_tensor(arguments, "dq", args.dq, word_bytes);
        return arguments;
    }

    const pagegrad_plan &plan;
    const pagegrad_backward_args &args;
    const pagegrad_execution &execution;
    const Place &place;
    const QueryLayout layout;
    const int64_t rows;
    const KernelEntry &kernel, &statistics_kernel, &finish_kernel;
    const KernelEntry *const values_kernel, *const queries_kernel;
    const bool ordered;
};

}  // namespace

const char *backward_operation(const pagegrad_plan &plan, const pagegrad_execution &execution) {
    // Sums in any order are allowed, not asked for: there are kernels for them where they may pay.
    return execution.unordered && plan.head_dim <= narrow_head_dim ? "backward" : fixed_order;
}

size_t backward_workspace(const pagegrad_plan &plan, const pagegrad_backward_args &args,
                          const pagegrad_execution &execution) {
    return workspace_of<Backward>(plan, args, execution);
}

void backward(const pagegrad_plan &plan, const pagegrad_backward_args &args,
              const pagegrad_execution &execution) {
    run<Backward>(plan, args, execution);
}

}  // namespace pagegrad::cuda
