/// Runs benchmarks with Google Benchmark and reports them.
#pragma once

#include "batch.h"

#include <string>
#include <vector>

namespace pagegrad::bench {

/// What is timed.
struct Job {
    Geometry geometry;
    Operation operation = Operation::backward;
    Dtype dtype = Dtype::Float32;
    std::string kernel;  ///< name or part of it, as in pagegrad_execution; empty: the best
    int threads = 1;

    /// "materialised", another forced kernel, or "fused"; empty for operations with one schedule.
    std::string schedule() const;
    /// As in "backward/f32/B1_H8_2_S1024_D64_blk16_causal/fused/t1".
    std::string name() const;
};

/// Measures each and prints a table; Google Benchmark's JSON goes to the file `json` unless that is
/// empty. Returns whether anything was measured: the library may refuse all.
bool run_jobs(const std::vector<Job> &jobs, int repetitions, const std::string &json);

}  // namespace pagegrad::bench
