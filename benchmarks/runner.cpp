#include "runner.h"

#include "peaks.h"
#include "table.h"
#include "tools/option_values.h"

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>

namespace pagegrad::bench {

namespace {

/// Operations a byte below which memory, not arithmetic, bounds the time on current processors.
constexpr double memory_bound_intensity = 16;
/// Ceilings before and after that differ by more tell that something else ran.
constexpr double tolerated_drift = 0.05;

/// A ceiling of the machine, before and after a measurement.
struct Ceiling {
    double before = 0, after = 0;

    double best() const {
        return std::max(before, after);
    }
    double drift() const {
        return best() > 0 ? std::abs(after - before) / best() : 0;
    }
};

Execution execution_of(const Job &job) {
    Execution execution;
    execution.num_threads = job.threads;
    execution.kernel = job.kernel.empty() ? nullptr : job.kernel.c_str();
    return execution;
}

bool has_products(Operation operation) {
    return operation == Operation::backward || operation == Operation::forward;
}

/// Refuses a workspace that would have the machine swap.
void check_workspace(size_t bytes) {
    const double memory =
        static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
    if (static_cast<double>(bytes) > memory / 2) {
        throw std::runtime_error("a workspace of " + std::to_string(bytes >> 20) +
                                 " MiB is more than half of the machine's memory");
    }
}

/// A job that is ready to run: batch, workspace, kernel.
class PreparedJob {
public:
    PreparedJob(const Job &job, std::shared_ptr<Batch> with_batch)
        : job(job), batch(std::move(with_batch)), execution(execution_of(job)),
          workspace_bytes(batch->workspace(job.operation, execution)) {
        check_workspace(workspace_bytes);
        if (workspace_bytes > 0) {
            workspace = Memory(workspace_bytes);
            execution.workspace = workspace.data();
            execution.workspace_size = workspace_bytes;
        }
        if (has_products(job.operation)) {
            kernel = batch->kernel(job.operation, execution);
            roof = roof_of(kernel.target, job.dtype);
        }
        batch->run(job.operation, execution);  // so that no page or instruction is new
    }

    void time(benchmark::State &state) {
        const double flops = batch->flops(job.operation), bytes = batch->bytes(job.operation);
        const bool is_memory_bound = flops < memory_bound_intensity * bytes;
        const auto peak = [&] { return roof ? peak_gflops(*roof, job.threads) : 0; };
        const auto copy = [&] { return is_memory_bound ? copy_gbytes(job.threads) : 0; };
        Ceiling arithmetic, memory;
        memory.before = copy();
        arithmetic.before = peak();
        for (auto _ : state) {
            batch->run(job.operation, execution);
        }
        arithmetic.after = peak();
        memory.after = copy();
        count(state, "GFLOP/s", "of_peak", flops, arithmetic);
        count(state, "GB/s", "of_copy", bytes, memory);
        state.counters["peak_drift"] = std::max(arithmetic.drift(), memory.drift());
        state.counters["workspace_bytes"] = static_cast<double>(workspace_bytes);
        state.SetLabel(roof ? std::string(kernel.name) + ", peak: " + roof_name(*roof) : "");
    }

private:
    /// Counters of a rate, its ceiling and their ratio, if that ceiling was measured.
    static void count(benchmark::State &state, const std::string &rate, const char *fraction,
                      double work, const Ceiling &ceiling) {
        using benchmark::Counter;
        if (ceiling.best() > 0) {
            const auto flag = Counter::kIsIterationInvariantRate;
            state.counters[rate] = Counter(work * 1e-9, flag);
            state.counters["peak_" + rate] = ceiling.best();
            state.counters[fraction] = Counter(work * 1e-9 / ceiling.best(), flag);
        }
    }

    const Job &job;
    std::shared_ptr<Batch> batch;
    Execution execution;
    size_t workspace_bytes;
    Memory workspace;
    pagegrad_kernel_info kernel{};
    std::optional<Roof> roof;  ///< of operations with products
};

/// Google Benchmark calls for a job again and again; what is ready is kept.
class Preparation {
public:
    PreparedJob &prepare(const Job &job) {
        if (prepared_name != job.name()) {
            prepared.reset();
            prepared_name.clear();
            const std::string wanted = job.geometry.name() + name_of(dtypes, job.dtype);
            if (batch_name != wanted) {
                batch_name.clear();
                batch.reset();  // before the next one takes memory
                batch = std::make_shared<Batch>(job.geometry, job.dtype);
                batch_name = wanted;
            }
            prepared = std::make_unique<PreparedJob>(job, batch);
            prepared_name = job.name();
        }
        return *prepared;
    }

private:
    std::string batch_name, prepared_name;
    std::shared_ptr<Batch> batch;
    std::unique_ptr<PreparedJob> prepared;
};

/// Collects outcomes by the job's name; warns of a machine that was not quiet.
class Collector : public benchmark::BenchmarkReporter {
public:
    explicit Collector(std::map<std::string, Outcome> &outcomes) : outcomes(outcomes) {
    }

    bool ReportContext(const Context & /*context*/) override {
        return true;
    }

    void ReportRuns(const std::vector<Run> &runs) override {
        if (runs.front().run_type != Run::RT_Iteration) {
            return;  // mean and deviation are for the JSON file
        }
        double drift = 0;
        for (const Run &run : runs) {
            add(run);
            drift = std::max(drift, counter(run, "peak_drift"));
        }
        const std::string &name = runs.front().run_name.function_name;
        std::fprintf(stderr, "%s\n", name.c_str());
        if (drift > tolerated_drift) {
            std::fprintf(stderr,
                         "warning: %s: peaks before and after differ by %.0f %%: the machine was "
                         "not quiet\n",
                         name.c_str(), 100 * drift);
        }
    }

private:
    static double counter(const Run &run, const char *name) {
        const auto found = run.counters.find(name);
        return found == run.counters.end() ? 0 : found->second.value;
    }

    void add(const Run &run) {
        Outcome &outcome = outcomes[run.run_name.function_name];
        if (outcome.skipped.empty()) {
            outcome.repetitions.push_back(
                {run.GetAdjustedRealTime(), counter(run, "GFLOP/s"), counter(run, "peak_GFLOP/s"),
                 counter(run, "GB/s"), counter(run, "peak_GB/s"), counter(run, "workspace_bytes")});
        }
    }

    std::map<std::string, Outcome> &outcomes;
};

/// Google Benchmark takes its settings as a command line.
void initialize(int repetitions, const std::string &json) {
    static char program[] = "pagegrad";  // Google Benchmark keeps the pointer
    std::vector<std::string> arguments = {"--benchmark_min_time=0.1",
                                          "--benchmark_repetitions=" + std::to_string(repetitions)};
    if (!json.empty()) {
        arguments.push_back("--benchmark_out=" + json);
        arguments.emplace_back("--benchmark_out_format=json");
    }
    std::vector<char *> pointers = {program};
    for (std::string &argument : arguments) {
        pointers.push_back(argument.data());
    }
    int count = static_cast<int>(pointers.size());
    benchmark::Initialize(&count, pointers.data());
}

}  // namespace

std::string Job::schedule() const {
    return kernel.empty() && operation == Operation::backward ? "fused" : kernel;
}

std::string Job::name() const {
    const std::string which = schedule();
    return name_of(operations, operation) + "/" + name_of(dtypes, dtype) + "/" + geometry.name() +
           (which.empty() ? "" : "/" + which) + "/t" + std::to_string(threads);
}

bool run_jobs(const std::vector<Job> &jobs, int repetitions, const std::string &json) {
    initialize(repetitions, json);
    Preparation preparation;
    std::map<std::string, Outcome> outcomes;
    for (const Job &job : jobs) {
        const auto measure = [&preparation, &outcomes, &job](benchmark::State &state) {
            try {
                preparation.prepare(job).time(state);
            } catch (const std::exception &error) {
                outcomes[job.name()].skipped = error.what();
                state.SkipWithError(error.what());
            }
        };
        benchmark::RegisterBenchmark(job.name().c_str(), measure)
            ->Unit(benchmark::kMillisecond)
            ->UseRealTime();
    }
    Collector collector(outcomes);
    benchmark::RunSpecifiedBenchmarks(&collector, ".*");
    benchmark::ClearRegisteredBenchmarks();
    std::vector<Outcome> in_order;
    in_order.reserve(jobs.size());
    for (const Job &job : jobs) {
        in_order.push_back(outcomes[job.name()]);
    }
    print_table(jobs, in_order);
    return std::any_of(in_order.begin(), in_order.end(),
                       [](const Outcome &outcome) { return outcome.skipped.empty(); });
}

}  // namespace pagegrad::bench
