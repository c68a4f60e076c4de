/// `pagegrad run`: the forward or backward of tensors in .npy files.
#include "pagegrad/pagegrad.hpp"
#include "tools/commands.h"
#include "tools/npy.h"
#include "tools/option_values.h"
#include "tools/placement.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace pagegrad {

namespace {

const std::map<std::string, pagegrad_device> devices = {{"cpu", PAGEGRAD_CPU},
                                                        {"cuda", PAGEGRAD_CUDA}};

constexpr char examples[] = R"(Examples:
  Gradients of packed sequences that start at the tokens in starts.npy:
    pagegrad run --op backward --q q.npy --k k.npy --v v.npy --dout dout.npy \
        --cu-seqlens-q starts.npy --mask causal --output gradients

  The forward of three sequences over a pool of blocks:
    pagegrad run --op forward --q q.npy --k k_pool.npy --v v_pool.npy \
        --block-table table.npy --cu-seqlens-q starts.npy --kv-lens 37,64,12 --output result)";

struct RunOptions {
    std::string op, q, dout, k, v, out, lse;
    std::string alibi_slopes, sinks;
    std::string block_table, cu_seqlens_q, cu_seqlens_k, kv_lens;
    int block_size = 16, threads = 0;
    std::string mask = "causal", dtype = "f32", device = "cpu", ordered = "on";
    std::optional<float> scale;
    float softcap = 0;
    int64_t window_left = -1, window_right = -1;
    std::string kernel, output;

    bool is_backward() const {
        return op == "backward";
    }
    /// The operation as pagegrad_choose_kernel names it.
    std::string operation() const {
        return softcap > 0 || !alibi_slopes.empty() ? op + "_general" : op;
    }
};

std::string to_string(const std::vector<int64_t> &shape) {
    std::string text;
    for (const int64_t size : shape) {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
}

int64_t elements(const std::vector<int64_t> &shape) {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

[[noreturn]] void refuse(const std::string &option, const std::string &found,
                         const std::string &expected) {
    throw BadInput(option + ": " + found + ", expected " + expected);
}

int32_t checked_int(const std::string &option, int64_t value) {
    if (value > std::numeric_limits<int32_t>::max()) {
        refuse(option, "size is " + std::to_string(value), "at most 2147483647");
    }
    return static_cast<int32_t>(value);
}

/// Reads the file of an option and converts its elements; errors name the option.
template<typename Convert>
auto read(const std::string &option, const std::string &path, NpyArray &array,
          const Convert &convert) {
    try {
        array = read_npy(path);
        return convert(array);
    } catch (const std::runtime_error &error) {
        throw BadInput(option + ": " + error.what());
    }
}

/// A tensor in memory, in the element type that the library is called with.
class Operand {
public:
    Operand() = default;
    Operand(std::vector<int64_t> shape, Dtype dtype)
        : shape(std::move(shape)), dtype(dtype), values(elements(this->shape)) {
        round();
    }
    Operand(std::vector<int64_t> shape, Dtype dtype, std::vector<float> elements)
        : shape(std::move(shape)), dtype(dtype), values(std::move(elements)) {
        round();
    }

    /// What the library reads or writes.
    Tensor view() const {
        Tensor tensor;
        tensor.data =
            const_cast<void *>(dtype == Dtype::Float32 ? static_cast<const void *>(values.data())
                                                       : static_cast<const void *>(bits.data()));
        tensor.dtype = static_cast<int32_t>(dtype);
        tensor.rank = static_cast<int32_t>(shape.size());
        int64_t step = 1;
        for (int i = tensor.rank - 1; i >= 0; i--) {
            tensor.shape[i] = shape[i];
            tensor.stride[i] = step;
            step *= shape[i];
        }
        return tensor;
    }

    /// The elements as float32.
    std::vector<float> to_float() const {
        if (dtype == Dtype::Float32) {
            return values;
        }
        std::vector<float> wide(bits.size());
        std::transform(bits.begin(), bits.end(), wide.begin(),
                       dtype == Dtype::Float16 ? half_to_float : bfloat16_to_float);
        return wide;
    }

    std::vector<int64_t> shape;

private:
    void round() {
        if (dtype != Dtype::Float32) {
            bits.resize(values.size());
            std::transform(values.begin(), values.end(), bits.begin(),
                           dtype == Dtype::Float16 ? float_to_half : float_to_bfloat16);
            values.clear();
        }
    }

    Dtype dtype = Dtype::Float32;
    std::vector<float> values;   ///< of float32
    std::vector<uint16_t> bits;  ///< of the 16-bit types
};

/// Keys and values of the batch as pools, and where each sequence's keys are.
struct KvPools {
    bool is_packed = false;
    std::vector<int64_t> k_file_shape, v_file_shape;
    Operand k, v;
    std::vector<int32_t> lengths, table;
    int32_t max_blocks = 0;
    int64_t block_size = 0;

    PagedKv view() const {
        return {k.view(), v.view(), table.data(), max_blocks, lengths.data()};
    }
};

struct Batch {
    Operand q;
    Operand alibi_slopes, sinks;  ///< without a shape where there are none
    bool is_half = false;         ///< whether q's file holds float16
    std::vector<int32_t> query_lengths;
    KvPools kv;

    HeadTerms terms() const {
        return {alibi_slopes.shape.empty() ? Tensor() : alibi_slopes.view(),
                sinks.shape.empty() ? Tensor() : sinks.view()};
    }
    /// Shape of out and dout.
    std::vector<int64_t> out_shape() const {
        std::vector<int64_t> shape = q.shape;
        shape.back() = kv.v.shape.back();
        return shape;
    }
    int32_t num_sequences() const {
        return static_cast<int32_t>(query_lengths.size());
    }
};

std::vector<int32_t> read_ints(const std::string &option, const std::string &path,
                               std::vector<int64_t> &shape, size_t rank) {
    NpyArray array;
    std::vector<int32_t> values = read(option, path, array, to_int);
    shape = array.shape;
    if (shape.size() != rank) {
        refuse(option, "shape is " + to_string(shape), "rank " + std::to_string(rank));
    }
    return values;
}

/// Lengths of the sequences that start at the tokens in a file.
std::vector<int32_t> read_cu_seqlens(const std::string &option, const std::string &path) {
    std::vector<int64_t> shape;
    const std::vector<int32_t> starts = read_ints(option, path, shape, 1);
    if (starts.empty() || starts.front() != 0) {
        refuse(option, starts.empty() ? "is empty" : "[0] is " + std::to_string(starts.front()),
               "a first value of 0");
    }
    std::vector<int32_t> lengths;
    for (size_t b = 0; b + 1 < starts.size(); b++) {
        if (starts[b + 1] < starts[b]) {
            refuse(option,
                   "[" + std::to_string(b + 1) + "] is " + std::to_string(starts[b + 1]) +
                       " after " + std::to_string(starts[b]),
                   "values that do not decrease");
        }
        lengths.push_back(starts[b + 1] - starts[b]);
    }
    return lengths;
}

/// Lengths in a file, or in a list as in "37,64".
std::vector<int32_t> read_lengths(const std::string &option, const std::string &text) {
    if (text.find_first_not_of("-0123456789,") != std::string::npos) {
        std::vector<int64_t> shape;
        return read_ints(option, text, shape, 1);
    }
    std::vector<int32_t> lengths;
    const char *end = text.data() + text.size();
    for (const char *item = text.data(); item <= end;) {
        int32_t length = 0;
        const auto [rest, error] = std::from_chars(item, end, length);
        if (error != std::errc() || (rest != end && *rest != ',')) {
            refuse(option, "value is " + text, "an .npy file, or lengths as in 37,64");
        }
        lengths.push_back(length);
        item = rest + 1;
    }
    return lengths;
}

void check_total(const std::string &option, const std::vector<int32_t> &lengths, int64_t tokens,
                 const std::string &tensor) {
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    if (total != tokens) {
        refuse(option, "lengths add up to " + std::to_string(total),
               std::to_string(tokens) + ", the tokens of " + tensor);
    }
}

std::vector<int32_t> query_lengths(const RunOptions &options, const std::vector<int64_t> &shape) {
    if (shape.size() == 4) {
        if (!options.cu_seqlens_q.empty()) {
            refuse("--cu-seqlens-q", "given with q of shape " + to_string(shape),
                   "only with q of shape [tokens, H, D]");
        }
        return std::vector<int32_t>(checked_int("--q", shape[0]), checked_int("--q", shape[1]));
    }
    if (options.cu_seqlens_q.empty()) {
        return {checked_int("--q", shape[0])};
    }
    std::vector<int32_t> lengths = read_cu_seqlens("--cu-seqlens-q", options.cu_seqlens_q);
    check_total("--cu-seqlens-q", lengths, shape[0], "q");
    return lengths;
}

/// Lengths where no option gives them, which only packed keys can tell.
std::vector<int32_t> default_kv_lengths(const Batch &batch) {
    const KvPools &kv = batch.kv;
    const int32_t sequences = batch.num_sequences();
    if (kv.is_packed && batch.q.shape.size() == 3 && kv.k_file_shape[0] == batch.q.shape[0]) {
        return batch.query_lengths;
    }
    const bool splits = batch.q.shape.size() == 4 || sequences == 1;
    if (kv.is_packed && splits && sequences > 0 && kv.k_file_shape[0] % sequences == 0) {
        return std::vector<int32_t>(sequences, checked_int("--k", kv.k_file_shape[0] / sequences));
    }
    refuse("--kv-lens", "missing", "the number of keys of each sequence, or --cu-seqlens-k");
}

std::vector<int32_t> kv_lengths(const RunOptions &options, const Batch &batch) {
    std::string option;
    std::vector<int32_t> lengths;
    if (!options.cu_seqlens_k.empty()) {
        option = "--cu-seqlens-k";
        lengths = read_cu_seqlens(option, options.cu_seqlens_k);
    } else if (!options.kv_lens.empty()) {
        option = "--kv-lens";
        lengths = read_lengths(option, options.kv_lens);
    } else {
        return default_kv_lengths(batch);
    }
    if (lengths.size() != batch.query_lengths.size()) {
        refuse(option, std::to_string(lengths.size()) + " sequences",
               std::to_string(batch.num_sequences()) + ", as of q");
    }
    const auto negative = std::find_if(lengths.begin(), lengths.end(), [](int l) { return l < 0; });
    if (negative != lengths.end()) {
        refuse(option, "a length is " + std::to_string(*negative), "0 or more");
    }
    if (batch.kv.is_packed) {
        check_total(option, lengths, batch.kv.k_file_shape[0], "k");
    }
    return lengths;
}

/// Gives each sequence of packed keys blocks of its own. Returns the number of blocks.
int64_t page_consecutively(KvPools &kv, int32_t block_size) {
    kv.block_size = block_size;
    std::vector<int32_t> counts;
    for (const int32_t length : kv.lengths) {
        counts.push_back(length / block_size + (length % block_size != 0));
        kv.max_blocks = std::max(kv.max_blocks, counts.back());
    }
    kv.table.assign(counts.size() * kv.max_blocks, -1);
    int32_t next = 0;
    for (size_t b = 0; b < counts.size(); b++) {
        const auto row = kv.table.begin() + static_cast<int64_t>(b) * kv.max_blocks;
        std::iota(row, row + counts[b], next);
        next += counts[b];
    }
    return next;
}

/// Calls copy(packed row, pool row, number of rows) for every sequence of packed keys.
template<typename Copy>
void for_each_sequence(const KvPools &kv, const Copy &copy) {
    int64_t packed = 0;
    for (size_t b = 0; b < kv.lengths.size(); b++) {
        if (kv.lengths[b] > 0) {
            copy(packed, kv.table[b * kv.max_blocks] * kv.block_size, kv.lengths[b]);
        }
        packed += kv.lengths[b];
    }
}

/// Elements of the heads of a key or value.
int64_t row_size(const std::vector<int64_t> &pool_shape) {
    return pool_shape[2] * pool_shape[3];
}

std::vector<float> packed_to_pool(const KvPools &kv, const std::vector<int64_t> &pool_shape,
                                  const std::vector<float> &packed) {
    const int64_t row = row_size(pool_shape);
    std::vector<float> pool(elements(pool_shape));
    for_each_sequence(kv, [&](int64_t from, int64_t to, int64_t rows) {
        std::copy_n(packed.begin() + from * row, rows * row, pool.begin() + to * row);
    });
    return pool;
}

std::vector<float> pool_to_packed(const KvPools &kv, const Operand &pool_gradient) {
    const int64_t row = row_size(pool_gradient.shape);
    const std::vector<float> pool = pool_gradient.to_float();
    std::vector<float> packed(kv.k_file_shape[0] * row);
    for_each_sequence(kv, [&](int64_t to, int64_t from, int64_t rows) {
        std::copy_n(pool.begin() + from * row, rows * row, packed.begin() + to * row);
    });
    return packed;
}

void read_table(const RunOptions &options, Batch &batch) {
    std::vector<int64_t> shape;
    batch.kv.table = read_ints("--block-table", options.block_table, shape, 2);
    if (shape[0] != batch.num_sequences()) {
        refuse("--block-table", "shape is " + to_string(shape),
               std::to_string(batch.num_sequences()) + " rows, one for each sequence of q");
    }
    batch.kv.max_blocks = checked_int("--block-table", shape[1]);
}

void read_kv(const RunOptions &options, Batch &batch) {
    KvPools &kv = batch.kv;
    const Dtype dtype = dtypes.at(options.dtype);
    NpyArray k_file, v_file;
    std::vector<float> k = read("--k", options.k, k_file, to_float);
    std::vector<float> v = read("--v", options.v, v_file, to_float);
    kv.is_packed = options.block_table.empty();
    kv.k_file_shape = k_file.shape;
    kv.v_file_shape = v_file.shape;
    if (kv.k_file_shape.size() != (kv.is_packed ? 3 : 4)) {
        refuse("--k", "shape is " + to_string(kv.k_file_shape),
               kv.is_packed ? "[tokens, H_kv, D] without --block-table"
                            : "[num_blocks, block_size, H_kv, D] with --block-table");
    }
    const auto leading = [](std::vector<int64_t> shape) {
        shape.pop_back();
        return shape;
    };
    if (kv.v_file_shape.empty() || leading(kv.v_file_shape) != leading(kv.k_file_shape)) {
        refuse("--v", "shape is " + to_string(kv.v_file_shape),
               to_string(kv.k_file_shape) + ", that of k, but for the last size");
    }
    kv.lengths = kv_lengths(options, batch);
    if (!kv.is_packed) {
        read_table(options, batch);
        checked_int("--k", kv.k_file_shape[1]);
        kv.k = Operand(kv.k_file_shape, dtype, std::move(k));
        kv.v = Operand(kv.v_file_shape, dtype, std::move(v));
        return;
    }
    const int64_t blocks = page_consecutively(kv, options.block_size);
    const auto pool = [&](const std::vector<int64_t> &shape, const std::vector<float> &packed) {
        const std::vector<int64_t> paged = {blocks, options.block_size, shape[1], shape[2]};
        return Operand(paged, dtype, packed_to_pool(kv, paged, packed));
    };
    kv.v = pool(kv.v_file_shape, v);
    kv.k = pool(kv.k_file_shape, k);
}

Operand read_like(const std::string &option, const std::string &path,
                  const std::vector<int64_t> &shape, Dtype dtype) {
    NpyArray file;
    std::vector<float> values = read(option, path, file, to_float);
    if (file.shape != shape) {
        refuse(option, "shape is " + to_string(file.shape), to_string(shape));
    }
    return {shape, dtype, std::move(values)};
}

/// One number per query head, if there is a file.
Operand read_per_head(const std::string &option, const std::string &path, const Batch &batch) {
    const std::vector<int64_t> shape = {batch.q.shape[batch.q.shape.size() - 2]};
    return path.empty() ? Operand() : read_like(option, path, shape, Dtype::Float32);
}

Batch read_batch(const RunOptions &options) {
    Batch batch;
    NpyArray file;
    std::vector<float> q = read("--q", options.q, file, to_float);
    if (file.shape.size() != 3 && file.shape.size() != 4) {
        refuse("--q", "shape is " + to_string(file.shape), "[tokens, H, D] or [B, S, H, D]");
    }
    batch.is_half = file.dtype == NpyDtype::float16;
    batch.q = Operand(file.shape, dtypes.at(options.dtype), std::move(q));
    batch.query_lengths = query_lengths(options, file.shape);
    read_kv(options, batch);
    batch.alibi_slopes = read_per_head("--alibi-slopes", options.alibi_slopes, batch);
    batch.sinks = read_per_head("--sinks", options.sinks, batch);
    return batch;
}

Plan make_plan(const RunOptions &options, const Batch &batch) {
    const auto &q_shape = batch.q.shape, &k_shape = batch.kv.k.shape;
    const size_t rank = q_shape.size();
    AttentionConfig config(checked_int("--q", q_shape[rank - 2]), checked_int("--k", k_shape[2]),
                           checked_int("--q", q_shape[rank - 1]), masks.at(options.mask));
    config.value_head_dim = checked_int("--v", batch.kv.v.shape[3]);
    config.scale = options.scale.value_or(config.scale);
    config.softcap = options.softcap;
    config.window_left = options.window_left;
    config.window_right = options.window_right;
    return {config, QueryRows{batch.query_lengths.data(), nullptr, batch.num_sequences()},
            batch.kv.view()};
}

/// Milliseconds of a call.
template<typename Call>
double time_of(const Call &call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
}

/// Runs what the options ask for and writes the results.
class Run {
public:
    explicit Run(const RunOptions &options)
        : options(options), dtype(dtypes.at(options.dtype)), batch(read_batch(options)),
          plan(make_plan(options, batch)), placement(devices.at(options.device)),
          execution(placement.execution()) {
        execution.num_threads = options.threads;
        execution.unordered = options.ordered == "off";
        lse_shape = batch.q.shape;
        lse_shape.pop_back();
    }

    void run() {
        print_shapes();
        choose_kernel();
        if (options.is_backward()) {
            run_backward();
        } else {
            report(1, 1, run_forward(execution));
        }
    }

private:
    /// Milliseconds.
    double run_forward(Execution execution) {
        out = Operand(batch.out_shape(), dtype);
        lse = Operand(lse_shape, Dtype::Float32);
        const Tensor q = placement.input(batch.q.view());
        const PagedKv kv = placed_kv();
        const Tensor out_there = placement.output(out.view());
        const Tensor lse_there = placement.output(lse.view());
        const HeadTerms terms = placed_terms();
        plan.prepare(execution);
        placement.make_workspace(
            execution, forward_workspace(plan, q, kv, out_there, lse_there, execution, terms));
        const double time = time_of([&] {
            forward(plan, q, kv, out_there, lse_there, execution, terms);
            placement.wait();
        });
        placement.finish();
        write_rows("out", out);
        write("lse", lse.shape, lse.to_float(), false);
        return time;
    }

    void run_backward() {
        const Operand dout = read_like("--dout", options.dout, batch.out_shape(), dtype);
        if (options.out.empty()) {
            std::printf("no --out is given: the forward runs first\n");
            Execution any_kernel = execution;
            any_kernel.kernel = nullptr;  // the option names one of the backward
            run_forward(any_kernel);
        } else {
            out = read_like("--out", options.out, batch.out_shape(), dtype);
            if (!options.lse.empty()) {
                lse = read_like("--lse", options.lse, lse_shape, Dtype::Float32);
            }
        }
        const Operand dq(batch.q.shape, dtype);
        const Operand dk(batch.kv.k.shape, Dtype::Float32), dv(batch.kv.v.shape, Dtype::Float32);
        const Operand dslopes(batch.alibi_slopes.shape, Dtype::Float32);
        const Operand dsinks(batch.sinks.shape, Dtype::Float32);
        const BackwardInputs inputs = {placement.input(dout.view()),
                                       placement.input(batch.q.view()),
                                       placement.input(out.view()),
                                       lse.shape.empty() ? Tensor() : placement.input(lse.view()),
                                       Tensor(),
                                       placed_terms()};
        const PagedKv kv = placed_kv();
        const Gradients gradients = {placement.output(dq.view()),
                                     placement.output(dk.view()),
                                     placement.output(dv.view()),
                                     PoolMode::Overwrite,
                                     {placed_output(dslopes), placed_output(dsinks)}};
        plan.prepare(execution);
        placement.make_workspace(execution,
                                 backward_workspace(plan, inputs, kv, gradients, execution));
        report(3, 2, time_of([&] {
                   backward(plan, inputs, kv, gradients, execution);
                   placement.wait();
               }));
        placement.finish();
        write_rows("dq", dq);
        write_pool("dk", dk, batch.kv.k_file_shape);
        write_pool("dv", dv, batch.kv.v_file_shape);
        write_per_head("dalibi_slopes", dslopes);
        write_per_head("dsinks", dsinks);
    }

    PagedKv placed_kv() {
        PagedKv kv = batch.kv.view();
        kv.k = placement.input(kv.k);
        kv.v = placement.input(kv.v);
        return kv;
    }

    HeadTerms placed_terms() {
        HeadTerms terms = batch.terms();
        for (Tensor *term : {&terms.alibi_slopes, &terms.sinks}) {
            *term = term->rank > 0 ? placement.input(*term) : *term;
        }
        return terms;
    }

    Tensor placed_output(const Operand &operand) {
        return operand.shape.empty() ? Tensor() : placement.output(operand.view());
    }

    void choose_kernel() {
        execution.kernel = options.kernel.empty() ? nullptr : options.kernel.c_str();
        pagegrad_error error{};
        internal::check(pagegrad_choose_kernel(plan.get(), options.operation().c_str(),
                                               static_cast<int32_t>(dtype), &execution, &kernel,
                                               &error),
                        error);
    }

    void print_shapes() const {
        std::printf("q %s, k %s, v %s, %d sequences, mask %s\n", to_string(batch.q.shape).c_str(),
                    to_string(batch.kv.k_file_shape).c_str(),
                    to_string(batch.kv.v_file_shape).c_str(), batch.num_sequences(),
                    options.mask.c_str());
    }

    /// With the number of products that have the width of keys, and of values.
    void report(int key_products, int value_products, double milliseconds) const {
        const unsigned threads =
            options.threads > 0 ? options.threads : std::thread::hardware_concurrency();
        const double widths =
            key_products * plan.config().head_dim + value_products * plan.config().value_head_dim;
        const double flops =
            2.0 * widths * static_cast<double>(plan.info().visible_pairs) * plan.config().num_heads;
        const std::string where =
            execution.device == PAGEGRAD_CUDA ? "on a GPU" : std::to_string(threads) + " threads";
        std::printf("%s: kernel %s, %s, %.3f ms, %.1f GFLOP/s\n", options.op.c_str(), kernel,
                    where.c_str(), milliseconds, flops / milliseconds * 1e-6);
    }

    void write_rows(const std::string &name, const Operand &rows) const {
        write(name, rows.shape, rows.to_float(), batch.is_half);
    }

    void write_pool(const std::string &name, const Operand &pool,
                    const std::vector<int64_t> &file_shape) const {
        write(name, file_shape,
              batch.kv.is_packed ? pool_to_packed(batch.kv, pool) : pool.to_float(), false);
    }

    void write_per_head(const std::string &name, const Operand &values) const {
        if (!values.shape.empty()) {
            write(name, values.shape, values.to_float(), false);
        }
    }

    void write(const std::string &name, const std::vector<int64_t> &shape,
               const std::vector<float> &values, bool as_half) const {
        NpyArray array;
        array.dtype = as_half ? NpyDtype::float16 : NpyDtype::float32;
        array.shape = shape;
        array.bytes.resize(array.size() * element_size(array.dtype));
        if (as_half) {
            std::transform(values.begin(), values.end(),
                           reinterpret_cast<uint16_t *>(array.bytes.data()), float_to_half);
        } else {
            std::copy(values.begin(), values.end(), reinterpret_cast<float *>(array.bytes.data()));
        }
        const std::string path = options.output + "/" + name + ".npy";
        write_npy(path, array);
        std::printf("%s %s\n", path.c_str(), to_string(shape).c_str());
    }

    const RunOptions &options;
    const Dtype dtype;
    const Batch batch;
    const Plan plan;
    std::vector<int64_t> lse_shape;
    Operand out, lse;  ///< lse stays empty where the library shall compute it
    Placement placement;
    Execution execution;
    const char *kernel = nullptr;  ///< that runs
};

void check_operation(const RunOptions &options) {
    if (options.is_backward()) {
        if (options.dout.empty()) {
            refuse("--dout", "missing", "a file with --op backward");
        }
        return;
    }
    const std::pair<const char *, const std::string &> inputs[] = {
        {"--dout", options.dout}, {"--out", options.out}, {"--lse", options.lse}};
    for (const auto &[option, path] : inputs) {
        if (!path.empty()) {
            refuse(option, "given with --op forward", "only with --op backward");
        }
    }
}

int run(const RunOptions &options) {
    check_operation(options);
    Run run(options);
    std::error_code error;
    std::filesystem::create_directories(options.output, error);
    if (!std::filesystem::is_directory(options.output)) {
        refuse("--output", options.output + " cannot be created", "a folder");
    }
    run.run();
    return 0;
}

void add_tensor_options(CLI::App *command, RunOptions &options) {
    command->add_option("--q", options.q, "Queries, [tokens, H, D] or [B, S, H, D]")->required();
    command
        ->add_option("--k", options.k,
                     "Keys: [num_blocks, block_size, H_kv, D] with --block-table, otherwise "
                     "[tokens, H_kv, D]")
        ->required();
    command->add_option("--v", options.v, "Values, shaped like the keys; D may differ")->required();
    command->add_option("--dout", options.dout, "Gradient of the output, for the backward");
    CLI::Option *out = command->add_option(
        "--out", options.out, "Output of the forward, for the backward; absent: computed first");
    command
        ->add_option("--lse", options.lse,
                     "Log-sum-exp of the forward, [tokens, H] or [B, S, H]; absent: computed again")
        ->needs(out);
    command->add_option("--alibi-slopes", options.alibi_slopes, "ALiBi slope of each head, [H]");
    command->add_option("--sinks", options.sinks,
                        "Logit of each head that takes part in the softmax without a value, [H]");
}

void add_batch_options(CLI::App *command, RunOptions &options) {
    CLI::Option *table =
        command->add_option("--block-table", options.block_table, "Block ids, [B, max_blocks]");
    command
        ->add_option("--block-size", options.block_size,
                     "Keys of a block that packed keys are put in")
        ->check(CLI::PositiveNumber)
        ->capture_default_str()
        ->excludes(table);
    command->add_option("--cu-seqlens-q", options.cu_seqlens_q,
                        "First token of each packed sequence, and the end, [B + 1]");
    CLI::Option *starts =
        command->add_option("--cu-seqlens-k", options.cu_seqlens_k, "The same of the keys");
    command
        ->add_option("--kv-lens", options.kv_lens,
                     "Keys of each sequence: a file [B], or a list as in 37,64; absent: as the "
                     "queries, if keys are packed")
        ->excludes(starts);
    command->add_option("--mask", options.mask, "causal: the last query sees every key")
        ->check(CLI::IsMember(names(masks)))
        ->capture_default_str();
    for (auto [option, bound] : {std::pair("--window-left", &options.window_left),
                                 std::pair("--window-right", &options.window_right)}) {
        command->add_option(option, *bound, "Keys seen on that side of the diagonal, -1: no bound")
            ->capture_default_str();
    }
    command->add_option("--scale", options.scale, "Factor of the scores; absent: 1 / sqrt(D)");
    command
        ->add_option("--softcap", options.softcap,
                     "Scores s become softcap * tanh(s / softcap); 0: they do not")
        ->capture_default_str();
}

void add_execution_options(CLI::App *command, RunOptions &options) {
    command->add_option("--dtype", options.dtype, "Type that the tensors are rounded to")
        ->check(CLI::IsMember(names(dtypes)))
        ->capture_default_str();
    command->add_option("--device", options.device, "Where to run")
        ->check(CLI::IsMember(names(devices)))
        ->capture_default_str();
    command
        ->add_option("--ordered", options.ordered,
                     "Sums in a fixed order; off is faster for some batches on GPUs")
        ->check(CLI::IsMember({"on", "off"}))
        ->capture_default_str();
    command->add_option("--kernel", options.kernel,
                        "Kernel, by its name or a part of it; absent: the best");
    command->add_option("--threads", options.threads, "Threads, 0: one per core")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
}

}  // namespace

void add_run_command(CLI::App &program, Action &action) {
    const auto options = std::make_shared<RunOptions>();
    CLI::App *command =
        program.add_subcommand("run", "The forward or backward of tensors in .npy files");
    command->add_option("--op", options->op, "Operation")
        ->required()
        ->check(CLI::IsMember({"forward", "backward"}));
    add_tensor_options(command, *options);
    add_batch_options(command, *options);
    add_execution_options(command, *options);
    command
        ->add_option("--output", options->output,
                     "Folder for out, lse, dq, dk, dv, dalibi_slopes and dsinks, each an .npy file")
        ->required();
    command->footer(examples);
    command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace pagegrad
