// The tensors that the other tests hand to the library, in every format and layout.
#include "tests/support/guarded_tensor.h"
#include "tests/support/rounding.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

namespace pagegrad::test {
namespace {

std::string layout_name(Layout layout) {
    const char *const names[] = {"contiguous", "padded", "head_major", "shuffled"};
    return names[static_cast<int>(layout)];
}

class Guarded : public testing::TestWithParam<std::tuple<pagegrad_dtype, Layout>> {
protected:
    const pagegrad_dtype dtype = std::get<0>(GetParam());
    GuardedTensor tensor{{3, 2, 5, 7}, std::get<1>(GetParam()), dtype};
    const pagegrad_tensor view = tensor;

    /// Memory of an element, by the strides of the view.
    unsigned char *address(int64_t a, int64_t b, int64_t c, int64_t d) const {
        const int64_t offset =
            a * view.stride[0] + b * view.stride[1] + c * view.stride[2] + d * view.stride[3];
        return static_cast<unsigned char *>(view.data) + offset * element_size(dtype);
    }
};

TEST_P(Guarded, entries_are_where_the_view_says) {
    for (int64_t at = 0; at < tensor.size(); at++) {
        EXPECT_TRUE(tensor.is_untouched(at));
        EXPECT_TRUE(std::isnan(tensor[at]));
        tensor.set(at, static_cast<double>(at));  // exact in every format
    }
    EXPECT_EQ(view.dtype, dtype);
    EXPECT_EQ(tensor.size(), 3 * 2 * 5 * 7);
    for (int64_t at = 0; at < tensor.size(); at++) {
        const unsigned char *element = address(at / 70, at / 35 % 2, at / 7 % 5, at % 7);
        uint32_t bits = 0;
        std::copy_n(element, element_size(dtype), reinterpret_cast<unsigned char *>(&bits));
        EXPECT_EQ(decoded(bits, dtype), static_cast<float>(at));
        EXPECT_EQ(tensor[at], static_cast<float>(at));
        EXPECT_FALSE(tensor.is_untouched(at));
    }
    EXPECT_TRUE(tensor.guards_intact());
}

TEST_P(Guarded, entries_are_rounded) {
    tensor.set(3, 1 + 0x1p-30);
    EXPECT_EQ(tensor[3], 1);
    tensor.set(3, -INFINITY);
    EXPECT_EQ(tensor[3], -INFINITY);
}

TEST_P(Guarded, data_is_aligned_to_the_element_only) {
    const auto data = reinterpret_cast<std::uintptr_t>(view.data);
    EXPECT_EQ(data % (2 * element_size(dtype)), static_cast<std::uintptr_t>(element_size(dtype)));
}

TEST_P(Guarded, a_byte_outside_is_noticed) {
    for (unsigned char *outside :
         {address(0, 0, 0, 0) - 1, address(2, 1, 4, 6) + element_size(dtype)}) {
        *outside ^= 1;
        EXPECT_FALSE(tensor.guards_intact());
        *outside ^= 1;
        EXPECT_TRUE(tensor.guards_intact());
    }
    if (std::get<1>(GetParam()) != Layout::Contiguous) {
        *address(0, 0, 0, 7) ^= 1;  // between rows
        EXPECT_FALSE(tensor.guards_intact());
    }
}

INSTANTIATE_TEST_SUITE_P(, Guarded,
                         testing::Combine(testing::Values(PAGEGRAD_FLOAT32, PAGEGRAD_BFLOAT16,
                                                          PAGEGRAD_FLOAT16),
                                          testing::Values(Layout::Contiguous, Layout::Padded,
                                                          Layout::HeadMajor, Layout::Shuffled)),
                         [](const auto &info) {
                             return dtype_name(std::get<0>(info.param)) +
                                    ("_" + layout_name(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace pagegrad::test
