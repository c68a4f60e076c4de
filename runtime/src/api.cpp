/// The C interface: checks what every call has in common, and turns failures into statuses.
#include "pagegrad/pagegrad.h"

#include "cuda/device_kernels.h"
#include "cuda/execute.h"
#include "execute.h"
#include "kernels.h"
#include "status.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <utility>

namespace pagegrad {

namespace {

void set_message(pagegrad_error *error, const std::string &message) {
    if (error) {
        const size_t length = std::min(message.size(), sizeof(error->message) - 1);
        std::memcpy(error->message, message.data(), length);
        error->message[length] = '\0';
    }
}

/// Runs the body of a call.
template<typename Body>
pagegrad_status report(pagegrad_error *error, const Body &body) {
    try {
        set_message(error, "");
        body();
        return PAGEGRAD_OK;
    } catch (const Failure &failure) {
        set_message(error, failure.message);
        return failure.status;
    } catch (const std::bad_alloc &) {
        set_message(error, "out of memory");
        return PAGEGRAD_OUT_OF_MEMORY;
    } catch (const std::exception &exception) {
        set_message(error, exception.what());
        return PAGEGRAD_INTERNAL;
    }
}

template<typename T>
const T &not_null(const T *pointer, const char *name) {
    require(pointer != nullptr, name, " is null, expected a pointer");
    return *pointer;
}

pagegrad_execution check_execution(const pagegrad_execution *given) {
    pagegrad_execution execution{};
    execution.struct_size = sizeof(execution);
    if (!given) {
        return execution;
    }
    require(given->struct_size == sizeof(execution), "execution.struct_size is ",
            given->struct_size, ", expected ", sizeof(execution));
    execution = *given;
    require(execution.num_threads >= 0 && execution.num_threads <= max_threads,
            "execution.num_threads is ", execution.num_threads, ", expected 0..", max_threads);
    require(execution.device == PAGEGRAD_CPU || execution.device == PAGEGRAD_CUDA,
            "execution.device is ", execution.device, ", expected a pagegrad_device");
    require(execution.unordered == 0 || execution.unordered == 1, "execution.unordered is ",
            execution.unordered, ", expected 0 or 1");
    require(reinterpret_cast<uintptr_t>(execution.workspace) % 64 == 0, "execution.workspace is ",
            execution.workspace, ", expected an address aligned to 64 bytes");
    return execution;
}

/// The same for operations that GPUs do not have.
pagegrad_execution check_cpu_execution(const pagegrad_execution *given, const char *operation) {
    const pagegrad_execution execution = check_execution(given);
    if (execution.device == PAGEGRAD_CUDA) {
        fail(PAGEGRAD_UNSUPPORTED, "execution.device is CUDA, but this build has no ", operation,
             " for it");
    }
    return execution;
}

struct Free {
    void operator()(void *pointer) const {
        std::free(pointer);
    }
};

/// Executes in the caller's workspace, or in one of our own.
template<typename Call>
void execute(const Call &call, const pagegrad_execution &execution) {
    const size_t size = call.workspace_size();
    if (execution.workspace) {
        if (execution.workspace_size < size) {
            fail(PAGEGRAD_WORKSPACE_TOO_SMALL, "execution.workspace_size is ",
                 execution.workspace_size, ", expected at least ", size, " bytes");
        }
        call.execute(execution.workspace);
        return;
    }
    const std::unique_ptr<void, Free> own(std::aligned_alloc(64, std::max<size_t>(size, 64)));
    if (!own) {
        fail(PAGEGRAD_OUT_OF_MEMORY, "workspace of ", size, " bytes could not be allocated");
    }
    call.execute(own.get());
}

pagegrad_kernel_info describe(const Kernel &kernel) {
    return {sizeof(pagegrad_kernel_info), kernel.name,  operation_name(kernel.operation),
            target_name(kernel.target),   kernel.dtype, kernel.head_dim,
            available(kernel.target)};
}

pagegrad_kernel_info describe(const cuda::KernelEntry &entry) {
    return {sizeof(pagegrad_kernel_info),
            entry.kernel->name,
            entry.operation,
            entry.target,
            entry.dtype,
            entry.head_dim,
            available(entry)};
}

}  // namespace
}  // namespace pagegrad

using namespace pagegrad;

pagegrad_status pagegrad_plan_create(const pagegrad_plan_desc *desc, pagegrad_plan **plan,
                                     pagegrad_error *error) {
    return report(error, [&] {
        require(plan != nullptr, "plan is null, expected a pointer");
        *plan = nullptr;
        *plan = new pagegrad_plan(make_plan(not_null(desc, "desc")));
    });
}

void pagegrad_plan_destroy(pagegrad_plan *plan) {
    delete plan;
}

pagegrad_status pagegrad_plan_prepare(const pagegrad_plan *plan,
                                      const pagegrad_execution *execution, pagegrad_error *error) {
    return report(error, [&] {
        const pagegrad_plan &checked = not_null(plan, "plan");
        const pagegrad_execution how = check_execution(execution);
        if (how.device == PAGEGRAD_CUDA) {
            cuda::prepare(checked, how);
        }
    });
}

pagegrad_status pagegrad_plan_get_info(const pagegrad_plan *plan, pagegrad_plan_info *info,
                                       pagegrad_error *error) {
    return report(error, [&] {
        const pagegrad_plan &checked = not_null(plan, "plan");
        const uint32_t size = not_null(info, "info").struct_size;
        require(size == sizeof(*info), "info.struct_size is ", size, ", expected ", sizeof(*info));
        *info = describe(checked);
    });
}

pagegrad_status pagegrad_forward_workspace(const pagegrad_plan *plan,
                                           const pagegrad_forward_args *args,
                                           const pagegrad_execution *execution, size_t *bytes,
                                           pagegrad_error *error) {
    return report(error, [&] {
        require(bytes != nullptr, "bytes is null, expected a pointer");
        const pagegrad_execution checked = check_execution(execution);
        const pagegrad_plan &of = not_null(plan, "plan");
        const pagegrad_forward_args &with = not_null(args, "args");
        *bytes = checked.device == PAGEGRAD_CUDA
                     ? cuda::forward_workspace(of, with, checked)
                     : ForwardCall::check(of, with, checked).workspace_size();
    });
}

pagegrad_status pagegrad_forward(const pagegrad_plan *plan, const pagegrad_forward_args *args,
                                 const pagegrad_execution *execution, pagegrad_error *error) {
    return report(error, [&] {
        const pagegrad_execution checked = check_execution(execution);
        const pagegrad_plan &of = not_null(plan, "plan");
        const pagegrad_forward_args &with = not_null(args, "args");
        if (checked.device == PAGEGRAD_CUDA) {
            cuda::forward(of, with, checked);
        } else {
            execute(ForwardCall::check(of, with, checked), checked);
        }
    });
}

pagegrad_status pagegrad_backward_workspace(const pagegrad_plan *plan,
                                            const pagegrad_backward_args *args,
                                            const pagegrad_execution *execution, size_t *bytes,
                                            pagegrad_error *error) {
    return report(error, [&] {
        require(bytes != nullptr, "bytes is null, expected a pointer");
        const pagegrad_execution checked = check_execution(execution);
        const pagegrad_plan &of = not_null(plan, "plan");
        const pagegrad_backward_args &with = not_null(args, "args");
        *bytes = checked.device == PAGEGRAD_CUDA
                     ? cuda::backward_workspace(of, with, checked)
                     : BackwardCall::check(of, with, checked).workspace_size();
    });
}

pagegrad_status pagegrad_backward(const pagegrad_plan *plan, const pagegrad_backward_args *args,
                                  const pagegrad_execution *execution, pagegrad_error *error) {
    return report(error, [&] {
        const pagegrad_execution checked = check_execution(execution);
        const pagegrad_plan &of = not_null(plan, "plan");
        const pagegrad_backward_args &with = not_null(args, "args");
        if (checked.device == PAGEGRAD_CUDA) {
            cuda::backward(of, with, checked);
        } else {
            execute(BackwardCall::check(of, with, checked), checked);
        }
    });
}

pagegrad_status pagegrad_gather(const pagegrad_plan *plan, const pagegrad_tensor *pool,
                                const pagegrad_tensor *dense, const pagegrad_execution *execution,
                                pagegrad_error *error) {
    return report(error, [&] {
        gather(not_null(plan, "plan"), not_null(pool, "pool"), not_null(dense, "dense"),
               check_cpu_execution(execution, "gather"));
    });
}

pagegrad_status pagegrad_scatter_add(const pagegrad_plan *plan, const pagegrad_tensor *dense,
                                     const pagegrad_tensor *pool,
                                     const pagegrad_execution *execution, pagegrad_error *error) {
    return report(error, [&] {
        scatter_add(not_null(plan, "plan"), not_null(dense, "dense"), not_null(pool, "pool"),
                    check_cpu_execution(execution, "scatter_add"));
    });
}

int32_t pagegrad_kernel_count(void) {
    return kernel_count() + static_cast<int32_t>(cuda::kernel_entries().size());
}

pagegrad_status pagegrad_get_kernel_info(int32_t index, pagegrad_kernel_info *info,
                                         pagegrad_error *error) {
    return report(error, [&] {
        require(index >= 0 && index < pagegrad_kernel_count(), "index is ", index,
                ", expected 0 to ", pagegrad_kernel_count() - 1);
        const uint32_t size = not_null(info, "info").struct_size;
        require(size == sizeof(*info), "info.struct_size is ", size, ", expected ", sizeof(*info));
        *info = index < kernel_count() ? describe(kernel_list()[index])
                                       : describe(cuda::kernel_entries()[index - kernel_count()]);
    });
}

pagegrad_status pagegrad_choose_kernel(const pagegrad_plan *plan, const char *operation,
                                       int32_t dtype, const pagegrad_execution *execution,
                                       const char **name, pagegrad_error *error) {
    return report(error, [&] {
        require(name != nullptr, "name is null, expected a pointer");
        const std::string wanted = operation ? operation : "";
        const std::pair<const char *, Operation> operations[] = {
            {"forward", Operation::forward},
            {"forward_general", Operation::forward_general},
            {"backward", Operation::backward},
            {"backward_general", Operation::backward_general}};
        const auto *named = std::find_if(std::begin(operations), std::end(operations),
                                         [&](const auto &item) { return wanted == item.first; });
        require(named != std::end(operations), "operation is \"", wanted,
                "\", expected \"forward\" or \"backward\", or one of them with \"_general\"");
        const pagegrad_dtype of = check_dtype("argument", dtype);
        const pagegrad_plan &with = not_null(plan, "plan");
        const pagegrad_execution checked = check_execution(execution);
        if (checked.device == PAGEGRAD_CUDA) {
            *name = cuda::chosen_kernel(with, operation, of, checked);
            return;
        }
        *name = choose_kernel(named->second, of, with.head_dims(), checked.kernel).name;
    });
}

const char *pagegrad_version(void) {
#define PAGEGRAD_STRING(x) #x
#define PAGEGRAD_VERSION_STRING(major, minor, patch)                                               \
    PAGEGRAD_STRING(major) "." PAGEGRAD_STRING(minor) "." PAGEGRAD_STRING(patch)
    return PAGEGRAD_VERSION_STRING(PAGEGRAD_VERSION_MAJOR, PAGEGRAD_VERSION_MINOR,
                                   PAGEGRAD_VERSION_PATCH);
}

const char *pagegrad_status_name(pagegrad_status status) {
    switch (status) {
    case PAGEGRAD_OK:
        return "ok";
    case PAGEGRAD_INVALID_ARGUMENT:
        return "invalid argument";
    case PAGEGRAD_UNSUPPORTED:
        return "unsupported";
    case PAGEGRAD_WORKSPACE_TOO_SMALL:
        return "workspace too small";
    case PAGEGRAD_OUT_OF_MEMORY:
        return "out of memory";
    case PAGEGRAD_NO_DEVICE:
        return "no device";
    case PAGEGRAD_INTERNAL:
        return "internal error";
    case PAGEGRAD_DRIVER_ERROR:
        return "CUDA driver error";
    }
    return "unknown status";
}
