// Which kernel runs: the list of the build, the choice for a geometry, and choice by name.
#include "tests/support/problem.h"

#include <set>

namespace pagegrad::test {
namespace {

std::vector<pagegrad_kernel_info> kernel_list() {
    std::vector<pagegrad_kernel_info> list(pagegrad_kernel_count());
    for (std::size_t index = 0; index < list.size(); index++) {
        list[index].struct_size = sizeof(list[index]);
        EXPECT_EQ(pagegrad_get_kernel_info(static_cast<int32_t>(index), &list[index], nullptr),
                  PAGEGRAD_OK);
    }
    return list;
}

pagegrad_kernel_info choose(const std::string &operation, int head_dim, pagegrad_dtype dtype,
                            const char *kernel) {
    const Problem problem = make_problem(Geometry({1}).dim(head_dim));
    const PagedCall call(problem);
    pagegrad_execution execution = call.execution;
    execution.kernel = kernel;
    const char *name = "";
    pagegrad_error error{};
    EXPECT_EQ(
        pagegrad_choose_kernel(call.plan(), operation.c_str(), dtype, &execution, &name, &error),
        PAGEGRAD_OK)
        << error.message;
    for (const pagegrad_kernel_info &info : kernel_list()) {
        if (std::string(info.name) == name) {
            return info;
        }
    }
    ADD_FAILURE() << name << " is not in the kernel list";
    return {};
}

TEST(Dispatch, kernel_names_are_unique) {
    std::set<std::string> names;
    for (const pagegrad_kernel_info &info : kernel_list()) {
        EXPECT_TRUE(names.insert(info.name).second) << info.name;
    }
}

TEST(Dispatch, every_pass_has_a_kernel_for_any_head_dim) {
    for (const char *operation :
         {"forward", "backward", "backward_dense", "gather", "scatter_add"}) {
        EXPECT_FALSE(kernels({operation}, 511).empty()) << operation;
    }
}

TEST(Dispatch, chooses_fused_kernels_that_fit) {
    for (const char *operation : {"forward", "backward"}) {
        for (const int head_dim : {1, 64, 72, 128, 512}) {
            for (const KernelChoice &kernel : kernels({operation}, head_dim)) {
                const pagegrad_kernel_info chosen =
                    choose(operation, head_dim, kernel.dtype, nullptr);
                EXPECT_STREQ(chosen.operation, operation);
                EXPECT_TRUE(serves(chosen, kernel.dtype)) << chosen.name;
                EXPECT_TRUE(chosen.available);
                EXPECT_TRUE(chosen.head_dim == 0 || chosen.head_dim == head_dim) << chosen.name;
            }
        }
    }
}

TEST(Dispatch, obeys_full_names) {
    for (const KernelChoice &kernel : kernels({"backward", "backward_dense"}, 64)) {
        EXPECT_EQ(choose("backward", 64, kernel.dtype, kernel.name.c_str()).name, kernel.name);
    }
}

TEST(Dispatch, obeys_parts_of_names) {
    EXPECT_STREQ(choose("backward", 64, PAGEGRAD_FLOAT32, "materialised").operation,
                 "backward_dense");
    for (const pagegrad_kernel_info &info : kernel_list()) {
        if (info.available && info.operation == std::string("backward")) {
            const int head_dim = info.head_dim == 0 ? 511 : info.head_dim;
            const auto dtype = static_cast<pagegrad_dtype>(info.dtype);
            EXPECT_STREQ(choose("backward", head_dim, dtype, info.target).target, info.target);
        }
    }
}

TEST(Dispatch, refuses_kernels_of_another_head_dim) {
    for (const pagegrad_kernel_info &info : kernel_list()) {
        if (info.operation == std::string("backward") && info.head_dim != 0) {
            const Problem problem = make_problem(
                Geometry({1}).dim(72).stored_as(static_cast<pagegrad_dtype>(info.dtype)));
            Options options;
            options.kernel = info.name;
            PagedCall call(problem, options);
            EXPECT_EQ(call.backward(), PAGEGRAD_INVALID_ARGUMENT) << info.name;
        }
    }
}

TEST(Dispatch, refuses_kernels_of_another_dtype) {
    for (const pagegrad_kernel_info &kernel : kernel_list()) {
        const std::string operation = kernel.operation;
        if (operation != "backward" && operation != "backward_dense") {
            continue;
        }
        for (const pagegrad_dtype dtype : all_dtypes) {
            if (!serves(kernel, dtype)) {
                const Problem problem = make_problem(Geometry({1}).dim(64).stored_as(dtype));
                Options options;
                options.kernel = kernel.name;
                PagedCall call(problem, options);
                EXPECT_EQ(call.backward(), PAGEGRAD_INVALID_ARGUMENT)
                    << kernel.name << " for " << dtype_name(dtype);
                EXPECT_STRNE(call.message(), "");
            }
        }
    }
}

}  // namespace
}  // namespace pagegrad::test
