/// The table at the end of a run.
#pragma once

#include "runner.h"

#include <string>
#include <vector>

namespace pagegrad::bench {

/// One repetition of a job. Rates and ceilings are of all threads; 0: not measured.
struct Repetition {
    double milliseconds = 0;
    double gflops = 0, peak_gflops = 0;
    double gbytes = 0, peak_gbytes = 0;
    double workspace_bytes = 0;
};

/// What came out of a job.
struct Outcome {
    std::string skipped;  ///< the message of what refused it
    std::vector<Repetition> repetitions;
};

/// Prints a row for each job and its outcome.
void print_table(const std::vector<Job> &jobs, const std::vector<Outcome> &outcomes);

}  // namespace pagegrad::bench
