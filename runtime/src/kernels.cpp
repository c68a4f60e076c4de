#include "kernels.h"

#include "kernel_headers.inc"
#include "status.h"

#include <cpuid.h>
#include <cstring>

namespace pagegrad {

namespace {

constexpr pagegrad_dtype f32 = PAGEGRAD_FLOAT32;

const Kernel kernels[] = {
#define PAGEGRAD_KERNEL(operation, dtype, head_dim, target, name, function)                        \
    {Operation::operation, dtype, head_dim,                                                        \
     CpuTarget::target,    name,  reinterpret_cast<void (*)()>(&(function))},
#include "kernel_table.inc"
#undef PAGEGRAD_KERNEL
};

bool has_f16c() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

bool matches(const Kernel &kernel, const char *name) {
    return !name || has_part(kernel.name, name) ||
           (kernel.operation == Operation::backward_dense && !std::strcmp(name, "materialised"));
}

bool serves(const Kernel &kernel, Operation operation) {
    return kernel.operation == operation ||
           (operation == Operation::backward && kernel.operation == Operation::backward_dense);
}

/// Fused before materialised, then best target, then specialised head_dim.
int rank(const Kernel &kernel) {
    return (kernel.operation == Operation::backward_dense) * 100 +
           static_cast<int>(kernel.target) * 10 + (kernel.head_dim == 0);
}

const Kernel *best(Operation operation, pagegrad_dtype dtype, int head_dim, const char *name) {
    const Kernel *found = nullptr;
    for (const Kernel &kernel : kernels) {
        if (serves(kernel, operation) && kernel.dtype == dtype && matches(kernel, name) &&
            (kernel.head_dim == 0 || kernel.head_dim == head_dim) && available(kernel.target) &&
            (!found || rank(kernel) < rank(*found))) {
            found = &kernel;
        }
    }
    return found;
}

}  // namespace

const Kernel *kernel_list() {
    return kernels;
}

int kernel_count() {
    return static_cast<int>(std::size(kernels));
}

const char *operation_name(Operation operation) {
    static const char *const names[] = {"backward",       "backward_dense", "forward",
                                        "forward_finish", "row_statistics", "gather",
                                        "scatter_add"};
    return names[static_cast<int>(operation)];
}

bool has_part(const std::string &name, const std::string &part) {
    return ("_" + name + "_").find("_" + part + "_") != std::string::npos;
}

const char *target_name(CpuTarget target) {
    static const char *const names[] = {"avx512", "avx2", "x86"};
    return names[static_cast<int>(target)];
}

bool available(CpuTarget target) {
    // GCC's check includes the operating system's support for the registers.
    static const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    static const bool avx512 =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw");
    switch (target) {
    case CpuTarget::avx512:
        return avx512;
    case CpuTarget::avx2:
        return avx2;
    case CpuTarget::x86:
        return true;
    }
    return false;
}

const Kernel &choose_kernel(Operation operation, pagegrad_dtype dtype, int head_dim,
                            const char *name) {
    const Kernel *kernel = best(operation, dtype, head_dim, name);
    if (!kernel && name && best(operation, dtype, head_dim, nullptr)) {
        fail(PAGEGRAD_INVALID_ARGUMENT, "execution.kernel is \"", name,
             "\", expected the name of a ", operation_name(operation),
             " kernel that fits head_dim ", head_dim, " and that this machine can run");
    }
    if (!kernel) {
        fail(PAGEGRAD_UNSUPPORTED, "no ", operation_name(operation),
             " kernel of this build for dtype ", dtype, " and head_dim ", head_dim);
    }
    return *kernel;
}

const Kernel &companion(const Kernel &kernel, Operation operation, int head_dim) {
    return choose_kernel(operation, kernel.dtype, head_dim, target_name(kernel.target));
}

}  // namespace pagegrad
