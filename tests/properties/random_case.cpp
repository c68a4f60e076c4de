#include "random_case.h"

#include "tests/support/rounding.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <numeric>

namespace pagegrad::test {

namespace {

/// Multiply-adds of the reference, about: what a case may cost.
constexpr int64_t largest_work = 400'000;
/// Elements of a pool.
constexpr int64_t largest_pool = 200'000;

int64_t work_of(const Geometry &geometry) {
    int64_t pairs = 0;
    for (std::size_t b = 0; b < geometry.query_length.size(); b++) {
        pairs += int64_t{geometry.query_length[b]} * geometry.kv_length[b];
    }
    return pairs * geometry.num_heads * std::max(geometry.head_dim, geometry.value_head_dim);
}

int blocks_of(const Geometry &geometry, std::size_t sequence) {
    return (geometry.kv_length[sequence] + geometry.block_size - 1) / geometry.block_size;
}

int64_t pool_of(const Geometry &geometry) {
    int64_t blocks = 2;
    for (std::size_t b = 0; b < geometry.kv_length.size(); b++) {
        blocks += blocks_of(geometry, b);
    }
    return blocks * geometry.block_size * geometry.num_kv_heads *
           std::max(geometry.head_dim, geometry.value_head_dim);
}

void halve(std::vector<int32_t> &lengths) {
    for (int32_t &length : lengths) {
        length /= 2;
    }
}

/// Lengths where tiles and vectors begin and end are as likely as all others together.
int32_t random_length(Random &random, int limit) {
    if (random.chance(12)) {
        return 0;
    }
    if (random.chance(40)) {
        const int edge = random.one_of<int>({1, 2, 8, 16, 32, 64, 128, 256});
        return std::min(limit, std::max(0, edge + random.below(3) - 1));
    }
    return random.below(limit);
}

void choose_heads(Random &random, Geometry &geometry) {
    const int kv_heads = random.one_of<int>({1, 1, 2, 2, 3, 5});
    geometry.heads(kv_heads * random.one_of<int>({1, 1, 2, 3, 4, 7, 8, 16}), kv_heads);
    geometry.dim(random.chance(50) ? 1 + random.below(40)
                                   : random.one_of<int>({32, 64, 64, 80, 96, 128, 128, 129, 160,
                                                         192, 256, 333, 512}));
}

void choose_lengths(Random &random, Geometry &geometry) {
    const int sequences = random.one_of<int>({0, 1, 1, 2, 2, 3, 4, 6, 9});
    const bool equal = random.chance(20), decode = random.chance(15);
    for (int b = 0; b < sequences; b++) {
        const int32_t keys = random_length(random, 300);
        geometry.kv_length.push_back(keys);
        geometry.query_length.push_back(decode ? 1 : equal ? keys : random_length(random, 150));
    }
    geometry.block(random.one_of<int>({1, 2, 3, 5, 8, 16, 16, 17, 24, 64, 128, 256, 544, 1056}));
    while (work_of(geometry) > largest_work || pool_of(geometry) > largest_pool) {
        if (pool_of(geometry) > largest_pool && geometry.block_size > 16) {
            geometry.block_size /= 2;
        }
        halve(geometry.query_length);
        halve(geometry.kv_length);
    }
}

void choose_mask(Random &random, Geometry &geometry) {
    geometry.mask = random.one_of<pagegrad_mask>(
        {PAGEGRAD_MASK_NONE, PAGEGRAD_MASK_CAUSAL_TOP_LEFT, PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT});
    if (random.chance(40)) {
        const auto bound = [&random]() -> int64_t {
            if (random.chance(30)) {
                return -1;
            }
            return random.chance(5) ? std::numeric_limits<int64_t>::max() : random.below(40);
        };
        geometry.window_left = bound();
        geometry.window_right = bound();
    }
}

/// What happens to scores, and values of another width.
void choose_options(Random &random, Geometry &geometry) {
    if (random.chance(20)) {
        geometry.values(random.one_of<int>({1, 5, 16, 33, 64, 96, 128, 192, 512}));
    }
    if (random.chance(15)) {
        geometry.cap(random.one_of<float>({0.5f, 2, 30}));
    }
    geometry.with_slopes = random.chance(15);
    geometry.with_sinks = random.chance(25);
}

/// A table of its own for every sequence, with a common prefix, or with blocks drawn from a few, so
/// that sequences share them at different places and name some twice.
void choose_sharing(Random &random, Geometry &geometry) {
    const int kind = random.below(4);
    if (kind == 0) {
        geometry.prefix(1 + random.below(4));
    } else if (kind == 1) {
        const int available = 1 + random.below(6);
        for (std::size_t b = 0; b < geometry.kv_length.size(); b++) {
            std::vector<int32_t> row(blocks_of(geometry, b));
            for (int32_t &block : row) {
                block = random.below(available);
            }
            geometry.blocks.push_back(row);
        }
    }
}

void choose_memory(Random &random, Geometry &geometry) {
    geometry.form = random.one_of<Form>({Form::Packed, Form::PackedWithGaps, Form::Batched});
    geometry.layout = random.one_of<Layout>(
        {Layout::Contiguous, Layout::Padded, Layout::HeadMajor, Layout::Shuffled});
    geometry.data = random.chance(30) ? Data::Skewed : Data::Gaussian;
    geometry.with_dlse = random.chance(30);
    if (random.chance(25)) {
        geometry.scaled(random.one_of<float>({0, -0.5f, 1, 3, 1e-3f, -1e-20f}));
    }
    const auto inputs = random.one_of<pagegrad_dtype>(
        {PAGEGRAD_FLOAT32, PAGEGRAD_FLOAT32, PAGEGRAD_BFLOAT16, PAGEGRAD_FLOAT16});
    const auto that_or_float = [&] { return random.chance(50) ? inputs : PAGEGRAD_FLOAT32; };
    geometry.stored_as({inputs, that_or_float(), that_or_float()});
}

std::vector<std::string> kernel_names(std::vector<std::string> operations,
                                      const Geometry &geometry) {
    if (geometry.softcap > 0 || geometry.with_slopes) {
        for (std::string &operation : operations) {
            operation += "_general";
        }
    }
    const bool same = geometry.value_head_dim == 0 || geometry.value_head_dim == geometry.head_dim;
    std::vector<std::string> names;
    for (const KernelChoice &kernel : kernels(operations, same ? geometry.head_dim : 0)) {
        if (kernel.dtype == geometry.dtypes.inputs) {
            names.push_back(kernel.name);
        }
    }
    return names;
}

const std::vector<std::string> forward_operations = {"forward"};
const std::vector<std::string> backward_operations = {"backward", "backward_dense"};

void choose_call(Random &random, RandomCase &test) {
    Options &options = test.options;
    options.num_threads = random.one_of<int>({1, 1, 2, 3, 8});
    options.placement = 1 + random.below(1000);
    options.unused_value = random.one_of<float>(
        {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f});
    options.unused_id = random.one_of<int32_t>(
        {-1, 0, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()});
    options.with_lse = random.chance(70);
    options.with_head_gradients = random.chance(80);
    options.pool_mode = random.chance(50) ? PAGEGRAD_POOL_ACCUMULATE : PAGEGRAD_POOL_OVERWRITE;
    if (random.chance(75)) {
        test.forward_kernel = random.one_of(kernel_names(forward_operations, test.geometry));
        test.backward_kernel = random.one_of(kernel_names(backward_operations, test.geometry));
    }
}

// Words.

template<typename T>
std::string list(const std::vector<T> &values) {
    std::string text;
    for (const T value : values) {
        text += (text.empty() ? "" : ", ") + std::to_string(value);
    }
    return "{" + text + "}";
}

void print_mask(std::ostream &stream, const Geometry &geometry) {
    if (geometry.mask != PAGEGRAD_MASK_NONE) {
        stream << (geometry.mask == PAGEGRAD_MASK_CAUSAL_TOP_LEFT ? ".top_left()"
                                                                  : ".bottom_right()");
    }
    if (geometry.window_left >= 0 || geometry.window_right >= 0) {
        stream << ".window(" << geometry.window_left << ", " << geometry.window_right << ")";
    }
}

void print_memory(std::ostream &stream, const Geometry &geometry) {
    const char *const layouts[] = {"", ".padded()", ".head_major()", ".shuffled()"};
    const char *const forms[] = {"", ".gaps()", ".batched()"};
    if (geometry.prefix_blocks > 0) {
        stream << ".prefix(" << geometry.prefix_blocks << ")";
    }
    if (!geometry.blocks.empty()) {
        stream << ".table({";
        for (const std::vector<int32_t> &row : geometry.blocks) {
            stream << list(row) << ", ";
        }
        stream << "})";
    }
    stream << layouts[static_cast<int>(geometry.layout)] << forms[static_cast<int>(geometry.form)]
           << (geometry.data == Data::Skewed ? ".skewed()" : "")
           << (geometry.with_dlse ? ".dlse()" : "");
    if (geometry.scale) {
        stream << ".scaled(" << *geometry.scale << ")";
    }
    if (geometry.value_head_dim > 0) {
        stream << ".values(" << geometry.value_head_dim << ")";
    }
    if (geometry.softcap > 0) {
        stream << ".cap(" << geometry.softcap << ")";
    }
    stream << (geometry.with_slopes ? ".slopes()" : "") << (geometry.with_sinks ? ".sinks()" : "");
}

// Shrinking.

using Change = std::function<void(RandomCase &)>;

template<typename T>
void erase(std::vector<T> &values, std::size_t at) {
    if (at < values.size()) {
        values.erase(values.begin() + static_cast<std::ptrdiff_t>(at));
    }
}

/// Steps that make a case simpler, the largest first. Steps that change nothing are harmless.
std::vector<Change> simplifications(const RandomCase &test) {
    std::vector<Change> changes;
    const auto sequences = test.geometry.query_length.size();
    for (std::size_t b = 0; b < sequences; b++) {
        changes.emplace_back([b](RandomCase &c) {
            erase(c.geometry.query_length, b);
            erase(c.geometry.kv_length, b);
            erase(c.geometry.blocks, b);
        });
    }
    const Change defaults[] = {
        [](RandomCase &c) { c.forward_kernel = c.backward_kernel = ""; },
        [](RandomCase &c) { c.geometry.blocks.clear(); },
        [](RandomCase &c) { c.geometry.prefix_blocks = 0; },
        [](RandomCase &c) { c.geometry.dtypes = {}; },
        [](RandomCase &c) { c.geometry.dtypes.out = c.geometry.dtypes.dq = PAGEGRAD_FLOAT32; },
        [](RandomCase &c) { c.geometry.form = Form::Packed; },
        [](RandomCase &c) { c.geometry.layout = Layout::Contiguous; },
        [](RandomCase &c) { c.geometry.data = Data::Gaussian; },
        [](RandomCase &c) { c.geometry.with_dlse = false; },
        [](RandomCase &c) { c.geometry.scale.reset(); },
        [](RandomCase &c) { c.geometry.value_head_dim = 0; },
        [](RandomCase &c) { c.geometry.softcap = 0; },
        [](RandomCase &c) { c.geometry.with_slopes = false; },
        [](RandomCase &c) { c.geometry.with_sinks = false; },
        [](RandomCase &c) { c.geometry.mask = PAGEGRAD_MASK_NONE; },
        [](RandomCase &c) { c.geometry.window_left = -1; },
        [](RandomCase &c) { c.geometry.window_right = -1; },
        [](RandomCase &c) { c.geometry.num_heads = c.geometry.num_kv_heads; },
        [](RandomCase &c) { c.geometry.heads(c.geometry.num_heads / c.geometry.num_kv_heads, 1); },
        [](RandomCase &c) { c.geometry.head_dim = (c.geometry.head_dim + 1) / 2; },
        [](RandomCase &c) { c.geometry.head_dim = std::max(1, c.geometry.head_dim - 1); },
        [](RandomCase &c) { c.options.num_threads = 1; },
        [](RandomCase &c) { c.options.placement = 1; },
        [](RandomCase &c) { c.options.unused_value = Options().unused_value; },
        [](RandomCase &c) { c.options.unused_id = Options().unused_id; },
        [](RandomCase &c) { c.options.with_lse = true; },
        [](RandomCase &c) { c.options.pool_mode = PAGEGRAD_POOL_OVERWRITE; },
    };
    changes.insert(changes.end(), std::begin(defaults), std::end(defaults));
    for (std::size_t b = 0; b < sequences; b++) {
        changes.emplace_back([b](RandomCase &c) { c.geometry.query_length[b] /= 2; });
        changes.emplace_back([b](RandomCase &c) { c.geometry.kv_length[b] /= 2; });
        changes.emplace_back([b](RandomCase &c) {
            c.geometry.query_length[b] = std::max(0, c.geometry.query_length[b] - 1);
        });
        changes.emplace_back([b](RandomCase &c) {
            c.geometry.kv_length[b] = std::max(0, c.geometry.kv_length[b] - 1);
        });
    }
    return changes;
}

std::string words(const RandomCase &test) {
    std::ostringstream stream;
    stream << test;
    return stream.str();
}

/// Whether its kernels fit it: else it would fail for another reason.
bool has_its_kernels(const RandomCase &test) {
    const auto fits = [&](const std::string &name, const std::vector<std::string> &operations) {
        const std::vector<std::string> all = kernel_names(operations, test.geometry);
        return name.empty() || std::find(all.begin(), all.end(), name) != all.end();
    };
    return fits(test.forward_kernel, forward_operations) &&
           fits(test.backward_kernel, backward_operations);
}

volatile std::sig_atomic_t watched_seed;

void name_seed_and_exit(int /*signal*/) {
    std::fprintf(stderr, "seed %ld hangs\n", static_cast<long>(watched_seed));
    std::_Exit(1);
}

uint64_t number_from_environment(const char *name, uint64_t otherwise) {
    const char *text = std::getenv(name);
    return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace

RandomCase random_case(uint64_t seed) {
    Random random(seed);
    RandomCase test;
    choose_heads(random, test.geometry);
    choose_options(random, test.geometry);
    choose_lengths(random, test.geometry);
    choose_mask(random, test.geometry);
    choose_sharing(random, test.geometry);
    choose_memory(random, test.geometry);
    choose_call(random, test);
    return test;
}

std::ostream &operator<<(std::ostream &stream, const RandomCase &test) {
    const Geometry &geometry = test.geometry;
    stream << "Geometry(" << list(geometry.query_length) << ", " << list(geometry.kv_length)
           << ").dim(" << geometry.head_dim << ").heads(" << geometry.num_heads << ", "
           << geometry.num_kv_heads << ").block(" << geometry.block_size << ")";
    print_mask(stream, geometry);
    print_memory(stream, geometry);
    const Dtypes &dtypes = geometry.dtypes;
    const Options &options = test.options;
    return stream << "\n  inputs " << dtype_name(dtypes.inputs) << ", out "
                  << dtype_name(dtypes.out) << ", dq " << dtype_name(dtypes.dq) << "\n  kernels \""
                  << test.forward_kernel << "\" and \"" << test.backward_kernel << "\", "
                  << options.num_threads << " threads, placement " << options.placement
                  << ", unused slots " << options.unused_value << ", unused ids "
                  << options.unused_id << (options.with_lse ? ", with" : ", without") << " lse, "
                  << (options.with_head_gradients ? "" : "without gradients of heads, ")
                  << (options.pool_mode == PAGEGRAD_POOL_ACCUMULATE ? "accumulate" : "overwrite");
}

RandomCase shrunk(RandomCase test, const std::function<bool(const RandomCase &)> &fails) {
    for (bool simpler = true; simpler;) {
        simpler = false;
        for (const Change &change : simplifications(test)) {
            RandomCase candidate = test;
            change(candidate);
            if (words(candidate) != words(test) && has_its_kernels(candidate) && fails(candidate)) {
                test = candidate;
                simpler = true;
                break;
            }
        }
    }
    return test;
}

Watchdog::Watchdog(uint64_t seed) {
    constexpr unsigned seconds = 120;
    watched_seed = static_cast<std::sig_atomic_t>(seed);
    std::signal(SIGALRM, name_seed_and_exit);
    alarm(seconds);
}

Watchdog::~Watchdog() {
    alarm(0);
}

Seeds seeds(uint64_t default_count) {
    const uint64_t first = number_from_environment("PAGEGRAD_FIRST_SEED", 1);
    const uint64_t count = number_from_environment("PAGEGRAD_CASES", default_count);
    std::cout << "seeds " << first << " to " << first + count - 1
              << "; PAGEGRAD_FIRST_SEED=<seed> PAGEGRAD_CASES=1 repeats one\n";
    return {first, first + count};
}

}  // namespace pagegrad::test
