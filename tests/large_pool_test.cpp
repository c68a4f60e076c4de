// Blocks that lie gigabytes apart: offsets from the block id on have 64 bits. The memory is
// reserved, but only the pages of the blocks exist.
#include "tests/support/problem.h"
#include "tests/support/rounding.h"

#include <sys/mman.h>

#include <cstring>

namespace pagegrad::test {
namespace {

constexpr int64_t block_distance = int64_t{1} << 30;  ///< elements

/// Reserved address space for pools of `num_blocks` blocks.
class SparseMemory {
public:
    explicit SparseMemory(int64_t num_blocks)
        : bytes_(num_blocks * block_distance * sizeof(float)),
          data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
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
    /// A view for a pool like `pool`; pools are interleaved.
    pagegrad_tensor view(const pagegrad_tensor &pool) {
        pagegrad_tensor view = pool;
        view.data = static_cast<char *>(data_) + used_;
        view.stride[0] = block_distance;
        used_ += pool.stride[0] * static_cast<int64_t>(sizeof(float));
        return view;
    }

private:
    std::size_t bytes_;
    void *data_;
    int64_t used_ = 0;  ///< bytes at the start of every block
};

/// Copies the blocks of one pool to another with contiguous blocks.
void copy_blocks(const pagegrad_tensor &from, const pagegrad_tensor &to) {
    const int64_t element = element_size(static_cast<pagegrad_dtype>(from.dtype));
    const int64_t bytes = from.shape[1] * from.shape[2] * from.shape[3] * element;
    for (int64_t block = 0; block < from.shape[0]; block++) {
        std::memcpy(static_cast<char *>(to.data) + block * to.stride[0] * element,
                    static_cast<const char *>(from.data) + block * from.stride[0] * element, bytes);
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
    SparseMemory memory(call.pool_blocks());
    if (!memory.available()) {
        GTEST_SKIP() << "not enough address space";
    }
    pagegrad_backward_args &args = call.backward_args;
    for (pagegrad_tensor *pool : {&args.k_pool, &args.v_pool, &args.dk_pool, &args.dv_pool}) {
        const pagegrad_tensor sparse = memory.view(*pool);
        copy_blocks(*pool, sparse);
        *pool = sparse;
    }
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    copy_blocks(args.dk_pool, call.dk_pool);
    copy_blocks(args.dv_pool, call.dv_pool);
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

}  // namespace
}  // namespace pagegrad::test
