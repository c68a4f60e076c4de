/// `pagegrad info`: the kernels of the build, and what dispatch would choose.
#include "pagegrad/pagegrad.hpp"
#include "tools/commands.h"

#include <cstdio>
#include <memory>
#include <string>

namespace pagegrad {

namespace {

struct InfoOptions {
    int num_heads = 32, num_kv_heads = 8, head_dim = 128, block_size = 16, length = 1024;
};

void print_kernels() {
    std::printf("%-28s %-15s %-8s %-8s %-8s %s\n", "kernel", "operation", "dtype", "head_dim",
                "target", "runs here");
    for (int32_t index = 0; index < pagegrad_kernel_count(); index++) {
        pagegrad_kernel_info info{};
        info.struct_size = sizeof(info);
        pagegrad_error error{};
        internal::check(pagegrad_get_kernel_info(index, &info, &error), error);
        const std::string head_dim = info.head_dim == 0 ? "any" : std::to_string(info.head_dim);
        std::printf("%-28s %-15s %-8s %-8s %-8s %s\n", info.name, info.operation,
                    info.dtype == PAGEGRAD_FLOAT32 ? "f32" : "16-bit", head_dim.c_str(),
                    info.target, info.available ? "yes" : "no");
    }
}

/// A plan of one sequence, for dispatch to look at.
Plan example_plan(const InfoOptions &options) {
    const int32_t blocks =
        options.length / options.block_size + (options.length % options.block_size != 0);
    std::vector<int32_t> table(blocks);
    for (int32_t i = 0; i < blocks; i++) {
        table[i] = i;
    }
    const int32_t length = options.length;
    PagedKv kv;
    kv.k = Tensor(static_cast<const float *>(nullptr),
                  {blocks, options.block_size, options.num_kv_heads, options.head_dim});
    kv.v = kv.k;
    kv.block_table = table.data();
    kv.max_blocks = blocks;
    kv.kv_length = &length;
    return {AttentionConfig(options.num_heads, options.num_kv_heads, options.head_dim),
            QueryRows{&length, nullptr, 1}, kv};
}

int show(const InfoOptions &options) {
    std::printf("pagegrad %s\n\n", pagegrad_version());
    print_kernels();
    const Plan plan = example_plan(options);
    std::printf("\nfor %d heads, %d KV heads, head_dim %d, block size %d, float32:\n",
                options.num_heads, options.num_kv_heads, options.head_dim, options.block_size);
    for (const char *operation : {"forward", "backward"}) {
        const char *name = nullptr;
        pagegrad_error error{};
        internal::check(
            pagegrad_choose_kernel(plan.get(), operation, PAGEGRAD_FLOAT32, nullptr, &name, &error),
            error);
        std::printf("  %-8s  %s\n", operation, name);
    }
    return 0;
}

}  // namespace

void add_info_command(CLI::App &program, Action &action) {
    const auto options = std::make_shared<InfoOptions>();
    CLI::App *command = program.add_subcommand(
        "info", "List the kernels of this build and what dispatch chooses for a geometry");
    command->add_option("--heads", options->num_heads, "Query heads")->capture_default_str();
    command->add_option("--kv-heads", options->num_kv_heads, "KV heads")->capture_default_str();
    command->add_option("--head-dim", options->head_dim, "Elements of a head")
        ->capture_default_str();
    command->add_option("--block-size", options->block_size, "Keys of a block")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command->add_option("--length", options->length, "Tokens of a sequence")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command->callback([options, &action] { action = [options] { return show(*options); }; });
}

}  // namespace pagegrad
