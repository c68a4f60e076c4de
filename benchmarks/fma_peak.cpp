#include "fma_peak.h"

#include <algorithm>
#include <chrono>

namespace pagegrad {

namespace {

constexpr int chains = 12;  // enough to hide the latency of 4 cycles at 2 a cycle
constexpr long rounds = 1000000;

/// The compiler may not use instructions that only some machines have, so they are written out.
void run_avx512() {
    asm volatile("mov %0, %%rcx\n vpxorq %%zmm0, %%zmm0, %%zmm0\n 1:\n"
                 "vfmadd231ps %%zmm0, %%zmm0, %%zmm2\n vfmadd231ps %%zmm0, %%zmm0, %%zmm3\n"
                 "vfmadd231ps %%zmm0, %%zmm0, %%zmm4\n vfmadd231ps %%zmm0, %%zmm0, %%zmm5\n"
                 "vfmadd231ps %%zmm0, %%zmm0, %%zmm6\n vfmadd231ps %%zmm0, %%zmm0, %%zmm7\n"
                 "vfmadd231ps %%zmm0, %%zmm0, %%zmm8\n vfmadd231ps %%zmm0, %%zmm0, %%zmm9\n"
                 "vfmadd231ps %%zmm0, %%zmm0, %%zmm10\n vfmadd231ps %%zmm0, %%zmm0, %%zmm11\n"
                 "vfmadd231ps %%zmm0, %%zmm0, %%zmm12\n vfmadd231ps %%zmm0, %%zmm0, %%zmm13\n"
                 "dec %%rcx\n jnz 1b\n" ::"r"(rounds)
                 : "rcx", "xmm0", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13");
}

void run_avx2() {
    asm volatile("mov %0, %%rcx\n vpxor %%ymm0, %%ymm0, %%ymm0\n 1:\n"
                 "vfmadd231ps %%ymm0, %%ymm0, %%ymm2\n vfmadd231ps %%ymm0, %%ymm0, %%ymm3\n"
                 "vfmadd231ps %%ymm0, %%ymm0, %%ymm4\n vfmadd231ps %%ymm0, %%ymm0, %%ymm5\n"
                 "vfmadd231ps %%ymm0, %%ymm0, %%ymm6\n vfmadd231ps %%ymm0, %%ymm0, %%ymm7\n"
                 "vfmadd231ps %%ymm0, %%ymm0, %%ymm8\n vfmadd231ps %%ymm0, %%ymm0, %%ymm9\n"
                 "vfmadd231ps %%ymm0, %%ymm0, %%ymm10\n vfmadd231ps %%ymm0, %%ymm0, %%ymm11\n"
                 "vfmadd231ps %%ymm0, %%ymm0, %%ymm12\n vfmadd231ps %%ymm0, %%ymm0, %%ymm13\n"
                 "dec %%rcx\n jnz 1b\n" ::"r"(rounds)
                 : "rcx", "xmm0", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13");
}

}  // namespace

double fma_peak_gflops() {
    const bool wide = __builtin_cpu_supports("avx512f");
    if (!wide && !__builtin_cpu_supports("fma")) {
        return 0;
    }
    double best = 0;
    for (int repetition = 0; repetition < 30; repetition++) {
        const auto start = std::chrono::steady_clock::now();
        wide ? run_avx512() : run_avx2();
        const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
        best = std::max(best, 2.0 * (wide ? 16 : 8) * chains * rounds / time.count() * 1e-9);
    }
    return best;
}

}  // namespace pagegrad
