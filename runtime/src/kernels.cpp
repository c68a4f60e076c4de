#include "kernels.h"

#include "kernel_headers.inc"
#include "status.h"
#include "tensors.h"

#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pagegrad {

namespace {

constexpr pagegrad_dtype f32 = PAGEGRAD_FLOAT32, bf16 = PAGEGRAD_BFLOAT16, f16 = PAGEGRAD_FLOAT16;

const Kernel kernels[] = {
#define PAGEGRAD_KERNEL(operation, dtype, head_dim, target, name, function)                        \
    {Operation::operation, dtype, head_dim,                                                        \
     CpuTarget::target,    name,  reinterpret_cast<void (*)()>(&(function))},
#include "kernel_table.inc"
#undef PAGEGRAD_KERNEL
};

#if defined(__x86_64__)
bool has_f16c() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

bool matches(const Kernel &kernel, const char *name) {
    return !name || has_part(kernel.name, name) ||
           (kernel.is_dense() && !std::strcmp(name, "materialised"));
}

/// Operations on packed tiles, whose kernels in float32 serve all dtypes.
bool has_products(Operation operation) {
    return operation == Operation::forward || operation == Operation::forward_general ||
           operation == Operation::backward || operation == Operation::backward_general;
}

/// The materialised form of a backward; else the operation itself.
Operation dense_form(Operation operation) {
    return operation == Operation::backward           ? Operation::backward_dense
           : operation == Operation::backward_general ? Operation::backward_dense_general
                                                      : operation;
}

bool serves(const Kernel &kernel, Operation operation, pagegrad_dtype dtype) {
    if (kernel.operation == operation) {
        return kernel.dtype == dtype || (has_products(operation) && kernel.dtype == f32);
    }
    return kernel.operation == dense_form(operation) && kernel.dtype == dtype;
}

bool fits(const Kernel &kernel, const HeadDims &dims) {
    return kernel.head_dim == 0 || (kernel.head_dim == dims.key && kernel.head_dim == dims.value);
}

/// Fused before materialised, then best target, then specialised head_dim.
int rank(const Kernel &kernel) {
    return kernel.is_dense() * 100 + static_cast<int>(kernel.target) * 10 + (kernel.head_dim == 0);
}

const Kernel *best(Operation operation, pagegrad_dtype dtype, const HeadDims &dims,
                   const char *name, CpuTarget target = CpuTarget{}) {
    const Kernel *found = nullptr;
    for (const Kernel &kernel : kernels) {
        if (serves(kernel, operation, dtype) && matches(kernel, name) && fits(kernel, dims) &&
            kernel.target >= target && available(kernel.target) &&
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
    static const char *const names[] = {
        "backward",       "backward_general",  "backward_dense", "backward_dense_general",
        "forward",        "forward_general",   "pack_keys",      "transpose_keys",
        "pack_queries",   "transpose_queries", "widen",          "narrow",
        "forward_finish", "row_statistics",    "gather",         "scatter_add"};
    return names[static_cast<int>(operation)];
}

bool has_part(const std::string &name, const std::string &part) {
    return ("_" + name + "_").find("_" + part + "_") != std::string::npos;
}

const char *target_name(CpuTarget target) {
    static const char *const names[] = {"avx512bf16", "avx512", "avx2", "x86", "neon"};
    return names[static_cast<int>(target)];
}

bool available(CpuTarget target) {
#if defined(__x86_64__)
    // GCC's check includes the operating system's support for the registers.
    static const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    static const bool avx512 =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw");
    // Halide's target for bfloat16 is Zen 4: what its code may use beyond the above.
    static const bool avx512bf16 =
        avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512ifma") &&
        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bitalg") &&
        __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("gfni");
#else
    constexpr bool avx2 = false, avx512 = false, avx512bf16 = false;
#endif
    switch (target) {
    case CpuTarget::avx512bf16:
        return avx512bf16;
    case CpuTarget::avx512:
        return avx512;
    case CpuTarget::avx2:
        return avx2;
    case CpuTarget::x86:
    case CpuTarget::neon:
        return true;  // every processor that such a build runs on has it
    }
    return false;
}

const Kernel &choose_kernel(Operation operation, pagegrad_dtype dtype, const HeadDims &dims,
                            const char *name) {
    const Kernel *kernel = best(operation, dtype, dims, name);
    if (!kernel && name && best(operation, dtype, dims, nullptr)) {
        fail(PAGEGRAD_INVALID_ARGUMENT, "execution.kernel is \"", name,
             "\", expected the name of a ", operation_name(operation), " kernel for ",
             dtype_name(dtype), " that fits head_dim ", dims.key, " and value_head_dim ",
             dims.value, " and that this machine can run");
    }
    if (!kernel) {
        fail(PAGEGRAD_UNSUPPORTED, "no ", operation_name(operation), " kernel of this build for ",
             dtype_name(dtype), ", head_dim ", dims.key, " and value_head_dim ", dims.value);
    }
    return *kernel;
}

const Kernel &companion(const Kernel &kernel, Operation operation, pagegrad_dtype dtype,
                        const HeadDims &dims) {
    const Kernel *found = best(operation, dtype, dims, nullptr, kernel.target);
    if (!found) {
        fail(PAGEGRAD_INTERNAL, "no ", operation_name(operation), " kernel of this build for ",
             dtype_name(dtype), " beside ", kernel.name);
    }
    return *found;
}

}  // namespace pagegrad
