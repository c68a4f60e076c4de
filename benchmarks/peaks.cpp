#include "peaks.h"

#include "memory.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pagegrad::bench {

namespace {

constexpr int runs = 10;

/// Defines a function that updates independent accumulators `rounds` times: enough of them to hide
/// the latency of the instruction, few enough for the registers. Their start values differ, so that
/// the compiler cannot take two for one.
#define PAGEGRAD_DEFINE_CHAINS(name, attributes, Vector, chains, start, step)                      \
    attributes float name(long rounds) {                                                           \
        Vector sum[chains];                                                                        \
        for (int i = 0; i < (chains); i++) {                                                       \
            sum[i] = start(static_cast<float>(i));                                                 \
        }                                                                                          \
        for (long round = 0; round < rounds; round++) {                                            \
            _Pragma("GCC unroll 24") for (int i = 0; i < (chains); i++) {                          \
                sum[i] = step;                                                                     \
            }                                                                                      \
        }                                                                                          \
        for (int i = 1; i < (chains); i++) {                                                       \
            sum[0] += sum[i];                                                                      \
        }                                                                                          \
        return sum[0][0];                                                                          \
    }

struct Instruction {
    const char *name;
    bool available;
    int chains, flops;  ///< flops of one instruction
    float (*run)(long rounds);
};

#if defined(__x86_64__)

PAGEGRAD_DEFINE_CHAINS(run_fma512, __attribute__((target("avx512f"))), __m512, 24, _mm512_set1_ps,
                       _mm512_fmadd_ps(sum[i], _mm512_set1_ps(0.5F), _mm512_set1_ps(1.5F)))

// 16 registers: two hold the factors.
PAGEGRAD_DEFINE_CHAINS(run_fma256, __attribute__((target("avx2,fma"))), __m256, 12, _mm256_set1_ps,
                       _mm256_fmadd_ps(sum[i], _mm256_set1_ps(0.5F), _mm256_set1_ps(1.5F)))

PAGEGRAD_DEFINE_CHAINS(run_bf16_dot512, __attribute__((target("avx512f,avx512bf16"))), __m512, 24,
                       _mm512_set1_ps,
                       _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi16(0x3f80),
                                        (__m512bh)_mm512_set1_epi16(0x3a83)))

Instruction instruction(Roof roof) {
    switch (roof) {
    case Roof::fma512:
        return {"FMA 512-bit", __builtin_cpu_supports("avx512f") != 0, 24, 32, run_fma512};
    case Roof::fma256:
        return {"FMA 256-bit", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), 12,
                16, run_fma256};
    case Roof::bf16_dot512:
        return {"vdpbf16ps 512-bit", __builtin_cpu_supports("avx512bf16") != 0, 24, 64,
                run_bf16_dot512};
    case Roof::fma_neon:
        break;
    }
    return {"FMA NEON", false, 0, 0, nullptr};
}

constexpr Roof widest[] = {Roof::fma512, Roof::fma256};

void copy(void *to, const void *from, size_t bytes) {
    auto *target = static_cast<__m128i *>(to);
    const auto *source = static_cast<const __m128i *>(from);
    for (size_t i = 0; i < bytes / sizeof(__m128i); i++) {
        _mm_stream_si128(target + i, _mm_load_si128(source + i));
    }
    _mm_sfence();
}

#elif defined(__aarch64__)

PAGEGRAD_DEFINE_CHAINS(run_neon, , float32x4_t, 24, vdupq_n_f32,
                       vfmaq_f32(vdupq_n_f32(1.5F), sum[i], vdupq_n_f32(0.5F)))

Instruction instruction(Roof roof) {
    if (roof == Roof::fma_neon) {
        return {"FMA NEON", true, 24, 8, run_neon};
    }
    return {"FMA x86", false, 0, 0, nullptr};
}

constexpr Roof widest[] = {Roof::fma_neon};

/// The library's copy streams by itself.
void copy(void *to, const void *from, size_t bytes) {
    std::memcpy(to, from, bytes);
}

#endif

/// Seconds from the first start to the last end of body(0) ... body(threads - 1), which run at the
/// same time, body(0) in the calling thread.
double run_together(int threads, const std::function<void(int)> &body) {
    using Clock = std::chrono::steady_clock;
    std::vector<Clock::time_point> begin(threads), end(threads);
    std::atomic<int> waiting{threads};
    const auto work = [&](int thread) {
        for (waiting--; waiting > 0;) {
            std::this_thread::yield();
        }
        begin[thread] = Clock::now();
        body(thread);
        end[thread] = Clock::now();
    };
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; thread++) {
        others.emplace_back(work, thread);
    }
    work(0);
    for (std::thread &other : others) {
        other.join();
    }
    const std::chrono::duration<double> time =
        *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
    return time.count();
}

/// The best rate of some runs, in units of 1e9 a second. `work` is that of all threads.
double best_rate(int threads, double work, const std::function<void(int)> &body) {
    double best = 0;
    for (int run = 0; run < runs; run++) {
        best = std::max(best, work / run_together(threads, body) * 1e-9);
    }
    return best;
}

}  // namespace

const char *roof_name(Roof roof) {
    return instruction(roof).name;
}

Roof roof_of(const std::string &target, Dtype dtype) {
    if (target == "avx512bf16" && dtype == Dtype::BFloat16) {
        return Roof::bf16_dot512;
    }
    if (target == "avx2") {
        return Roof::fma256;
    }
    for (const Roof roof : widest) {
        if (instruction(roof).available) {
            return roof;
        }
    }
    return widest[0];
}

double peak_gflops(Roof roof, int threads) {
    const Instruction chosen = instruction(roof);
    if (!chosen.available) {
        return 0;
    }
    constexpr long rounds = 500000;
    const double work = 1.0 * chosen.chains * chosen.flops * rounds * threads;
    return best_rate(threads, work, [&](int) {
        volatile float result = chosen.run(rounds);  // must be computed
        static_cast<void>(result);
    });
}

double copy_gbytes(int threads) {
    constexpr size_t bytes = size_t{128} << 20;  // more than caches hold
    std::vector<Memory> from, to;
    for (int thread = 0; thread < threads; thread++) {
        from.emplace_back(bytes);
        to.emplace_back(bytes);
    }
    return best_rate(threads, 2.0 * bytes * threads,
                     [&](int thread) { copy(to[thread].data(), from[thread].data(), bytes); });
}

}  // namespace pagegrad::bench
