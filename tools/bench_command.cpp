/// `pagegrad bench`: speed of the library's operations on the CPU, next to what the machine can do.
#include "benchmarks/geometries.h"
#include "benchmarks/runner.h"
#include "tools/commands.h"
#include "tools/option_values.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <vector>

namespace pagegrad {

namespace {

using namespace bench;

constexpr char examples[] = R"(Examples:
  The backward and forward in bfloat16 on one core:
    taskset -c 1 pagegrad bench --op backward,forward --dtype bf16 --json result.json

  Fused against materialised, for one geometry:
    pagegrad bench --query-len 1024 --head-dim 64 --schedule fused,materialised

Names of benchmarks and what the columns mean: benchmarks/README.md)";

/// A geometry instead of a suite; what is absent has a default.
struct GeometryOptions {
    int batch = 1, heads = 8, kv_heads = 2, head_dim = 128, query_len = 1024, block_size = 16;
    std::optional<int> kv_len;  ///< absent: query_len
    std::string mask = "causal";
    int64_t window_left = -1;
};

struct BenchOptions {
    std::string suite = "default", filter;
    std::vector<std::string> dtypes = {"f32"}, operations = {"backward"}, schedules = {"fused"};
    std::vector<int> threads = {1};
    GeometryOptions geometry;
    bool has_geometry = false;
    std::string kernel, json;
    int repetitions = 9;
    bool only_list = false;
};

Geometry make_geometry(const GeometryOptions &options) {
    if (options.heads % options.kv_heads != 0) {
        throw BadInput("--heads: value is " + std::to_string(options.heads) +
                       ", expected a multiple of --kv-heads, " + std::to_string(options.kv_heads));
    }
    Geometry geometry = equal_lengths(options.batch, options.query_len,
                                      options.kv_len.value_or(options.query_len), options.head_dim);
    geometry.heads = options.heads;
    geometry.kv_heads = options.kv_heads;
    geometry.block_size = options.block_size;
    geometry.mask = masks.at(options.mask);
    geometry.window_left = options.window_left;
    return geometry;
}

/// The kernels to force for an operation; an empty name is the best one.
std::vector<std::string> kernels(const BenchOptions &options, Operation operation) {
    if (!options.kernel.empty() || operation != Operation::backward) {
        return {options.kernel};
    }
    std::vector<std::string> kernels;
    kernels.reserve(options.schedules.size());
    for (const std::string &schedule : options.schedules) {
        kernels.push_back(schedule == "fused" ? "" : schedule);
    }
    return kernels;
}

/// All combinations of what the options ask for. Those of a batch are neighbours: it is made once.
std::vector<Job> all_jobs(const BenchOptions &options) {
    const std::vector<Geometry> geometries =
        options.has_geometry ? std::vector{make_geometry(options.geometry)} : suite(options.suite);
    std::vector<Job> jobs;
    for (const Geometry &geometry : geometries) {
        for (const std::string &dtype : options.dtypes) {
            for (const std::string &name : options.operations) {
                const Operation operation = operations.at(name);
                for (const std::string &kernel : kernels(options, operation)) {
                    for (const int threads : options.threads) {
                        jobs.push_back({geometry, operation, dtypes.at(dtype), kernel, threads});
                    }
                }
            }
        }
    }
    return jobs;
}

std::vector<Job> filtered(const std::vector<Job> &jobs, const std::string &filter) {
    try {
        const std::regex regex(filter);
        std::vector<Job> kept;
        std::copy_if(jobs.begin(), jobs.end(), std::back_inserter(kept),
                     [&](const Job &job) { return std::regex_search(job.name(), regex); });
        return kept;
    } catch (const std::regex_error &error) {
        throw BadInput("--filter: value is " + filter + ", expected a regular expression (" +
                       error.what() + ")");
    }
}

int measure(const BenchOptions &options) {
    const std::vector<Job> jobs = filtered(all_jobs(options), options.filter);
    if (jobs.empty()) {
        throw BadInput("--filter: value is " + options.filter +
                       ", expected part of a name that --list shows");
    }
    if (options.only_list) {
        for (const Job &job : jobs) {
            std::printf("%s\n", job.name().c_str());
        }
        return 0;
    }
    if (!options.json.empty() && !std::ofstream(options.json)) {
        throw BadInput("--json: " + options.json + " cannot be written, expected a file");
    }
    return run_jobs(jobs, options.repetitions, options.json) ? 0 : 1;
}

void add_selection_options(CLI::App *command, BenchOptions &options) {
    command->add_option("--filter", options.filter, "Only benchmarks with this regular expression");
    command->add_option("--dtype", options.dtypes, "Types of the tensors")
        ->delimiter(',')
        ->check(CLI::IsMember(names(dtypes)))
        ->capture_default_str();
    command->add_option("--op", options.operations, "Operations")
        ->delimiter(',')
        ->check(CLI::IsMember(names(operations)))
        ->capture_default_str();
    CLI::Option *schedules =
        command->add_option("--schedule", options.schedules, "Schedules of the backward")
            ->delimiter(',')
            ->check(CLI::IsMember({"fused", "materialised"}))
            ->capture_default_str();
    command
        ->add_option("--kernel", options.kernel,
                     "Kernel, by its name or a part of it; absent: the best")
        ->excludes(schedules);
    command->add_option("--threads", options.threads, "Numbers of threads")
        ->delimiter(',')
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
}

/// A suite, or the geometry of the other options.
void add_geometry_options(CLI::App *command, BenchOptions &options) {
    GeometryOptions &geometry = options.geometry;
    CLI::Option *suite = command->add_option("--suite", options.suite, "Geometries to measure")
                             ->check(CLI::IsMember(suite_names()))
                             ->capture_default_str();
    const auto add = [&](const std::string &name, auto &value, const std::string &description) {
        return command
            ->add_option_function<std::decay_t<decltype(value)>>(
                name,
                [&value, &options](const auto &given) {
                    value = given;
                    options.has_geometry = true;
                },
                description)
            ->excludes(suite)
            ->group("A geometry instead of a suite");
    };
    add("--batch", geometry.batch, "Sequences (1)")->check(CLI::PositiveNumber);
    add("--heads", geometry.heads, "Query heads (8)")->check(CLI::PositiveNumber);
    add("--kv-heads", geometry.kv_heads, "KV heads (2)")->check(CLI::PositiveNumber);
    add("--head-dim", geometry.head_dim, "Elements of a head (128)")->check(CLI::PositiveNumber);
    add("--query-len", geometry.query_len, "Queries of a sequence (1024)")
        ->check(CLI::PositiveNumber);
    add("--kv-len", geometry.kv_len, "Keys of a sequence (as the queries)")
        ->check(CLI::PositiveNumber);
    add("--block-size", geometry.block_size, "Keys of a block (16)")->check(CLI::PositiveNumber);
    add("--mask", geometry.mask, "causal (the last query sees every key) or none (causal)")
        ->check(CLI::IsMember({"causal", "none"}));
    add("--window-left", geometry.window_left, "Keys before its own that a query sees (all)")
        ->check(CLI::NonNegativeNumber);
}

}  // namespace

void add_bench_command(CLI::App &program, Action &action) {
    const auto options = std::make_shared<BenchOptions>();
    CLI::App *command = program.add_subcommand(
        "bench", "Measure the speed of the operations against the machine's peak");
    command->footer(examples);
    add_selection_options(command, *options);
    command->add_option("--repetitions", options->repetitions, "Measurements of each benchmark")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command->add_option("--json", options->json, "File for all measurements, in JSON");
    command->add_flag("--list", options->only_list, "Print the names of the benchmarks only");
    add_geometry_options(command, *options);
    command->callback([options, &action] { action = [options] { return measure(*options); }; });
}

}  // namespace pagegrad
