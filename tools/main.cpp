#include "pagegrad/pagegrad.hpp"
#include "tools/commands.h"

#include <cstdio>

namespace {

int run_program(int argc, char **argv) {
    CLI::App program("Gradients through a paged KV cache", "pagegrad");
    program.set_version_flag("--version", pagegrad_version());
    program.require_subcommand(1);
    pagegrad::Action action;
    pagegrad::add_run_command(program, action);
    pagegrad::add_info_command(program, action);
    pagegrad::add_demo_command(program, action);
    pagegrad::add_bench_command(program, action);
    try {
        program.parse(argc, argv);
    } catch (const CLI::ParseError &error) {
        return program.exit(error) == 0 ? 0 : 2;
    }
    return action();
}

int fail(const std::exception &error, int status) {
    std::fprintf(stderr, "pagegrad: %s\n", error.what());
    return status;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        return run_program(argc, argv);
    } catch (const pagegrad::BadInput &error) {
        return fail(error, 2);
    } catch (const pagegrad::Error &error) {
        return fail(error, error.status() == PAGEGRAD_INVALID_ARGUMENT ? 2 : 1);
    } catch (const std::exception &error) {
        return fail(error, 1);
    }
}
