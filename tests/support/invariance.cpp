#include "invariance.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace pagegrad::test {

namespace {

constexpr std::size_t alignment = 64;
constexpr unsigned char fill = 0xff;  ///< of a workspace: NaN

/// Runs a pass that must succeed.
Results run(PagedCall &call, Pass pass) {
    EXPECT_EQ((call.*pass)(), PAGEGRAD_OK) << call.message();
    return call.results();
}

Results run(const Problem &problem, const Options &options, Pass pass) {
    PagedCall call(problem, options);
    return run(call, pass);
}

/// One thread, last index first.
void reversed(void *calls, int32_t count, void (*body)(void *body_context, int32_t i),
              void *body_context) {
    ++*static_cast<std::atomic<int> *>(calls);
    for (int32_t i = count; i-- > 0;) {
        body(body_context, i);
    }
}

/// A thread for every index.
void all_at_once(void *calls, int32_t count, void (*body)(void *body_context, int32_t i),
                 void *body_context) {
    ++*static_cast<std::atomic<int> *>(calls);
    std::vector<std::thread> threads;
    for (int32_t i = 0; i < count; i++) {
        threads.emplace_back(body, body_context, i);
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
}

}  // namespace

Workspace::Workspace(std::size_t bytes) : bytes_(bytes), memory_(bytes + 3 * alignment, fill) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    begin_ = alignment + (alignment - address % alignment) % alignment;
}

bool Workspace::guards_intact() const {
    const auto intact = [](unsigned char byte) { return byte == fill; };
    const auto begin = memory_.begin() + static_cast<std::ptrdiff_t>(begin_);
    return std::all_of(memory_.begin(), begin, intact) &&
           std::all_of(begin + static_cast<std::ptrdiff_t>(bytes_), memory_.end(), intact);
}

void expect_same_bits(const Results &got, const Results &expected) {
    EXPECT_EQ(bits_of(got.out), bits_of(expected.out));
    EXPECT_EQ(bits_of(got.lse), bits_of(expected.lse));
    EXPECT_EQ(bits_of(got.dq), bits_of(expected.dq));
    EXPECT_EQ(bits_of(got.dk_pool), bits_of(expected.dk_pool));
    EXPECT_EQ(bits_of(got.dv_pool), bits_of(expected.dv_pool));
    EXPECT_EQ(bits_of(got.dalibi_slopes), bits_of(expected.dalibi_slopes));
    EXPECT_EQ(bits_of(got.dsinks), bits_of(expected.dsinks));
}

void expect_same_for_threads(const Problem &problem, const Options &options, Pass pass) {
    const Results expected = run(problem, options, pass);
    for (const int num_threads : {2, 3, 7}) {
        Options threaded = options;
        threaded.num_threads = num_threads;
        SCOPED_TRACE(num_threads);
        expect_same_bits(run(problem, threaded, pass), expected);
    }
}

void expect_same_for_placement(const Problem &problem, const Options &options, Pass pass) {
    const Results expected = run(problem, options, pass);
    for (const unsigned placement : {2U, 3U, 4U}) {
        Options shuffled = options;
        shuffled.placement = placement;
        SCOPED_TRACE(placement);
        expect_same_bits(run(problem, shuffled, pass), expected);
    }
}

void expect_same_for_unused_memory(const Problem &problem, const Options &options, Pass pass) {
    const Results expected = run(problem, options, pass);
    Options other = options;
    other.unused_value = 0;
    other.unused_id = 0;
    expect_same_bits(run(problem, other, pass), expected);
    other.unused_value = std::numeric_limits<float>::infinity();
    other.unused_id = std::numeric_limits<int32_t>::max();
    expect_same_bits(run(problem, other, pass), expected);
}

void expect_same_with_callers_threads(const Problem &problem, const Options &options, Pass pass) {
    const Results expected = run(problem, options, pass);
    for (const pagegrad_parallel_for parallel_for : {reversed, all_at_once}) {
        std::atomic<int> calls{0};
        PagedCall call(problem, options);
        call.execution.num_threads = 4;
        call.execution.parallel_for = parallel_for;
        call.execution.parallel_for_context = &calls;
        expect_same_bits(run(call, pass), expected);
        EXPECT_GT(calls.load(), 0);
    }
}

void expect_workspace_respected(const Problem &problem, const Options &options, Pass pass,
                                std::size_t bytes) {
    const Results expected = run(problem, options, pass);
    PagedCall call(problem, options);
    Workspace workspace(bytes);
    call.execution.workspace = workspace.data();
    call.execution.workspace_size = bytes;
    expect_same_bits(run(call, pass), expected);
    EXPECT_TRUE(workspace.guards_intact());
    if (bytes > 0) {
        const Results before = call.results();
        call.execution.workspace_size = bytes - 1;
        EXPECT_EQ((call.*pass)(), PAGEGRAD_WORKSPACE_TOO_SMALL);
        EXPECT_NE(std::string(call.message()).find(std::to_string(bytes)), std::string::npos)
            << call.message();
        expect_same_bits(call.results(), before);
    }
}

}  // namespace pagegrad::test
