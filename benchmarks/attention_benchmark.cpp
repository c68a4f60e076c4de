/// Speed of forward and backward over geometries and schedules, with Google Benchmark.
///
///     build/bin/attention_benchmark --benchmark_filter=<regex> --benchmark_repetitions=9
///         [--benchmark_out=result.json]
///
/// Names: operation/geometry/schedule. Counters: GFLOP/s over visible pairs (5 products of 2 D
/// operations in the backward, 2 in the forward), the fraction of the FMA peak of the cores in use,
/// measured just before and after, and bytes of workspace.
#include "block_table.h"
#include "fma_peak.h"
#include "pagegrad/pagegrad.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace pagegrad;

struct Geometry {
    std::string name;
    int heads, kv_heads, head_dim, block_size;
    std::vector<int32_t> query_lengths, kv_lengths;
    Mask mask = Mask::CausalBottomRight;
    int shared_keys = 0;  ///< the first keys of all sequences are the same blocks
    int64_t window_left = -1;
};

std::vector<float> normal(int64_t count, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> values(count);
    std::generate(values.begin(), values.end(), [&] { return distribution(engine); });
    return values;
}

/// A batch with random data in randomly placed blocks.
class Batch {
public:
    explicit Batch(const Geometry &g)
        : config(g.heads, g.kv_heads, g.head_dim, g.mask), tokens(sum(g.query_lengths)),
          table(g.kv_lengths, g.block_size, g.shared_keys) {
        config.window_left = g.window_left;
        q = normal(tokens * g.heads * g.head_dim, 1);
        dout = normal(tokens * g.heads * g.head_dim, 2);
        k = normal(pool_size(g), 3);
        v = normal(pool_size(g), 4);
        dk.resize(k.size());
        dv.resize(v.size());
        out.resize(q.size());
        dq.resize(q.size());
        lse.resize(tokens * g.heads);
        const std::initializer_list<int64_t> pool{table.num_blocks, g.block_size, g.kv_heads,
                                                  g.head_dim};
        const std::initializer_list<int64_t> query{tokens, g.heads, g.head_dim};
        kv = {Tensor(k.data(), pool), Tensor(v.data(), pool), table.ids.data(), table.max_blocks,
              g.kv_lengths.data()};
        inputs = {Tensor(dout.data(), query),
                  Tensor(q.data(), query),
                  Tensor(out.data(), query),
                  Tensor(lse.data(), {tokens, g.heads}),
                  {}};
        gradients = {Tensor(dq.data(), query), Tensor(dk.data(), pool), Tensor(dv.data(), pool),
                     PoolMode::Accumulate};
        plan = std::make_unique<Plan>(
            config,
            QueryRows{g.query_lengths.data(), nullptr, static_cast<int32_t>(g.kv_lengths.size())},
            kv);
        run_forward({});
    }

    void run_forward(const Execution &execution) {
        forward(*plan, inputs.q, kv, inputs.out, inputs.lse, execution);
    }
    void run_backward(const Execution &execution) {
        backward(*plan, inputs, kv, gradients, execution);
    }
    /// Operations of one product over all visible pairs.
    double flops() const {
        return 2.0 * static_cast<double>(plan->info().visible_pairs) * config.num_heads *
               config.head_dim;
    }
    size_t backward_workspace(const Execution &execution) const {
        return pagegrad::backward_workspace(*plan, inputs, kv, gradients, execution);
    }
    size_t pool_bytes() const {
        return 4 * k.size() * sizeof(float);
    }

private:
    static int64_t sum(const std::vector<int32_t> &lengths) {
        return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    }
    int64_t pool_size(const Geometry &g) const {
        return table.num_blocks * g.block_size * g.kv_heads * g.head_dim;
    }

    AttentionConfig config;
    int64_t tokens;
    BlockTable table;
    std::vector<float> q, dout, k, v, dk, dv, out, dq, lse;
    PagedKv kv;
    BackwardInputs inputs;
    Gradients gradients;
    std::unique_ptr<Plan> plan;
};

void measure(benchmark::State &state, const Geometry &geometry, bool is_backward,
             const std::string &kernel, int threads) {
    Batch batch(geometry);
    Execution execution;
    execution.num_threads = threads;
    execution.kernel = kernel.empty() ? nullptr : kernel.c_str();
    const size_t bytes = batch.backward_workspace(execution);
    const std::unique_ptr<void, decltype(&std::free)> workspace(
        std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free);
    if (is_backward) {
        execution.workspace = workspace.get();
        execution.workspace_size = bytes;
    }
    const double peak_before = fma_peak_gflops();
    for (auto _ : state) {
        is_backward ? batch.run_backward(execution) : batch.run_forward(execution);
    }
    const double peak = std::max(peak_before, fma_peak_gflops()) * threads;
    const double gflop = batch.flops() * (is_backward ? 5 : 2) * 1e-9;
    using benchmark::Counter;
    state.counters["GFLOP/s"] = Counter(gflop, Counter::kIsIterationInvariantRate);
    state.counters["of_peak"] = Counter(gflop / peak, Counter::kIsIterationInvariantRate);
    state.counters["workspace"] = static_cast<double>(bytes);
    state.counters["pools"] = static_cast<double>(batch.pool_bytes());
}

Geometry equal_lengths(int batch, int length, int heads, int kv_heads, int head_dim, Mask mask) {
    const std::string name = "B" + std::to_string(batch) + "_S" + std::to_string(length) + "_H" +
                             std::to_string(heads) + "/" + std::to_string(kv_heads) + "_D" +
                             std::to_string(head_dim) + (mask == Mask::None ? "_full" : "_causal");
    const std::vector<int32_t> lengths(batch, length);
    return {name, heads, kv_heads, head_dim, 16, lengths, lengths, mask};
}

std::vector<Geometry> geometries() {
    const Mask causal = Mask::CausalBottomRight;
    std::vector<Geometry> list;
    for (const int head_dim : {64, 128}) {
        for (const int length : {512, 1000, 1024, 2048, 4096}) {
            list.push_back(equal_lengths(1, length, 8, 2, head_dim, causal));
        }
        list.push_back(equal_lengths(1, 1024, 8, 2, head_dim, Mask::None));
    }
    for (const int head_dim : {96, 192, 256}) {
        list.push_back(equal_lengths(1, 1024, 8, 2, head_dim, causal));
    }
    list.push_back(equal_lengths(1, 2048, 4, 1, 128, causal));
    list.push_back(equal_lengths(8, 128, 8, 2, 128, causal));
    list.push_back(equal_lengths(1, 512, 8, 8, 64, causal));
    Geometry decode{"B16_Sq1_Sk32768_H8/2_D128",    8, 2, 128, 16, std::vector<int32_t>(16, 1),
                    std::vector<int32_t>(16, 32768)};
    list.push_back(decode);
    Geometry mixed{"B64_S1to300_H8/2_D128", 8, 2, 128, 16, {}, {}};
    for (int i = 0; i < 64; i++) {
        mixed.query_lengths.push_back(1 + i * 37 % 300);
    }
    mixed.kv_lengths = mixed.query_lengths;
    list.push_back(mixed);
    Geometry prefix{
        "B64_Sq32_prefix4096_shared_H8/2_D128", 8, 2, 128, 16, std::vector<int32_t>(64, 32),
        std::vector<int32_t>(64, 4096 + 32)};
    prefix.shared_keys = 4096;
    list.push_back(prefix);
    prefix.name = "B64_Sq32_prefix4096_copied_H8/2_D128";
    prefix.shared_keys = 0;
    list.push_back(prefix);
    for (const int length : {4096, 16384}) {
        Geometry window = equal_lengths(1, length, 8, 2, 64, causal);
        window.name += "_window256";
        window.window_left = 255;
        list.push_back(window);
    }
    return list;
}

void register_all() {
    for (const Geometry &geometry : geometries()) {
        const auto add = [&](bool is_backward, const std::string &kernel, int threads) {
            const std::string name = std::string(is_backward ? "backward/" : "forward/") +
                                     geometry.name + "/" + (kernel.empty() ? "best" : kernel) +
                                     "/threads:" + std::to_string(threads);
            benchmark::RegisterBenchmark(name.c_str(), measure, geometry, is_backward, kernel,
                                         threads)
                ->Unit(benchmark::kMillisecond)
                ->UseRealTime();
        };
        for (const int threads : {1, 2}) {
            add(true, "", threads);
            add(false, "", threads);
        }
        add(true, "avx2", 1);
        if (geometry.query_lengths[0] * int64_t{geometry.kv_lengths[0]} <= 4096 * 4096) {
            add(true, "materialised", 1);
        }
    }
}

}  // namespace

int main(int argc, char **argv) {
    register_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
        return 1;
    }
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
