/// `pagegrad demo`: gradients of real attention tensors through a shuffled pool, with every kernel,
/// checked against double precision and timed.
#include "pagegrad/pagegrad.hpp"
#include "tests/reference/attention_reference.h"
#include "tools/commands.h"
#include "tools/npy.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace pagegrad {

namespace {

// The data: examples/data/real_attention/README.md.
constexpr int num_heads = 9, num_kv_heads = 3, head_dim = 64, block_size = 16;
constexpr size_t prefix_of = 1, prefix_user = 3;  ///< sequences with the same first tokens
constexpr int32_t prefix_tokens = 64;

/// Largest error of a tensor, relative in the Frobenius norm. Float32 arithmetic throughout gives
/// up to 1.5e-6 on these tensors (the data's README); a factor of 5 is left for the order of the
/// sums.
constexpr double tolerance = 7.5e-6;

struct DemoOptions {
    std::string data = PAGEGRAD_DATA_DIR;
    int threads = 0;
};

std::vector<float> load(const DemoOptions &options, const std::string &name) {
    return to_float(read_npy(options.data + "/" + name + ".npy"));
}

/// A layer's tensors, with keys and values in a pool.
struct Layer {
    std::vector<int32_t> lengths, table;
    int32_t max_blocks = 0, num_blocks = 0;
    std::vector<float> q, dout, k_pool, v_pool;
    test::AttentionResult expected;

    int64_t tokens() const {
        return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    }
};

/// Gives every sequence its blocks, in random places; the common prefix is stored once.
std::vector<std::vector<int32_t>> place_blocks(Layer &layer) {
    std::vector<std::vector<int32_t>> blocks;
    for (size_t b = 0; b < layer.lengths.size(); b++) {
        blocks.emplace_back();
        for (int32_t key = 0; key < layer.lengths[b]; key += block_size) {
            const bool shared = b == prefix_user && key < prefix_tokens;
            blocks[b].push_back(shared ? blocks[prefix_of][key / block_size] : layer.num_blocks++);
        }
        layer.max_blocks = std::max(layer.max_blocks, static_cast<int32_t>(blocks[b].size()));
    }
    std::vector<int32_t> place(layer.num_blocks);
    std::iota(place.begin(), place.end(), 0);
    std::shuffle(place.begin(), place.end(), std::mt19937(1));
    layer.table.assign(blocks.size() * layer.max_blocks, -1);
    for (size_t b = 0; b < blocks.size(); b++) {
        for (int32_t &block : blocks[b]) {
            block = place[block];
        }
        std::copy(blocks[b].begin(), blocks[b].end(),
                  layer.table.begin() + static_cast<int64_t>(b) * layer.max_blocks);
    }
    return blocks;
}

/// Packed keys or values, [tokens, H_kv, D], into a pool. Slots that no sequence uses hold NaN.
std::vector<float> fill_pool(const Layer &layer, const std::vector<std::vector<int32_t>> &blocks,
                             const std::vector<float> &packed) {
    constexpr int64_t row = num_kv_heads * head_dim;
    std::vector<float> pool(layer.num_blocks * block_size * row, NAN);
    int64_t token = 0;
    for (size_t b = 0; b < blocks.size(); b++) {
        for (int32_t key = 0; key < layer.lengths[b]; key++, token++) {
            const int64_t to = blocks[b][key / block_size] * block_size + key % block_size;
            std::copy_n(packed.begin() + token * row, row, pool.begin() + to * row);
        }
    }
    return pool;
}

Layer load_layer(const DemoOptions &options, const std::string &name) {
    Layer layer;
    const std::vector<int32_t> starts = to_int(read_npy(options.data + "/cu_seqlens.npy"));
    for (size_t b = 0; b + 1 < starts.size(); b++) {
        layer.lengths.push_back(starts[b + 1] - starts[b]);
    }
    layer.q = load(options, name + "/q");
    layer.dout = load(options, name + "/do");
    const auto blocks = place_blocks(layer);
    layer.k_pool = fill_pool(layer, blocks, load(options, name + "/k"));
    layer.v_pool = fill_pool(layer, blocks, load(options, name + "/v"));

    const auto wide = [](const std::vector<float> &values) {
        return std::vector<double>(values.begin(), values.end());
    };
    test::AttentionInputs inputs;
    inputs.num_heads = num_heads;
    inputs.num_kv_heads = num_kv_heads;
    inputs.head_dim = head_dim;
    inputs.scale = 1 / std::sqrt(static_cast<double>(head_dim));
    inputs.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    inputs.query_length = inputs.kv_length = layer.lengths;
    inputs.blocks = blocks;
    inputs.block_size = block_size;
    inputs.q = wide(layer.q);
    inputs.dout = wide(layer.dout);
    inputs.k_pool = wide(layer.k_pool);
    inputs.v_pool = wide(layer.v_pool);
    layer.expected = attention_reference(inputs);
    return layer;
}

/// Relative errors, of a whole tensor and of its worst token. A token's is relative to the sums of
/// absolute values that rounding errors are proportional to (see test::Quantity): some tokens'
/// gradients are too small to count in the norm of a tensor, and the first query's dq is zero.
struct Errors {
    double tensor = 0, token = 0;

    /// Takes in a tensor with rows of `width` entries for each token.
    void add(const std::vector<float> &values, const test::Quantity &expected, size_t width) {
        double error = 0, norm = 0;
        for (size_t begin = 0; begin < values.size(); begin += width) {
            double token_error = 0, size = 0;
            for (size_t i = begin; i < begin + width; i++) {
                const double square = std::pow(values[i] - expected.value[i], 2);
                token_error += std::isnan(square) ? INFINITY : square;  // std::max loses NaN
                norm += std::pow(expected.value[i], 2);
                size += std::pow(expected.size[i], 2);
            }
            error += token_error;
            if (token_error > 0) {  // slots that no sequence uses have a size of 0
                token = std::max(token, std::sqrt(token_error / size));
            }
        }
        tensor = std::max(tensor, std::sqrt(error / norm));
    }
    bool tolerable() const {
        return tensor <= tolerance && token <= test::relative_tolerance;
    }
};

/// Milliseconds of the fastest of some calls.
template<typename Call>
double best_time(const Call &call) {
    double best = INFINITY;
    for (int repetition = 0; repetition < 5; repetition++) {
        const auto start = std::chrono::steady_clock::now();
        call();
        const std::chrono::duration<double, std::milli> time =
            std::chrono::steady_clock::now() - start;
        best = std::min(best, time.count());
    }
    return best;
}

/// Runs the kernels on one layer.
class LayerDemo {
public:
    LayerDemo(std::string name, const Layer &layer, int threads)
        : name(std::move(name)), layer(layer), out(layer.q.size()), dq(layer.q.size()),
          lse(layer.tokens() * num_heads), dk(layer.k_pool.size()), dv(layer.v_pool.size()),
          kv{pool_tensor(layer.k_pool), pool_tensor(layer.v_pool), layer.table.data(),
             layer.max_blocks, layer.lengths.data()},
          plan(AttentionConfig(num_heads, num_kv_heads, head_dim),
               QueryRows{layer.lengths.data(), nullptr, static_cast<int32_t>(layer.lengths.size())},
               kv) {
        execution.num_threads = threads;
        forward(plan, query_tensor(layer.q), kv, query_tensor(out), lse_tensor(), execution);
    }

    /// Whether the errors are within the tolerance.
    bool run(const pagegrad_kernel_info &kernel) {
        execution.kernel = kernel.name;
        const bool is_forward = std::string(kernel.operation) == "forward";
        const double time = best_time([&] { is_forward ? run_forward() : run_backward(); });
        const Errors errors = is_forward ? forward_errors() : backward_errors();
        const double flops = (is_forward ? 2.0 : 5.0) * 2 * num_heads * head_dim *
                             static_cast<double>(plan.info().visible_pairs);
        const bool right = errors.tolerable();
        std::printf("%-8s %-6s %-28s %10.1e %10.1e %10.3f %10.1f  %s\n", name.c_str(), "f32",
                    kernel.name, errors.tensor, errors.token, time, flops / time * 1e-6,
                    right ? "ok" : "TOO LARGE");
        return right;
    }

private:
    static Tensor pool_tensor(const std::vector<float> &pool) {
        constexpr int64_t block = block_size * num_kv_heads * head_dim;
        return {pool.data(),
                {static_cast<int64_t>(pool.size()) / block, block_size, num_kv_heads, head_dim}};
    }
    Tensor query_tensor(const std::vector<float> &rows) const {
        return {rows.data(), {layer.tokens(), num_heads, head_dim}};
    }
    Tensor lse_tensor() const {
        return {lse.data(), {layer.tokens(), num_heads}};
    }
    void run_forward() {
        forward(plan, query_tensor(layer.q), kv, query_tensor(out), lse_tensor(), execution);
    }
    void run_backward() {
        backward(
            plan,
            {query_tensor(layer.dout), query_tensor(layer.q), query_tensor(out), lse_tensor(), {}},
            kv, {query_tensor(dq), pool_tensor(dk), pool_tensor(dv), PoolMode::Overwrite},
            execution);
    }

    Errors forward_errors() const {
        Errors errors;
        errors.add(out, layer.expected.out, num_heads * head_dim);
        errors.add(lse, layer.expected.lse, num_heads);
        return errors;
    }
    Errors backward_errors() const {
        Errors errors;
        errors.add(dq, layer.expected.dq, num_heads * head_dim);
        errors.add(dk, layer.expected.dk_pool, num_kv_heads * head_dim);
        errors.add(dv, layer.expected.dv_pool, num_kv_heads * head_dim);
        return errors;
    }

    const std::string name;
    const Layer &layer;
    std::vector<float> out, dq, lse, dk, dv;
    const PagedKv kv;
    const Plan plan;
    Execution execution;
};

/// The forward and backward kernels that run here and fit the data.
std::vector<pagegrad_kernel_info> usable_kernels() {
    std::vector<pagegrad_kernel_info> kernels;
    for (int32_t index = 0; index < pagegrad_kernel_count(); index++) {
        pagegrad_kernel_info info{};
        info.struct_size = sizeof(info);
        pagegrad_error error{};
        internal::check(pagegrad_get_kernel_info(index, &info, &error), error);
        const std::string operation = info.operation;
        // The data are float32, in the host's memory.
        if (info.available && info.dtype == PAGEGRAD_FLOAT32 &&
            (info.head_dim == 0 || info.head_dim == head_dim) &&
            (operation == "forward" || operation == "backward" || operation == "backward_dense")) {
            kernels.push_back(info);
        }
    }
    return kernels;
}

int run_demo(const DemoOptions &options) {
    bool right = true;
    std::printf(
        "attention of SmolLM2-135M on real text: 5 sequences, %d heads, %d KV heads, D=%d;\n"
        "K and V in shuffled blocks of %d, two sequences share the blocks of a prefix\n\n",
        num_heads, num_kv_heads, head_dim, block_size);
    std::printf("%-8s %-6s %-28s %10s %10s %10s %10s\n", "layer", "dtype", "kernel", "max error",
                "token", "ms", "GFLOP/s");
    for (const std::string name : {"layer01", "layer18"}) {
        const Layer layer = load_layer(options, name);
        LayerDemo demo(name, layer, options.threads);
        for (const pagegrad_kernel_info &kernel : usable_kernels()) {
            right = demo.run(kernel) && right;
        }
    }
    std::printf("\nmax error: largest of the tensors' relative Frobenius errors against float64, "
                "at most %.1e\n"
                "token: the same of the worst token, relative to what it sums, at most %.1e\n",
                tolerance, test::relative_tolerance);
    return right ? 0 : 1;
}

}  // namespace

void add_demo_command(CLI::App &program, Action &action) {
    const auto options = std::make_shared<DemoOptions>();
    CLI::App *command = program.add_subcommand(
        "demo", "Gradients of real attention data with every kernel, checked and timed");
    command->add_option("--data", options->data, "Folder with the tensors")
        ->check(CLI::ExistingDirectory)
        ->capture_default_str();
    command->add_option("--threads", options->threads, "Threads, 0: one per core")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command->callback([options, &action] { action = [options] { return run_demo(*options); }; });
}

}  // namespace pagegrad
