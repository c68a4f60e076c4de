/// Threads of a call: pagegrad's own pool or the caller's.
#pragma once

#include "pagegrad/pagegrad.h"

#include <atomic>
#include <cstdint>
#include <functional>

namespace pagegrad {

/// More than any machine has. Each thread costs workspace.
constexpr int32_t max_threads = 4096;

class Threads {
public:
    explicit Threads(const pagegrad_execution &execution);

    int count() const {
        return count_;
    }

    /// Runs `work(thread)` on up to `count` threads; `thread` < count is unique among those
    /// running. Returns when all have returned.
    void run(const std::function<void(int thread)> &work) const;

    /// Runs `work(thread, task)` for every task in [0, tasks): tasks start in ascending order, so a
    /// task may wait for what earlier ones do.
    void for_each(int64_t tasks, const std::function<void(int thread, int64_t task)> &work) const;

private:
    int count_;
    pagegrad_parallel_for parallel_for;
    void *context;
};

/// For loops that wait for another thread.
class Backoff {
public:
    void wait();

private:
    int rounds = 0;
};

}  // namespace pagegrad
