#include "parallel.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pagegrad {

namespace {

/// Threads that live as long as the process, as many as any call has asked for. Several calls may
/// share them: the thread that calls takes part in its own job, so that every job makes progress.
class Pool {
public:
    static Pool &instance() {
        static Pool pool;
        return pool;
    }

    void run(int32_t count, void (*body)(void *, int32_t), void *context) {
        Job job{body, context, count};
        {
            const std::lock_guard<std::mutex> lock(mutex);
            while (static_cast<int32_t>(threads.size()) < count - 1 && add_thread()) {
            }
            jobs.push_back(&job);
        }
        job_posted.notify_all();
        std::unique_lock<std::mutex> lock(mutex);
        while (job.next < job.count) {
            take_part(job, lock);
        }
        job_done.wait(lock, [&] { return job.running == 0; });
    }

private:
    struct Job {
        void (*body)(void *, int32_t);
        void *context;
        int32_t count;
        int32_t next = 0, running = 0;
    };

    /// The lock is held. Where the system has no more threads, those that there are do all the
    /// work.
    bool add_thread() {
        try {
            threads.emplace_back([this] { serve(); });
            return true;
        } catch (const std::system_error &) {
            return false;
        }
    }

    ~Pool() {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            stopping = true;
        }
        job_posted.notify_all();
        for (std::thread &thread : threads) {
            thread.join();
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        while (true) {
            job_posted.wait(lock, [&] { return stopping || !jobs.empty(); });
            if (stopping) {
                return;
            }
            take_part(*jobs.front(), lock);
        }
    }

    /// Runs one index of a job that has some left. The lock is held before and after.
    void take_part(Job &job, std::unique_lock<std::mutex> &lock) {
        const int32_t index = job.next++;
        if (job.next == job.count) {
            jobs.erase(std::find(jobs.begin(), jobs.end(), &job));
        }
        job.running++;
        lock.unlock();
        job.body(job.context, index);
        lock.lock();
        if (--job.running == 0 && job.next == job.count) {
            job_done.notify_all();
        }
    }

    std::mutex mutex;
    std::condition_variable job_posted, job_done;
    std::deque<Job *> jobs;  ///< those with indices left
    std::vector<std::thread> threads;
    bool stopping = false;
};

}  // namespace

Threads::Threads(const pagegrad_execution &execution)
    : count_(
          execution.num_threads > 0
              ? execution.num_threads
              : std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, max_threads)),
      parallel_for(execution.parallel_for), context(execution.parallel_for_context) {
}

void Threads::run(const std::function<void(int)> &work) const {
    const auto body = [](void *function, int32_t thread) {
        (*static_cast<const std::function<void(int)> *>(function))(thread);
    };
    void *function = const_cast<std::function<void(int)> *>(&work);
    if (parallel_for) {
        parallel_for(context, count_, body, function);
    } else if (count_ == 1) {
        work(0);
    } else {
        Pool::instance().run(count_, body, function);
    }
}

void Threads::for_each(int64_t tasks, const std::function<void(int, int64_t)> &work) const {
    std::atomic<int64_t> next{0};
    run([&](int thread) {
        for (int64_t task = next++; task < tasks; task = next++) {
            work(thread, task);
        }
    });
}

void Backoff::wait() {
    if (++rounds < 256) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    } else {
        std::this_thread::yield();
    }
}

}  // namespace pagegrad
