#include "batch.h"

#include "tools/npy.h"
#include "tools/option_values.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>

namespace pagegrad::bench {

namespace {

int64_t size_of(Dtype dtype) {
    return dtype == Dtype::Float32 ? sizeof(float) : sizeof(uint16_t);
}

/// Writes `values` over and over until `to` has `size` elements, converted by `convert`.
template<typename Element, typename Convert>
void repeat(const std::vector<float> &values, void *to, int64_t size, const Convert &convert) {
    std::vector<Element> converted(values.size());
    std::transform(values.begin(), values.end(), converted.begin(), convert);
    const auto step = static_cast<int64_t>(converted.size());
    for (int64_t at = 0; at < size; at += step) {
        std::copy_n(converted.begin(), std::min(step, size - at), static_cast<Element *>(to) + at);
    }
}

int64_t sum(const std::vector<int32_t> &lengths) {
    return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

AttentionConfig config_of(const Geometry &geometry) {
    AttentionConfig config(geometry.heads, geometry.kv_heads, geometry.head_dim, geometry.mask);
    config.window_left = geometry.window_left;
    return config;
}

}  // namespace

Array::Array(Dtype dtype, std::initializer_list<int64_t> shape) : view(nullptr, dtype, shape) {
    memory = std::make_shared<Memory>(bytes());
    view.data = memory->data();
}

int64_t Array::size() const {
    return std::accumulate(view.shape, view.shape + view.rank, int64_t{1}, std::multiplies<>());
}

int64_t Array::bytes() const {
    return size() * size_of(static_cast<Dtype>(view.dtype));
}

void Array::fill_normal(unsigned seed) {
    constexpr int different = 8191;  // prime: rows of a power of two do not repeat
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(different);
    std::generate(values.begin(), values.end(), [&] { return normal(random); });
    switch (static_cast<Dtype>(view.dtype)) {
    case Dtype::Float32:
        return repeat<float>(values, view.data, size(), [](float value) { return value; });
    case Dtype::BFloat16:
        return repeat<uint16_t>(values, view.data, size(), float_to_bfloat16);
    case Dtype::Float16:
        return repeat<uint16_t>(values, view.data, size(), float_to_half);
    }
}

Batch::Batch(const Geometry &g, Dtype dtype)
    : geometry(g), dtype(dtype), table(g.kv_lengths, g.block_size, g.shared_keys) {
    const int64_t tokens = sum(g.query_lengths);
    for (Array *rows : {&q, &dout, &out, &dq}) {
        *rows = Array(dtype, {tokens, g.heads, g.head_dim});
    }
    lse = Array(Dtype::Float32, {tokens, g.heads});
    for (Array *pool : {&k, &v}) {
        *pool = Array(dtype, {table.num_blocks, g.block_size, g.kv_heads, g.head_dim});
    }
    for (Array *pool : {&dk, &dv}) {
        *pool = Array(Dtype::Float32, {table.num_blocks, g.block_size, g.kv_heads, g.head_dim});
    }
    unsigned seed = 1;
    for (Array *input : {&q, &dout, &k, &v}) {
        input->fill_normal(seed++);
    }
    PagedKv kv;
    kv.k = k.view;
    kv.v = v.view;
    kv.block_table = table.ids.data();
    kv.max_blocks = table.max_blocks;
    kv.kv_length = geometry.kv_lengths.data();
    const auto sequences = static_cast<int32_t>(geometry.query_lengths.size());
    plan = std::make_unique<Plan>(config_of(g),
                                  QueryRows{geometry.query_lengths.data(), nullptr, sequences}, kv);
    run(Operation::forward, {});
}

pagegrad_forward_args Batch::forward_args() const {
    pagegrad_forward_args args{};
    args.struct_size = sizeof(args);
    args.scale = plan->config().scale;
    args.q = q.view;
    args.k_pool = k.view;
    args.v_pool = v.view;
    args.out = out.view;
    args.lse = lse.view;
    return args;
}

pagegrad_backward_args Batch::backward_args() const {
    pagegrad_backward_args args{};
    args.struct_size = sizeof(args);
    args.scale = plan->config().scale;
    args.dout = dout.view;
    args.q = q.view;
    args.k_pool = k.view;
    args.v_pool = v.view;
    args.out = out.view;
    args.lse = lse.view;
    args.dq = dq.view;
    args.dk_pool = dk.view;
    args.dv_pool = dv.view;
    args.pool_mode = PAGEGRAD_POOL_ACCUMULATE;
    return args;
}

const Tensor &Batch::dense(Dtype rows_dtype) {
    if (dense_rows.view.dtype != static_cast<int32_t>(rows_dtype) || !dense_rows.view.data) {
        dense_rows =
            Array(rows_dtype, {sum(geometry.kv_lengths), geometry.kv_heads, geometry.head_dim});
    }
    return dense_rows.view;
}

size_t Batch::workspace(Operation operation, const Execution &execution) const {
    size_t bytes = 0;
    pagegrad_error error{};
    if (operation == Operation::backward) {
        const pagegrad_backward_args args = backward_args();
        internal::check(pagegrad_backward_workspace(plan->get(), &args, &execution, &bytes, &error),
                        error);
    } else if (operation == Operation::forward) {
        const pagegrad_forward_args args = forward_args();
        internal::check(pagegrad_forward_workspace(plan->get(), &args, &execution, &bytes, &error),
                        error);
    }
    return bytes;
}

void Batch::run(Operation operation, const Execution &execution) {
    const pagegrad_plan *batch = plan->get();
    pagegrad_error error{};
    switch (operation) {
    case Operation::backward: {
        const pagegrad_backward_args args = backward_args();
        return internal::check(pagegrad_backward(batch, &args, &execution, &error), error);
    }
    case Operation::forward: {
        const pagegrad_forward_args args = forward_args();
        return internal::check(pagegrad_forward(batch, &args, &execution, &error), error);
    }
    case Operation::gather:
        return internal::check(pagegrad_gather(batch, &k.view, &dense(dtype), &execution, &error),
                               error);
    case Operation::scatter_add:
        return internal::check(
            pagegrad_scatter_add(batch, &dense(Dtype::Float32), &dk.view, &execution, &error),
            error);
    }
}

pagegrad_kernel_info Batch::kernel(Operation operation, const Execution &execution) const {
    const char *name = nullptr;
    pagegrad_error error{};
    internal::check(pagegrad_choose_kernel(plan->get(), name_of(operations, operation).c_str(),
                                           static_cast<int32_t>(dtype), &execution, &name, &error),
                    error);
    for (int32_t index = 0; index < pagegrad_kernel_count(); index++) {
        pagegrad_kernel_info info{};
        info.struct_size = sizeof(info);
        internal::check(pagegrad_get_kernel_info(index, &info, &error), error);
        if (info.name == std::string(name)) {
            return info;
        }
    }
    throw std::logic_error(std::string(name) + " is chosen but not in the list of kernels");
}

double Batch::flops(Operation operation) const {
    const double product =
        2.0 * static_cast<double>(plan->info().visible_pairs) * geometry.heads * geometry.head_dim;
    switch (operation) {
    case Operation::backward:
        return 5 * product;
    case Operation::forward:
        return 2 * product;
    case Operation::gather:
    case Operation::scatter_add:
        return 0;
    }
    return 0;
}

double Batch::bytes(Operation operation) const {
    const pagegrad_plan_info info = plan->info();
    const double row = 1.0 * geometry.kv_heads * geometry.head_dim;
    const auto pool = static_cast<double>(info.pool_rows) * row;
    const auto dense = static_cast<double>(info.kv_tokens) * row;
    const auto element = static_cast<double>(size_of(dtype));
    constexpr double wide = sizeof(float);
    const auto queries = static_cast<double>(q.bytes()),
               statistics = static_cast<double>(lse.bytes());
    switch (operation) {
    case Operation::backward:  // gradients of the pools are read and written
        return 4 * queries + statistics + 2 * pool * (element + 2 * wide);
    case Operation::forward:
        return 2 * queries + statistics + 2 * pool * element;
    case Operation::gather:
        return (pool + dense) * element;
    case Operation::scatter_add:
        return (2 * pool + dense) * wide;
    }
    return 0;
}

}  // namespace pagegrad::bench
