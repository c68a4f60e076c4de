/// The commands of the pagegrad program. Each adds its subcommand, and sets `action` when chosen.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <stdexcept>

namespace pagegrad {

/// Exit status of the program: 0 success, 1 failure, 2 bad usage or input.
using Action = std::function<int()>;

/// Bad usage or input, reported on stderr.
struct BadInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void add_run_command(CLI::App &program, Action &action);
void add_info_command(CLI::App &program, Action &action);
void add_demo_command(CLI::App &program, Action &action);
void add_bench_command(CLI::App &program, Action &action);

}  // namespace pagegrad
