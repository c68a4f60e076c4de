#include "problem.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <ostream>
#include <random>

namespace pagegrad::test {

namespace {

int32_t blocks_for(int32_t length, int block_size) {
    return (length + block_size - 1) / block_size;
}

/// The geometry's table, or one where every block but those of the prefix has one user.
std::vector<std::vector<int32_t>> block_lists(const Geometry &geometry) {
    if (!geometry.blocks.empty()) {
        return geometry.blocks;
    }
    std::vector<std::vector<int32_t>> lists;
    int32_t next = geometry.prefix_blocks;
    for (const int32_t length : geometry.kv_length) {
        lists.emplace_back(blocks_for(length, geometry.block_size));
        for (int32_t column = 0; column < static_cast<int32_t>(lists.back().size()); column++) {
            lists.back()[column] = column < geometry.prefix_blocks ? column : next++;
        }
    }
    return lists;
}

/// Random values that float32 holds exactly.
class RandomValues {
public:
    explicit RandomValues(Data data) : skewed_(data == Data::Skewed) {
    }
    std::vector<double> operator()(int64_t count, int width) {
        std::vector<double> values(count * width);
        for (std::size_t at = 0; at < values.size(); at++) {
            float value = normal_(random_);
            if (skewed_) {
                value *= at % width % 16 == 3 ? 5 : 1;    // outlier channels
                value *= at / width % 9 == 0 ? 4 : 0.5f;  // heavy tokens
                value += at % 2 == 0 ? 1.5f : 0;          // large means
            }
            values[at] = value;
        }
        return values;
    }

private:
    bool skewed_;
    std::mt19937 random_{20240517};
    std::normal_distribution<float> normal_;
};

int count_blocks(const AttentionInputs &inputs) {
    const int64_t entries_of_block =
        int64_t{inputs.block_size} * inputs.num_kv_heads * inputs.head_dim;
    return static_cast<int>(static_cast<int64_t>(inputs.k_pool.size()) / entries_of_block);
}

/// Gradient that a pool held before an accumulating call.
double earlier_gradient(std::size_t entry) {
    return 0.25 * (static_cast<int>(entry % 11) - 5);
}

std::vector<double> repeated(const std::vector<double> &values, int count) {
    std::vector<double> all;
    for (int at = 0; at < count; at++) {
        all.push_back(values[at % values.size()]);
    }
    return all;
}

void round_all(std::vector<double> &values, pagegrad_dtype dtype) {
    for (double &value : values) {
        value = rounded(value, dtype);
    }
}

}  // namespace

Problem make_problem(AttentionInputs inputs, Form form, Layout layout, const Dtypes &dtypes) {
    Problem problem;
    problem.form = form;
    problem.layout = layout;
    problem.dtypes = dtypes;
    problem.num_blocks = count_blocks(inputs);
    problem.used.resize(int64_t{problem.num_blocks} * inputs.block_size);
    for (std::size_t b = 0; b < inputs.blocks.size(); b++) {
        for (int32_t j = 0; j < inputs.kv_length[b]; j++) {
            const int64_t block = inputs.blocks[b][j / inputs.block_size];
            problem.used[block * inputs.block_size + j % inputs.block_size] = true;
        }
    }
    for (std::vector<double> *values : {&inputs.q, &inputs.dout, &inputs.k_pool, &inputs.v_pool}) {
        round_all(*values, dtypes.inputs);
    }
    inputs.stored_out = [dtype = dtypes.out](double value) { return rounded(value, dtype); };
    problem.expected = attention_reference(inputs);
    problem.inputs = std::move(inputs);
    return problem;
}

Problem make_problem(const Geometry &geometry) {
    AttentionInputs in;
    in.num_heads = geometry.num_heads;
    in.num_kv_heads = geometry.num_kv_heads;
    in.head_dim = geometry.head_dim;
    in.value_head_dim = geometry.value_head_dim;
    in.scale = geometry.scale.value_or(1 / std::sqrt(static_cast<float>(in.head_dim)));
    in.softcap = geometry.softcap;
    if (geometry.with_slopes) {
        in.alibi_slopes = repeated({0.25, -0.03125, 0, 0.0625}, in.num_heads);
    }
    if (geometry.with_sinks) {
        in.sinks = repeated({0.5, 5, -3}, in.num_heads);
        in.sinks.back() = in.num_heads > 1 ? -HUGE_VAL : in.sinks.back();
    }
    in.mask = geometry.mask;
    in.window_left = geometry.window_left;
    in.window_right = geometry.window_right;
    in.query_length = geometry.query_length;
    in.kv_length = geometry.kv_length;
    in.block_size = geometry.block_size;
    in.blocks = block_lists(geometry);

    int32_t num_blocks = 0;
    for (const auto &list : in.blocks) {
        for (const int32_t block : list) {
            num_blocks = std::max(num_blocks, block + 1);
        }
    }
    const int64_t tokens =
        std::accumulate(in.query_length.begin(), in.query_length.end(), int64_t{0});
    const int64_t pool_rows = int64_t{num_blocks} * in.block_size * in.num_kv_heads;
    RandomValues random(geometry.data);
    in.q = random(tokens * in.num_heads, in.head_dim);
    in.dout = random(tokens * in.num_heads, in.value_dim());
    in.k_pool = random(pool_rows, in.head_dim);
    in.v_pool = random(pool_rows, in.value_dim());
    if (geometry.with_dlse) {
        in.dlse = random(tokens, in.num_heads);
    }
    return make_problem(std::move(in), geometry.form, geometry.layout, geometry.dtypes);
}

PagedCall::PagedCall(const Problem &problem, const Options &options)
    : problem_(problem), options_(options), plan_(nullptr, pagegrad_plan_destroy) {
    place_tokens();
    make_table();
    make_plan();
    fill_inputs();
    fill_outputs();
    fill_arguments();
}

void PagedCall::place_tokens() {
    const std::vector<int32_t> &lengths = problem_.inputs.query_length;
    const int32_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    batch_rows_ = longest + 2;
    for (std::size_t b = 0; b < lengths.size(); b++) {
        int64_t start = num_rows_;
        if (problem_.form == Form::PackedWithGaps) {
            start += 3;
        }
        query_start_.push_back(static_cast<int32_t>(start));
        for (int32_t i = 0; i < lengths[b]; i++) {
            token_row_.push_back(start + i);
        }
        num_rows_ = problem_.form == Form::Batched ? start + batch_rows_ : start + lengths[b];
    }
    if (problem_.form == Form::PackedWithGaps) {
        num_rows_ += 5;
    }
}

void PagedCall::make_table() {
    pool_blocks_ = problem_.num_blocks + 2;
    placement_.resize(pool_blocks_);
    std::iota(placement_.begin(), placement_.end(), 0);
    std::shuffle(placement_.begin(), placement_.end(), std::mt19937(options_.placement));

    const AttentionInputs &in = problem_.inputs;
    for (const int32_t length : in.kv_length) {
        max_blocks_ = std::max(max_blocks_, blocks_for(length, in.block_size) + 1);
    }
    table_.assign(in.kv_length.size() * max_blocks_, options_.unused_id);
    for (std::size_t b = 0; b < in.kv_length.size(); b++) {
        for (int32_t column = 0; column < blocks_for(in.kv_length[b], in.block_size); column++) {
            table_[b * max_blocks_ + column] =
                static_cast<int32_t>(placement_[in.blocks[b][column]]);
        }
    }
}

void PagedCall::make_plan() {
    const AttentionInputs &in = problem_.inputs;
    desc.struct_size = sizeof(desc);
    desc.num_heads = in.num_heads;
    desc.num_kv_heads = in.num_kv_heads;
    desc.head_dim = in.head_dim;
    desc.value_head_dim = in.value_head_dim;
    desc.mask = in.mask;
    desc.window_left = in.window_left;
    desc.window_right = in.window_right;
    desc.num_sequences = static_cast<int32_t>(in.query_length.size());
    desc.query_length = in.query_length.data();
    desc.query_start = problem_.form == Form::PackedWithGaps ? query_start_.data() : nullptr;
    desc.kv_length = in.kv_length.data();
    desc.block_table = table_.data();
    desc.block_table_stride = max_blocks_;
    desc.max_blocks = max_blocks_;
    desc.block_size = in.block_size;
    desc.num_blocks = pool_blocks_;
    pagegrad_plan *plan = nullptr;
    EXPECT_EQ(pagegrad_plan_create(&desc, &plan, &error_), PAGEGRAD_OK) << error_.message;
    plan_.reset(plan);
}

std::vector<int64_t> PagedCall::leading_shape() const {
    if (problem_.form == Form::Batched) {
        return {static_cast<int64_t>(query_start_.size()), batch_rows_};
    }
    return {num_rows_};
}

GuardedTensor PagedCall::query_tensor(pagegrad_dtype dtype, int head_dim,
                                      const std::vector<double> *rows) const {
    const int64_t width = int64_t{problem_.inputs.num_heads} * head_dim;
    std::vector<int64_t> shape = leading_shape();
    shape.push_back(problem_.inputs.num_heads);
    shape.push_back(head_dim);
    GuardedTensor tensor(shape, problem_.layout, dtype, next_layout());
    for (std::size_t at = 0; rows != nullptr && at < rows->size(); at++) {
        tensor.set(token_row_[at / width] * width + at % width, (*rows)[at]);
    }
    return tensor;
}

GuardedTensor PagedCall::lse_tensor(const std::vector<double> *rows) const {
    const int64_t width = problem_.inputs.num_heads;
    std::vector<int64_t> shape = leading_shape();
    shape.push_back(width);
    const Layout layout = problem_.layout == Layout::HeadMajor ? Layout::Padded : problem_.layout;
    GuardedTensor tensor(shape, layout, PAGEGRAD_FLOAT32, next_layout());
    for (std::size_t at = 0; rows != nullptr && at < rows->size(); at++) {
        tensor.set(token_row_[at / width] * width + at % width, (*rows)[at]);
    }
    return tensor;
}

GuardedTensor PagedCall::head_tensor(const std::vector<double> &values) const {
    if (values.empty()) {
        return {};
    }
    GuardedTensor tensor({problem_.inputs.num_heads}, Layout::Contiguous);
    for (std::size_t head = 0; head < values.size(); head++) {
        tensor.set(static_cast<int64_t>(head), values[head]);
    }
    return tensor;
}

GuardedTensor PagedCall::pool_tensor(pagegrad_dtype dtype, int head_dim) const {
    const AttentionInputs &in = problem_.inputs;
    return GuardedTensor({pool_blocks_, in.block_size, in.num_kv_heads, head_dim}, problem_.layout,
                         dtype, next_layout());
}

unsigned PagedCall::next_layout() const {
    return options_.placement * 100 + tensors_made_++;
}

int64_t PagedCall::pool_row(int64_t row) const {
    const int64_t rows_of_block =
        int64_t{problem_.inputs.block_size} * problem_.inputs.num_kv_heads;
    return placement_[row / rows_of_block] * rows_of_block + row % rows_of_block;
}

std::vector<int64_t> PagedCall::gathered_rows() const {
    const AttentionInputs &in = problem_.inputs;
    std::vector<int64_t> rows;
    for (std::size_t b = 0; b < in.blocks.size(); b++) {
        for (int32_t j = 0; j < in.kv_length[b]; j++) {
            const int64_t block = in.blocks[b][j / in.block_size];
            const int64_t slot = block * in.block_size + j % in.block_size;
            for (int head = 0; head < in.num_kv_heads; head++) {
                rows.push_back(slot * in.num_kv_heads + head);
            }
        }
    }
    return rows;
}

template<typename Value>
void PagedCall::fill_used(GuardedTensor &pool, int head_dim, Value value) const {
    const AttentionInputs &in = problem_.inputs;
    const std::size_t entries = in.k_pool.size() / in.head_dim * head_dim;
    for (std::size_t at = 0; at < entries; at++) {
        const int64_t row = static_cast<int64_t>(at) / head_dim;
        if (problem_.used[row / in.num_kv_heads]) {
            pool.set(pool_row(row) * head_dim + at % head_dim, value(at));
        }
    }
}

void PagedCall::fill_inputs() {
    const AttentionInputs &in = problem_.inputs;
    const Dtypes &dtypes = problem_.dtypes;
    q = query_tensor(dtypes.inputs, in.head_dim, &in.q);
    dout = query_tensor(dtypes.inputs, in.value_dim(), &in.dout);
    saved_out = query_tensor(dtypes.out, in.value_dim(), &problem_.expected.out.value);
    saved_lse = lse_tensor(&problem_.expected.lse.value);
    dlse = lse_tensor(&in.dlse);
    k_pool = pool_tensor(dtypes.inputs, in.head_dim);
    v_pool = pool_tensor(dtypes.inputs, in.value_dim());
    for (GuardedTensor *pool : {&k_pool, &v_pool}) {
        for (int64_t at = 0; at < pool->size(); at++) {
            pool->set(at, options_.unused_value);
        }
    }
    fill_used(k_pool, in.head_dim, [&in](std::size_t at) { return in.k_pool[at]; });
    fill_used(v_pool, in.value_dim(), [&in](std::size_t at) { return in.v_pool[at]; });
    alibi_slopes = head_tensor(in.alibi_slopes);
    sinks = head_tensor(in.sinks);
}

void PagedCall::fill_outputs() {
    const AttentionInputs &in = problem_.inputs;
    out = query_tensor(problem_.dtypes.out, in.value_dim(), nullptr);
    lse = lse_tensor(nullptr);
    dq = query_tensor(problem_.dtypes.dq, in.head_dim, nullptr);
    dk_pool = pool_tensor(PAGEGRAD_FLOAT32, in.head_dim);
    dv_pool = pool_tensor(PAGEGRAD_FLOAT32, in.value_dim());
    if (options_.pool_mode == PAGEGRAD_POOL_ACCUMULATE) {
        fill_used(dk_pool, in.head_dim, earlier_gradient);
        fill_used(dv_pool, in.value_dim(), earlier_gradient);
    }
    if (options_.with_head_gradients) {
        dalibi_slopes = head_tensor(std::vector<double>(in.alibi_slopes.size(), NAN));
        dsinks = head_tensor(std::vector<double>(in.sinks.size(), NAN));
    }
}

void PagedCall::fill_arguments() {
    execution.struct_size = sizeof(execution);
    execution.num_threads = options_.num_threads;
    execution.kernel = options_.kernel.empty() ? nullptr : options_.kernel.c_str();

    forward_args.struct_size = sizeof(forward_args);
    forward_args.scale = static_cast<float>(problem_.inputs.scale);
    forward_args.softcap = static_cast<float>(problem_.inputs.softcap);
    forward_args.q = q;
    forward_args.k_pool = k_pool;
    forward_args.v_pool = v_pool;
    forward_args.out = out;
    forward_args.alibi_slopes = alibi_slopes;
    forward_args.sinks = sinks;

    backward_args.struct_size = sizeof(backward_args);
    backward_args.scale = forward_args.scale;
    backward_args.softcap = forward_args.softcap;
    backward_args.dout = dout;
    backward_args.q = q;
    backward_args.k_pool = k_pool;
    backward_args.v_pool = v_pool;
    backward_args.out = saved_out;
    if (options_.with_lse) {
        forward_args.lse = lse;
        backward_args.lse = saved_lse;
    }
    if (!problem_.inputs.dlse.empty()) {
        backward_args.dlse = dlse;
    }
    backward_args.dq = dq;
    backward_args.dk_pool = dk_pool;
    backward_args.dv_pool = dv_pool;
    backward_args.pool_mode = options_.pool_mode;
    backward_args.alibi_slopes = alibi_slopes;
    backward_args.sinks = sinks;
    backward_args.dalibi_slopes = dalibi_slopes;
    backward_args.dsinks = dsinks;
}

pagegrad_status PagedCall::forward() {
    return pagegrad_forward(plan(), &forward_args, &execution, &error_);
}

pagegrad_status PagedCall::backward() {
    return pagegrad_backward(plan(), &backward_args, &execution, &error_);
}

pagegrad_status PagedCall::gather(const pagegrad_tensor &pool, const pagegrad_tensor &dense) {
    return pagegrad_gather(plan(), &pool, &dense, &execution, &error_);
}

pagegrad_status PagedCall::scatter_add(const pagegrad_tensor &dense, const pagegrad_tensor &pool) {
    return pagegrad_scatter_add(plan(), &dense, &pool, &execution, &error_);
}

std::vector<float> PagedCall::query_rows(const GuardedTensor &tensor, int width) const {
    std::vector<float> values;
    for (const int64_t row : token_row_) {
        for (int at = 0; at < width; at++) {
            values.push_back(tensor[row * width + at]);
        }
    }
    return values;
}

std::vector<float> PagedCall::pool_values(const GuardedTensor &tensor, int head_dim) const {
    const auto rows =
        static_cast<int64_t>(problem_.inputs.k_pool.size()) / problem_.inputs.head_dim;
    std::vector<float> values;
    for (int64_t row = 0; row < rows; row++) {
        for (int d = 0; d < head_dim; d++) {
            values.push_back(tensor[pool_row(row) * head_dim + d]);
        }
    }
    return values;
}

Results PagedCall::results() const {
    const AttentionInputs &in = problem_.inputs;
    const auto all = [](const GuardedTensor &tensor) {
        std::vector<float> values;
        for (int64_t at = 0; at < tensor.size(); at++) {
            values.push_back(tensor[at]);
        }
        return values;
    };
    return {query_rows(out, in.num_heads * in.value_dim()),
            query_rows(lse, in.num_heads),
            query_rows(dq, in.num_heads * in.head_dim),
            pool_values(dk_pool, in.head_dim),
            pool_values(dv_pool, in.value_dim()),
            all(dalibi_slopes),
            all(dsinks)};
}

void PagedCall::expect_query_rows(const char *name, const GuardedTensor &tensor, int head_dim,
                                  const Quantity &expected, Products products) const {
    const int width = problem_.inputs.num_heads * head_dim;
    EXPECT_TRUE(is_close(query_rows(tensor, width), expected, head_dim, tensor.dtype(), products))
        << name;
    EXPECT_TRUE(tensor.guards_intact()) << name << " was written past its end";
    std::vector<bool> of_sequence(num_rows_);
    for (const int64_t row : token_row_) {
        of_sequence[row] = true;
    }
    for (int64_t at = 0; at < tensor.size(); at++) {
        if (!of_sequence[at / width]) {
            ASSERT_EQ(tensor[at], 0) << name << ", row " << at / width << " of no sequence";
        }
    }
}

void PagedCall::expect_pool(const char *name, const GuardedTensor &tensor, int head_dim,
                            Quantity expected, Products products) const {
    const AttentionInputs &in = problem_.inputs;
    const bool accumulate = options_.pool_mode == PAGEGRAD_POOL_ACCUMULATE;
    std::vector<float> values = pool_values(tensor, head_dim);
    std::vector<bool> used(tensor.size());
    for (std::size_t at = 0; at < values.size(); at++) {
        const int64_t row = static_cast<int64_t>(at) / head_dim;
        if (!problem_.used[row / in.num_kv_heads]) {
            values[at] = 0;  // checked below
            continue;
        }
        used[pool_row(row) * head_dim + at % head_dim] = true;
        if (accumulate) {
            expected.value[at] += earlier_gradient(at);
            expected.size[at] += std::abs(earlier_gradient(at));
        }
    }
    EXPECT_TRUE(is_close(values, expected, head_dim, tensor.dtype(), products)) << name;
    EXPECT_TRUE(tensor.guards_intact()) << name << " was written past its end";
    for (int64_t at = 0; at < tensor.size(); at++) {
        if (!used[at]) {
            ASSERT_TRUE(accumulate ? tensor.is_untouched(at) : tensor[at] == 0)
                << name << ", unused slot " << at / head_dim / in.num_kv_heads << " holds "
                << tensor[at];
        }
    }
}

void PagedCall::expect_heads(const char *name, const GuardedTensor &tensor,
                             const Quantity &expected) const {
    if (tensor.size() > 0) {
        std::vector<float> values;
        for (int64_t head = 0; head < tensor.size(); head++) {
            values.push_back(tensor[head]);
        }
        EXPECT_TRUE(is_close(values, expected, 1)) << name;
        EXPECT_TRUE(tensor.guards_intact()) << name << " was written past its end";
    }
}

Products PagedCall::products(const std::string &operation) const {
    const std::string kind = is_general(problem_.inputs) ? operation + "_general" : operation;
    const char *chosen = "";
    EXPECT_EQ(pagegrad_choose_kernel(plan(), kind.c_str(), problem_.dtypes.inputs, &execution,
                                     &chosen, nullptr),
              PAGEGRAD_OK);
    const std::string name = chosen;
    const bool bfloat16 = name.substr(name.rfind('_') + 1) == "avx512bf16";
    return bfloat16 ? Products::Bfloat16 : Products::Float32;
}

void PagedCall::expect_forward() const {
    expect_query_rows("out", out, problem_.inputs.value_dim(), problem_.expected.out,
                      products("forward"));
    EXPECT_TRUE(lse.guards_intact()) << "lse was written past its end";
    if (options_.with_lse) {
        EXPECT_TRUE(is_close(query_rows(lse, problem_.inputs.num_heads), problem_.expected.lse, 1))
            << "lse";
    }
}

void PagedCall::expect_backward() const {
    const Products how = products("backward");
    const AttentionInputs &in = problem_.inputs;
    expect_query_rows("dq", dq, in.head_dim, problem_.expected.dq, how);
    expect_pool("dk_pool", dk_pool, in.head_dim, problem_.expected.dk_pool, how);
    expect_pool("dv_pool", dv_pool, in.value_dim(), problem_.expected.dv_pool, how);
    expect_heads("dalibi_slopes", dalibi_slopes, problem_.expected.dalibi_slopes);
    expect_heads("dsinks", dsinks, problem_.expected.dsinks);
}

void PagedCall::expect_plain_bounds() const {
    const Products how = products("backward");
    const Results got = results();
    const double pool_bound = plain_bound(PAGEGRAD_FLOAT32, how);
    EXPECT_LE(relative_error(got.dq, problem_.expected.dq), plain_bound(problem_.dtypes.dq, how));
    EXPECT_LE(relative_error(got.dk_pool, problem_.expected.dk_pool), pool_bound);
    EXPECT_LE(relative_error(got.dv_pool, problem_.expected.dv_pool), pool_bound);
}

bool serves(const pagegrad_kernel_info &kernel, pagegrad_dtype dtype) {
    const std::string operation = kernel.operation;
    const bool widens = operation == "forward" || operation == "forward_general" ||
                        operation == "backward" || operation == "backward_general";
    return kernel.dtype == dtype || (widens && kernel.dtype == PAGEGRAD_FLOAT32);
}

bool is_general(const AttentionInputs &inputs) {
    return inputs.softcap > 0 || !inputs.alibi_slopes.empty();
}

std::vector<KernelChoice> kernels(const std::vector<std::string> &operations, int head_dim) {
    std::vector<KernelChoice> choices;
    for (int32_t index = 0; index < pagegrad_kernel_count(); index++) {
        pagegrad_kernel_info info{};
        info.struct_size = sizeof(info);
        if (pagegrad_get_kernel_info(index, &info, nullptr) != PAGEGRAD_OK || !info.available) {
            continue;
        }
        const bool for_gpus = std::string(info.target).rfind("sm", 0) == 0;
        const bool wanted = !for_gpus && std::find(operations.begin(), operations.end(),
                                                   info.operation) != operations.end();
        if (wanted && (info.head_dim == 0 || info.head_dim == head_dim)) {
            for (const pagegrad_dtype dtype : all_dtypes) {
                if (serves(info, dtype)) {
                    choices.push_back({info.name, dtype});
                }
            }
        }
    }
    return choices;
}

std::vector<KernelChoice> kernels_and_dispatch(const std::vector<std::string> &operations,
                                               int head_dim) {
    const std::vector<KernelChoice> named = kernels(operations, head_dim);
    std::vector<KernelChoice> choices = named;
    for (const pagegrad_dtype dtype : all_dtypes) {
        if (std::any_of(named.begin(), named.end(),
                        [dtype](const KernelChoice &kernel) { return kernel.dtype == dtype; })) {
            choices.push_back({"", dtype});
        }
    }
    return choices;
}

std::string label(const KernelChoice &kernel) {
    return (kernel.name.empty() ? "dispatch" : kernel.name) + "__" + dtype_name(kernel.dtype);
}

std::ostream &operator<<(std::ostream &stream, const KernelChoice &kernel) {
    return stream << label(kernel);
}

std::vector<KernelCase>
with_kernels(const std::vector<std::pair<std::string, Geometry>> &geometries,
             const std::vector<std::string> &operations) {
    std::vector<KernelCase> cases;
    int turn = 0;
    for (const auto &[name, geometry] : geometries) {
        turn += geometry.also_half;
        std::vector<std::string> fitting = operations;
        if (geometry.softcap > 0 || geometry.with_slopes) {
            for (std::string &operation : fitting) {
                operation += "_general";
            }
        }
        const bool same =
            geometry.value_head_dim == 0 || geometry.value_head_dim == geometry.head_dim;
        for (const KernelChoice &kernel :
             kernels_and_dispatch(fitting, same ? geometry.head_dim : 0)) {
            if (kernel.dtype == PAGEGRAD_FLOAT32 || geometry.also_half) {
                const Dtypes dtypes(kernel.dtype,
                                    turn / 2 % 2 == 0 ? kernel.dtype : PAGEGRAD_FLOAT32,
                                    turn % 2 == 0 ? kernel.dtype : PAGEGRAD_FLOAT32);
                cases.push_back({name, kernel, Geometry(geometry).stored_as(dtypes)});
            }
        }
    }
    return cases;
}

std::ostream &operator<<(std::ostream &stream, const KernelCase &test) {
    const Dtypes &dtypes = test.geometry.dtypes;
    return stream << test.name << " with " << test.kernel << ", out " << dtype_name(dtypes.out)
                  << ", dq " << dtype_name(dtypes.dq);
}

std::string case_name(const testing::TestParamInfo<KernelCase> &info) {
    return info.param.name + "__" + label(info.param.kernel);
}

const Problem &problem_of(const KernelCase &test) {
    static std::map<std::pair<std::string, pagegrad_dtype>, Problem> problems;
    const auto key = std::make_pair(test.name, test.kernel.dtype);
    auto found = problems.find(key);
    if (found == problems.end()) {
        found = problems.emplace(key, make_problem(test.geometry)).first;
    }
    return found->second;
}

}  // namespace pagegrad::test
