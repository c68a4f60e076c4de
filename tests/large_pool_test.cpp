// Index width: blocks and tokens that lie gigabytes apart, the largest block ids and lengths, very
// many sequences. The memory is reserved, but only the pages that are used exist.
#include "tests/support/problem.h"
#include "tests/support/rounding.h"

#include <sys/mman.h>

#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace pagegrad::test {
namespace {

constexpr int64_t distance = int64_t{1} << 30;  ///< elements between blocks, or between tokens

/// Reserved address space, full of zeros.
class SparseMemory {
public:
    explicit SparseMemory(int64_t bytes)
        : bytes_(bytes), data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    }
    ~SparseMemory() {
        if (available()) {
            munmap(data_, bytes_);
        }
    }
    SparseMemory(const SparseMemory &) = delete;
    SparseMemory &operator=(const SparseMemory &) = delete;
    bool available() const {
        return data_ != MAP_FAILED;
    }
    /// A view for a tensor like `tensor`, whose first dimension steps over `distance`: such tensors
    /// are interleaved.
    pagegrad_tensor view(const pagegrad_tensor &tensor) {
        pagegrad_tensor view = tensor;
        view.data = static_cast<char *>(data_) + used_;
        view.stride[0] = distance;
        used_ += tensor.stride[0] * static_cast<int64_t>(sizeof(float));
        return view;
    }
    /// Memory for `count` elements of T.
    template<typename T>
    T *take(int64_t count) {
        T *piece = reinterpret_cast<T *>(static_cast<char *>(data_) + used_);
        used_ += count * static_cast<int64_t>(sizeof(T));
        return piece;
    }

private:
    std::size_t bytes_;
    void *data_;
    int64_t used_ = 0;  ///< at the start, and of every block
};

/// Copies a tensor to one of other strides, whose inner dimensions are contiguous in both.
void copy_entries(const pagegrad_tensor &from, const pagegrad_tensor &to) {
    const int64_t element = element_size(static_cast<pagegrad_dtype>(from.dtype));
    int64_t bytes = element;
    for (int dim = 1; dim < from.rank; dim++) {
        bytes *= from.shape[dim];
    }
    for (int64_t i = 0; i < from.shape[0]; i++) {
        std::memcpy(static_cast<char *>(to.data) + i * to.stride[0] * element,
                    static_cast<const char *>(from.data) + i * from.stride[0] * element, bytes);
    }
}

class LargePool : public testing::TestWithParam<KernelChoice> {};

TEST_P(LargePool, offsets_have_64_bits) {
    const Problem problem = make_problem(
        Geometry({17, 5}, {33, 20}).dim(64).heads(2, 1).bottom_right().stored_as(GetParam().dtype));
    Options options;
    options.kernel = GetParam().name;
    options.pool_mode = PAGEGRAD_POOL_ACCUMULATE;
    PagedCall call(problem, options);
    SparseMemory memory(call.pool_blocks() * distance * int64_t{sizeof(float)});
    if (!memory.available()) {
        GTEST_SKIP() << "not enough address space";
    }
    pagegrad_backward_args &args = call.backward_args;
    for (pagegrad_tensor *pool : {&args.k_pool, &args.v_pool, &args.dk_pool, &args.dv_pool}) {
        const pagegrad_tensor sparse = memory.view(*pool);
        copy_entries(*pool, sparse);
        *pool = sparse;
    }
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    copy_entries(args.dk_pool, call.dk_pool);
    copy_entries(args.dv_pool, call.dv_pool);
    call.expect_backward();

    if (GetParam().name.empty()) {
        call.forward_args.k_pool = args.k_pool;
        call.forward_args.v_pool = args.v_pool;
        ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
        call.expect_forward();
    }
}

INSTANTIATE_TEST_SUITE_P(, LargePool,
                         testing::ValuesIn(kernels_and_dispatch({"backward", "backward_dense"},
                                                                64)),
                         [](const auto &info) { return label(info.param); });

class LargeTokens : public testing::TestWithParam<KernelChoice> {};

/// The same for what has a row for each query, lse and dlse among it.
TEST_P(LargeTokens, offsets_have_64_bits) {
    const Problem problem = make_problem(Geometry({3, 2}, {33, 20})
                                             .dim(64)
                                             .heads(2, 1)
                                             .bottom_right()
                                             .dlse()
                                             .stored_as(GetParam().dtype));
    Options options;
    options.kernel = GetParam().name;
    PagedCall call(problem, options);
    SparseMemory memory(5 * distance * int64_t{sizeof(float)});
    if (!memory.available()) {
        GTEST_SKIP() << "not enough address space";
    }
    pagegrad_backward_args &args = call.backward_args;
    for (pagegrad_tensor *rows :
         {&args.dout, &args.q, &args.out, &args.lse, &args.dlse, &args.dq}) {
        const pagegrad_tensor sparse = memory.view(*rows);
        copy_entries(*rows, sparse);
        *rows = sparse;
    }
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    copy_entries(args.dq, call.dq);
    call.expect_backward();

    if (GetParam().name.empty()) {
        pagegrad_forward_args &forward = call.forward_args;
        forward.q = args.q;
        forward.out = memory.view(forward.out);
        forward.lse = memory.view(forward.lse);
        ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
        copy_entries(forward.out, call.out);
        copy_entries(forward.lse, call.lse);
        call.expect_forward();
    }
}

INSTANTIATE_TEST_SUITE_P(, LargeTokens,
                         testing::ValuesIn(kernels_and_dispatch({"backward", "backward_dense"},
                                                                64)),
                         [](const auto &info) { return label(info.param); });

/// Replaces the pools of a problem of one sequence by others of which only the last rows are seen:
/// the results are the same. `first_key` is the place of the problem's first key.
void expect_same_at_the_end(pagegrad_plan_desc desc, int64_t first_key,
                            const std::vector<int32_t> &table) {
    const int keys = 64, dim = 4;
    const Problem problem =
        make_problem(Geometry({3}, {keys}).dim(dim).bottom_right().window(keys - 3, -1));
    Options options;
    options.pool_mode = PAGEGRAD_POOL_ACCUMULATE;
    options.with_lse = false;
    PagedCall call(problem, options);
    const int64_t elements = desc.num_blocks * desc.block_size * dim;
    SparseMemory memory(4 * elements * int64_t{sizeof(float)});
    if (!memory.available()) {
        GTEST_SKIP() << "not enough address space";
    }
    const auto element_of = [&](int64_t key, int d) {
        const int64_t block = table[(first_key + key) / desc.block_size];
        return (block * desc.block_size + (first_key + key) % desc.block_size) * dim + d;
    };
    pagegrad_backward_args &args = call.backward_args;
    const auto large = [&](const pagegrad_tensor &pool, const GuardedTensor &values) {
        pagegrad_tensor view = pool;
        auto *data = memory.take<float>(elements);
        for (int64_t key = 0; key < keys; key++) {
            for (int d = 0; d < dim; d++) {
                data[element_of(key, d)] = values[call.pool_row(key) * dim + d];
            }
        }
        const int64_t shape[] = {desc.num_blocks, desc.block_size, 1, dim};
        std::copy(shape, shape + 4, view.shape);
        const int64_t stride[] = {int64_t{desc.block_size} * dim, dim, dim, 1};
        std::copy(stride, stride + 4, view.stride);
        view.data = data;
        return view;
    };
    args.k_pool = large(args.k_pool, call.k_pool);
    args.v_pool = large(args.v_pool, call.v_pool);
    args.dk_pool = large(args.dk_pool, call.dk_pool);
    args.dv_pool = large(args.dv_pool, call.dv_pool);

    const int32_t query_length = 3, kv_length = static_cast<int32_t>(first_key + keys);
    desc.struct_size = sizeof(desc);
    desc.num_heads = desc.num_kv_heads = 1;
    desc.head_dim = dim;
    desc.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    desc.window_left = keys - 3;
    desc.window_right = -1;
    desc.num_sequences = 1;
    desc.query_length = &query_length;
    desc.kv_length = &kv_length;
    desc.block_table = table.data();
    desc.block_table_stride = desc.max_blocks = static_cast<int32_t>(table.size());
    pagegrad_plan *plan = nullptr;
    pagegrad_error error{};
    ASSERT_EQ(pagegrad_plan_create(&desc, &plan, &error), PAGEGRAD_OK) << error.message;
    EXPECT_EQ(pagegrad_backward(plan, &args, &call.execution, &error), PAGEGRAD_OK)
        << error.message;
    pagegrad_plan_destroy(plan);
    for (int64_t key = 0; key < keys; key++) {
        for (int d = 0; d < dim; d++) {
            const int64_t to = call.pool_row(key) * dim + d;
            call.dk_pool.set(to, static_cast<float *>(args.dk_pool.data)[element_of(key, d)]);
            call.dv_pool.set(to, static_cast<float *>(args.dv_pool.data)[element_of(key, d)]);
        }
    }
    call.expect_backward();
}

TEST(LargeNumbers, block_ids_up_to_the_last_of_int32) {
    pagegrad_plan_desc desc{};
    desc.block_size = 1;
    desc.num_blocks = std::numeric_limits<int32_t>::max();
    std::vector<int32_t> table(64);
    for (int32_t i = 0; i < 64; i++) {
        table[i] = i % 2 == 0 ? std::numeric_limits<int32_t>::max() - 1 - i : i;
    }
    expect_same_at_the_end(desc, 0, table);
}

TEST(LargeNumbers, as_many_keys_as_a_plan_takes) {
    pagegrad_plan_desc desc{};
    desc.block_size = 1 << 16;
    desc.num_blocks = 1 << 15;
    std::vector<int32_t> table(1 << 15);
    std::iota(table.rbegin(), table.rend(), 0);
    expect_same_at_the_end(desc, std::numeric_limits<int32_t>::max() - 1024 - int64_t{64}, table);
}

TEST(LargeNumbers, more_sequences_than_16_bits_count) {
    const int count = 70000;
    Geometry geometry(std::vector<int32_t>(count, 1), std::vector<int32_t>(count, 2));
    geometry.dim(4).heads(2, 1).block(2).blocks.resize(count);
    for (int b = 0; b < count; b++) {
        geometry.blocks[b] = {b % 1000};
    }
    const Problem problem = make_problem(geometry);
    PagedCall call(problem);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_forward();
    call.expect_backward();
}

}  // namespace
}  // namespace pagegrad::test
