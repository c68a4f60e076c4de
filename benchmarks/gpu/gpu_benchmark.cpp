/// Speed of forward and backward on a GPU, timed by the GPU's own events.
///
///     gpu_benchmark [part of a geometry's name] [repetitions]
///
/// A call is all that it puts on the stream; for the backward that is zeroing, row statistics,
/// gradients and the conversion of dq. TFLOP/s count products of 2 D operations over visible pairs:
/// 5 in the backward, 2 in the forward.
#include "benchmarks/block_table.h"
#include "pagegrad/pagegrad.hpp"
#include "tools/gpu.h"
#include "tools/npy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace pagegrad;

struct Geometry {
    std::string name;
    int head_dim;
    std::vector<int32_t> query_lengths, kv_lengths;
    Mask mask = Mask::CausalBottomRight;
    int shared_keys = 0;
    int heads = 32, kv_heads = 8, block_size = 16;

    int64_t tokens() const {
        return std::accumulate(query_lengths.begin(), query_lengths.end(), int64_t{0});
    }
};

std::vector<Geometry> geometries() {
    std::vector<Geometry> list;
    for (const int head_dim : {128, 64}) {
        const std::string dim = "_D" + std::to_string(head_dim);
        for (const Mask mask : {Mask::CausalBottomRight, Mask::None}) {
            const std::string suffix = dim + (mask == Mask::None ? "_full" : "_causal");
            for (const auto &[batch, length] :
                 {std::pair(4, 2048), std::pair(2, 4096), std::pair(1, 8192)}) {
                const std::vector<int32_t> lengths(batch, length);
                list.push_back(
                    {"B" + std::to_string(batch) + "_S" + std::to_string(length) + suffix, head_dim,
                     lengths, lengths, mask});
            }
        }
        const std::vector<int32_t> many(64, 128);
        list.push_back({"B64_S128" + dim + "_causal", head_dim, many, many});
        for (const auto &[batch, queries, prefix] :
             {std::tuple(64, 128, 8192), std::tuple(64, 512, 2048), std::tuple(16, 1024, 4096)}) {
            list.push_back({"B" + std::to_string(batch) + "_Sq" + std::to_string(queries) +
                                "_prefix" + std::to_string(prefix) + dim,
                            head_dim, std::vector<int32_t>(batch, queries),
                            std::vector<int32_t>(batch, prefix + queries), Mask::CausalBottomRight,
                            prefix});
        }
    }
    for (const Mask mask : {Mask::CausalBottomRight, Mask::None}) {
        const std::vector<int32_t> lengths(2, 4096);
        const char *suffix = mask == Mask::None ? "_full" : "_causal";
        list.push_back({std::string("B2_S4096_D256") + suffix, 256, lengths, lengths, mask});
    }
    return list;
}

/// Normal numbers as bfloat16; a few thousand different ones are enough for timing.
DeviceMemory random_bfloat16(const Gpu &gpu, int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> values(4099);
    std::generate(values.begin(), values.end(), [&] { return float_to_bfloat16(normal(random)); });
    std::vector<uint16_t> elements(count);
    for (int64_t at = 0; at < count; at++) {
        elements[at] = values[at % static_cast<int64_t>(values.size())];
    }
    return {gpu, elements.data(), elements.size() * sizeof(uint16_t)};
}

DeviceMemory constant_float(const Gpu &gpu, int64_t count, float value) {
    const std::vector<float> elements(count, value);
    return {gpu, elements.data(), elements.size() * sizeof(float)};
}

class Batch {
public:
    Batch(const Gpu &gpu, const Geometry &g)
        : gpu(gpu), config(g.heads, g.kv_heads, g.head_dim, g.mask),
          table(g.kv_lengths, g.block_size, g.shared_keys), execution(gpu.execution()) {
        const int64_t queries = g.tokens() * g.heads * g.head_dim;
        const int64_t pool = table.num_blocks * g.block_size * g.kv_heads * g.head_dim;
        const auto half = [&](int64_t count, std::initializer_list<int64_t> shape) {
            memory.push_back(random_bfloat16(gpu, count, static_cast<unsigned>(memory.size())));
            return Tensor(memory.back().data(), Dtype::BFloat16, shape);
        };
        const auto single = [&](int64_t count, std::initializer_list<int64_t> shape, float value) {
            memory.push_back(constant_float(gpu, count, value));
            return Tensor(memory.back().data(), Dtype::Float32, shape);
        };
        const std::initializer_list<int64_t> query_shape{g.tokens(), g.heads, g.head_dim};
        const std::initializer_list<int64_t> pool_shape{table.num_blocks, g.block_size, g.kv_heads,
                                                        g.head_dim};
        kv = {half(pool, pool_shape), half(pool, pool_shape), table.ids.data(), table.max_blocks,
              g.kv_lengths.data()};
        // About the LSE of normal scores; the time does not depend on it.
        const float lse = std::log(static_cast<float>(g.kv_lengths[0])) + 0.5f;
        inputs = {half(queries, query_shape),
                  half(queries, query_shape),
                  half(queries, query_shape),
                  single(g.tokens() * g.heads, {g.tokens(), g.heads}, lse),
                  {}};
        gradients = {half(queries, query_shape), single(pool, pool_shape, 0),
                     single(pool, pool_shape, 0), PoolMode::Accumulate};
        const QueryRows rows{g.query_lengths.data(), nullptr,
                             static_cast<int32_t>(g.query_lengths.size())};
        plan = std::make_unique<Plan>(config, rows, kv);
        make_workspace();
    }

    void run_forward() {
        forward(*plan, inputs.q, kv, inputs.out, inputs.lse, execution);
    }
    void run_backward(bool ordered) {
        execution.unordered = !ordered;
        backward(*plan, inputs, kv, gradients, execution);
    }
    /// Operations of one product over all visible pairs.
    double flops() const {
        return 2.0 * static_cast<double>(plan->info().visible_pairs) * config.num_heads *
               config.head_dim;
    }
    size_t workspace_bytes() const {
        return execution.workspace_size;
    }

private:
    void make_workspace() {
        execution.unordered = 1;  // which needs more
        execution.workspace_size = backward_workspace(*plan, inputs, kv, gradients, execution);
        memory.emplace_back(gpu, execution.workspace_size);
        execution.workspace = memory.back().data();
    }

    const Gpu &gpu;
    AttentionConfig config;
    BlockTable table;
    std::vector<DeviceMemory> memory;
    PagedKv kv;
    BackwardInputs inputs;
    Gradients gradients;
    Execution execution;
    std::unique_ptr<Plan> plan;
};

/// Measures what runs on the stream between two points.
class Timer {
public:
    explicit Timer(const Gpu &gpu) : gpu(gpu) {
        gpu.call<void **, unsigned>("cuEventCreate", &begin, 0U);
        gpu.call<void **, unsigned>("cuEventCreate", &end, 0U);
    }
    ~Timer() {
        gpu.call<void *>("cuEventDestroy_v2", begin);
        gpu.call<void *>("cuEventDestroy_v2", end);
    }
    Timer(const Timer &) = delete;

    template<typename Work>
    float milliseconds(const Work &work) const {
        gpu.call<void *, cuda::Stream>("cuEventRecord", begin, gpu.stream());
        work();
        gpu.call<void *, cuda::Stream>("cuEventRecord", end, gpu.stream());
        gpu.synchronize();
        float taken = 0;
        gpu.call<float *, void *, void *>("cuEventElapsedTime", &taken, begin, end);
        return taken;
    }

private:
    const Gpu &gpu;
    void *begin = nullptr, *end = nullptr;
};

/// Median milliseconds of a call.
template<typename Call>
float measure(const Timer &timer, int repetitions, const Call &call) {
    constexpr int calls = 10;  // enough to keep the stream busy
    const auto run = [&] {
        for (int i = 0; i < calls; i++) {
            call();
        }
    };
    timer.milliseconds(run);
    std::vector<float> times(repetitions);
    std::generate(times.begin(), times.end(), [&] { return timer.milliseconds(run) / calls; });
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

void report(const Gpu &gpu, const Timer &timer, const Geometry &geometry, int repetitions) {
    Batch batch(gpu, geometry);
    std::printf("%-28s", geometry.name.c_str());
    const auto print = [&](float time, int products) {
        std::printf(" %9.3f %7.1f", time, products * batch.flops() / time * 1e-9);
        std::fflush(stdout);
    };
    print(measure(timer, repetitions, [&] { batch.run_forward(); }), 2);
    for (const bool ordered : {true, false}) {
        print(measure(timer, repetitions, [&] { batch.run_backward(ordered); }), 5);
    }
    std::printf(" %9.1f\n", static_cast<double>(batch.workspace_bytes()) / (1 << 20));
}

int run(int argc, char **argv) {
    const std::string part = argc > 1 ? argv[1] : "";
    const int repetitions = argc > 2 ? std::max(1, std::atoi(argv[2])) : 9;
    const Gpu gpu;
    const Timer timer(gpu);
    std::printf("bf16, H32/8, block 16: median ms, TFLOP/s\n%-28s %17s %17s %17s %9s\n", "",
                "forward", "backward", "unordered", "ws MiB");
    for (const Geometry &geometry : geometries()) {
        if (geometry.name.find(part) != std::string::npos) {
            report(gpu, timer, geometry, repetitions);
        }
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "gpu_benchmark: %s\n", error.what());
        return 1;
    }
}
