// .npy files: what is written is read back, and what cannot be read is refused by name.
#include "tools/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

namespace pagegrad::test {
namespace {

using testing::HasSubstr;

std::string path_of(const std::string &name) {
    return testing::TempDir() + "/" + name + ".npy";
}

/// A file with a header and some bytes of elements.
std::string file_with(const std::string &name, int version, const std::string &dictionary,
                      size_t bytes) {
    std::ofstream file(path_of(name), std::ios::binary);
    file << "\x93NUMPY" << static_cast<char>(version) << '\0';
    const auto length = static_cast<uint32_t>(dictionary.size());
    for (int i = 0; i < (version == 1 ? 2 : 4); i++) {
        file << static_cast<char>(length >> (8 * i) & 255);
    }
    file << dictionary << std::string(bytes, '\0');
    return path_of(name);
}

std::string refusal(const std::string &path) {
    try {
        read_npy(path);
    } catch (const std::runtime_error &error) {
        EXPECT_THAT(error.what(), HasSubstr(path));
        return error.what();
    }
    return "accepted";
}

TEST(Npy, reads_what_it_writes) {
    for (const std::vector<int64_t> &shape :
         {std::vector<int64_t>{2, 3, 4}, std::vector<int64_t>{5}, std::vector<int64_t>{},
          std::vector<int64_t>{0, 7}}) {
        for (const NpyDtype dtype : {NpyDtype::float16, NpyDtype::float32, NpyDtype::float64,
                                     NpyDtype::int32, NpyDtype::int64}) {
            NpyArray array;
            array.dtype = dtype;
            array.shape = shape;
            for (int64_t i = 0; i < array.size() * element_size(dtype); i++) {
                array.bytes.push_back(static_cast<char>(i));
            }
            write_npy(path_of("round_trip"), array);
            const NpyArray read = read_npy(path_of("round_trip"));
            EXPECT_EQ(read.dtype, dtype);
            EXPECT_EQ(read.shape, shape);
            EXPECT_EQ(read.bytes, array.bytes);
        }
    }
}

TEST(Npy, reads_version_2) {
    const std::string path =
        file_with("version2", 2, "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }\n", 12);
    EXPECT_EQ(to_int(read_npy(path)), (std::vector<int32_t>{0, 0, 0}));
}

TEST(Npy, refuses_what_it_cannot_read) {
    EXPECT_THAT(refusal(path_of("missing")), HasSubstr("cannot be opened"));
    std::ofstream(path_of("text")) << "no array at all";
    EXPECT_THAT(refusal(path_of("text")), HasSubstr("not an .npy file"));
    const auto with = [](const std::string &dictionary) {
        return refusal(file_with("bad", 1, dictionary, 8));
    };
    EXPECT_THAT(with("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }"),
                HasSubstr("Fortran order"));
    EXPECT_THAT(with("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }"),
                HasSubstr("dtype is '>f4'"));
    EXPECT_THAT(with("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"),
                HasSubstr("holds 8 bytes of elements, expected 12"));
    EXPECT_THAT(with("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"),
                HasSubstr("holds 8 bytes of elements, expected 4"));
    EXPECT_THAT(with("{'descr': '<f4', 'fortran_order': False}"), HasSubstr("'shape'"));
    EXPECT_THAT(
        with("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999)}"),
        HasSubstr("2^50"));
    EXPECT_THAT(refusal(file_with("version9", 9, "", 0)), HasSubstr("version 9"));
}

TEST(Npy, converts_numbers) {
    NpyArray array;
    array.dtype = NpyDtype::int64;
    array.shape = {1};
    array.bytes.assign(8, '\x7f');
    EXPECT_THROW(to_int(array), std::runtime_error);
    EXPECT_THROW(to_float(array), std::runtime_error);
    array.dtype = NpyDtype::float64;
    EXPECT_THROW(to_int(array), std::runtime_error);
}

TEST(Half, survives_the_way_there_and_back) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const float value = half_to_float(static_cast<uint16_t>(bits));
        if (!std::isnan(value)) {
            ASSERT_EQ(float_to_half(value), bits);
        }
        const float wide = bfloat16_to_float(static_cast<uint16_t>(bits));
        if (!std::isnan(wide)) {
            ASSERT_EQ(float_to_bfloat16(wide), bits);
        }
    }
}

TEST(Half, rounds_to_nearest_even) {
    EXPECT_EQ(half_to_float(float_to_half(2049.0f)), 2048.0f);
    EXPECT_EQ(half_to_float(float_to_half(2051.0f)), 2052.0f);
    EXPECT_EQ(half_to_float(float_to_half(65519.0f)), 65504.0f);
    EXPECT_EQ(half_to_float(float_to_half(65520.0f)), std::numeric_limits<float>::infinity());
    EXPECT_EQ(half_to_float(float_to_half(0x1p-25f)), 0.0f);
    EXPECT_EQ(half_to_float(float_to_half(0x1.8p-25f)), 0x1p-24f);
    EXPECT_TRUE(std::isnan(half_to_float(float_to_half(NAN))));
    EXPECT_EQ(bfloat16_to_float(float_to_bfloat16(257.0f)), 256.0f);
    EXPECT_EQ(bfloat16_to_float(float_to_bfloat16(259.0f)), 260.0f);
    EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(NAN))));
}

}  // namespace
}  // namespace pagegrad::test
