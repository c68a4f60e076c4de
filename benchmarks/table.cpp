#include "table.h"

#include "tools/option_values.h"

#include <algorithm>
#include <cstdio>

namespace pagegrad::bench {

namespace {

/// The values of a member over repetitions, in ascending order.
std::vector<double> sorted(const std::vector<Repetition> &repetitions, double Repetition::*member) {
    std::vector<double> values;
    values.reserve(repetitions.size());
    for (const Repetition &repetition : repetitions) {
        values.push_back(repetition.*member);
    }
    std::sort(values.begin(), values.end());
    return values;
}

double median(const std::vector<double> &values) {
    const size_t middle = values.size() / 2;
    return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), value < 10 ? "%.3f" : "%.1f", value);
    return value == 0 ? "-" : text;
}

/// As in "78/75": the best and the median rate in percent of the highest peak.
std::string fraction(const std::vector<double> &rates, const std::vector<double> &peaks) {
    if (rates.back() == 0) {
        return "-";
    }
    char text[32];
    std::snprintf(text, sizeof(text), "%.0f/%.0f", 100 * rates.back() / peaks.back(),
                  100 * median(rates) / peaks.back());
    return text;
}

std::vector<std::string> figures(const std::vector<Repetition> &repetitions) {
    const auto times = sorted(repetitions, &Repetition::milliseconds);
    const auto gflops = sorted(repetitions, &Repetition::gflops);
    const auto peaks = sorted(repetitions, &Repetition::peak_gflops);
    const auto gbytes = sorted(repetitions, &Repetition::gbytes);
    const auto copies = sorted(repetitions, &Repetition::peak_gbytes);
    return {number(times.front()),
            number(median(times)),
            number(gflops.back()),
            number(peaks.back()),
            fraction(gflops, peaks),
            number(gbytes.back()),
            number(copies.back()),
            fraction(gbytes, copies),
            number(repetitions.front().workspace_bytes / (1 << 20))};
}

using Row = std::vector<std::string>;

/// Prints rows with columns as wide as what they hold.
void print(const std::vector<Row> &rows) {
    std::vector<size_t> widths;
    for (const Row &row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (size_t column = 0; column < row.size(); column++) {
            widths[column] = std::max(widths[column], row[column].size());
        }
    }
    for (const Row &row : rows) {
        for (size_t column = 0; column < row.size(); column++) {
            const bool is_text = column < 4;
            std::printf("%s%*s", column ? "  " : "",
                        static_cast<int>(widths[column]) * (is_text ? -1 : 1), row[column].c_str());
        }
        std::printf("\n");
    }
}

}  // namespace

void print_table(const std::vector<Job> &jobs, const std::vector<Outcome> &outcomes) {
    std::vector<Row> rows = {{"geometry", "op", "dtype", "schedule", "threads", "best ms",
                              "median ms", "GFLOP/s", "peak", "% best/median", "GB/s", "copy",
                              "% best/median", "workspace MiB"}};
    std::vector<std::string> skipped;
    for (size_t i = 0; i < jobs.size(); i++) {
        const Job &job = jobs[i];
        if (!outcomes[i].skipped.empty()) {
            skipped.push_back(job.name() + "\n  skipped: " + outcomes[i].skipped);
            continue;
        }
        const std::string schedule = job.schedule();
        Row row = {job.geometry.name(), name_of(operations, job.operation),
                   name_of(dtypes, job.dtype), schedule.empty() ? "-" : schedule,
                   std::to_string(job.threads)};
        for (const std::string &figure : figures(outcomes[i].repetitions)) {
            row.push_back(figure);
        }
        rows.push_back(row);
    }
    if (rows.size() > 1) {
        print(rows);
    }
    for (const std::string &line : skipped) {
        std::printf("%s\n", line.c_str());
    }
}

}  // namespace pagegrad::bench
