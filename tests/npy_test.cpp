#include "tools/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace pagegrad {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr float infinity = std::numeric_limits<float>::infinity();

template<typename Call>
std::string message_of(const Call &call) {
    try {
        call();
    } catch (const std::runtime_error &error) {
        return error.what();
    }
    return "no error";
}

template<typename T>
NpyArray array_of(NpyDtype dtype, const std::vector<int64_t> &shape, const std::vector<T> &values) {
    NpyArray array;
    array.dtype = dtype;
    array.shape = shape;
    const char *bytes = reinterpret_cast<const char *>(values.data());
    array.bytes.assign(bytes, bytes + values.size() * sizeof(T));
    return array;
}

/// A test with a file of its own.
class Npy : public testing::Test {
protected:
    ~Npy() override {
        std::remove(path.c_str());
    }

    NpyArray round_trip(const NpyArray &array) const {
        write_npy(path, array);
        return read_npy(path);
    }

    void write_text(const std::string &text) const {
        std::ofstream(path, std::ios::binary) << text;
    }

    /// Writes a header, whose length takes 2 bytes in version 1 and 4 in later ones, and elements.
    void write_file(int version, const std::string &header, const std::string &elements) const {
        std::string text = "\x93NUMPY";
        text += {static_cast<char>(version), 0};
        for (int byte = 0; byte < (version == 1 ? 2 : 4); byte++) {
            text += static_cast<char>(header.size() >> (8 * byte) & 255);
        }
        write_text(text + header + elements);
    }

    void expect_refusal(const std::string &message) const {
        EXPECT_THAT(message_of([&] { read_npy(path); }),
                    AllOf(StartsWith(path + ": "), HasSubstr(message)));
    }

    void expect_header_refusal(const std::string &header, const std::string &message) const {
        write_file(1, header, std::string(4, '\0'));
        expect_refusal(message);
    }

    const std::string path = testing::TempDir() + "pagegrad_" +
                             testing::UnitTest::GetInstance()->current_test_info()->name() + ".npy";
};

TEST_F(Npy, RoundTripKeepsTypeShapeAndElements) {
    const NpyArray arrays[] = {
        array_of<uint16_t>(NpyDtype::float16, {3}, {0x3c00, 0xc000, 0x7c00}),
        array_of<float>(NpyDtype::float32, {2, 1, 2}, {1.5f, -0.f, infinity, 1e-40f}),
        array_of<double>(NpyDtype::float64, {1, 2}, {0.1, -1e300}),
        array_of<int32_t>(NpyDtype::int32, {2, 2}, {1, -2, 3, 2147483647}),
        array_of<int64_t>(NpyDtype::int64, {1}, {-(int64_t{1} << 40)}),
        array_of<float>(NpyDtype::float32, {}, {7}),
        array_of<float>(NpyDtype::float32, {0, 4}, {}),
    };
    for (const NpyArray &array : arrays) {
        SCOPED_TRACE(name_of(array.dtype));
        const NpyArray copy = round_trip(array);
        EXPECT_EQ(copy.dtype, array.dtype);
        EXPECT_EQ(copy.shape, array.shape);
        EXPECT_EQ(copy.bytes, array.bytes);
    }
}

TEST_F(Npy, ElementsAreAligned) {
    write_npy(path, array_of<float>(NpyDtype::float32, {1}, {1}));
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    EXPECT_EQ(file.tellg() % 64, 4);
}

TEST_F(Npy, ReadsVersion2) {
    write_file(2, "{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }\n",
               std::string("\1\0\0\0\2\0\0\0", 8));
    const NpyArray array = read_npy(path);
    EXPECT_THAT(array.shape, ElementsAre(2));
    EXPECT_THAT(to_int(array), ElementsAre(1, 2));
}

TEST_F(Npy, ReadsHeadersWithOtherSpaces) {
    write_file(1, "{'shape':(1,1),'fortran_order':False,'descr':'<i4'}",
               std::string("\5\0\0\0", 4));
    const NpyArray array = read_npy(path);
    EXPECT_THAT(array.shape, ElementsAre(1, 1));
    EXPECT_THAT(to_int(array), ElementsAre(5));
}

TEST_F(Npy, RefusesAbsentFiles) {
    expect_refusal("cannot be opened");
}

TEST_F(Npy, RefusesFoldersThatAreAbsent) {
    const std::string absent = path + "/absent.npy";
    EXPECT_EQ(message_of([&] { write_npy(absent, NpyArray()); }),
              absent + ": could not be written");
}

TEST_F(Npy, RefusesOtherFormats) {
    for (const std::string text : {"", "\x93NUM", "a text of some length"}) {
        write_text(text);
        expect_refusal("is not an .npy file");
    }
}

TEST_F(Npy, RefusesOtherVersions) {
    write_file(3, "{}", "");
    expect_refusal("is of .npy version 3, expected 1 or 2");
}

TEST_F(Npy, RefusesTruncatedHeaders) {
    write_text(std::string("\x93NUMPY\1\0\x40", 9));
    expect_refusal("is truncated, or its header is not valid");
    write_text(std::string("\x93NUMPY\1\0\x40\0{'descr'", 18));
    expect_refusal("is truncated in its header");
}

TEST_F(Npy, RefusesHeadersOfAbsurdLength) {
    write_text(std::string("\x93NUMPY\2\0\xff\xff\xff\xff", 12));
    expect_refusal("its header is not valid");
}

TEST_F(Npy, RefusesIncompleteHeaders) {
    expect_header_refusal("{'fortran_order': False, 'shape': (1,)}", "no valid 'descr'");
    expect_header_refusal("{'descr': '<f4', 'shape': (1,)}", "no valid 'fortran_order'");
    expect_header_refusal("{'descr': '<f4', 'fortran_order': False}", "no valid 'shape'");
    expect_header_refusal("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
                          "no valid 'shape'");
}

TEST_F(Npy, RefusesOtherTypes) {
    for (const std::string descr : {"'>f4'", "'<u4'", "'|b1'", "'<c8'"}) {
        expect_header_refusal("{'descr': " + descr + ", 'fortran_order': False, 'shape': (1,)}",
                              "dtype is " + descr + ", expected little-endian float16");
    }
}

TEST_F(Npy, RefusesFortranOrder) {
    expect_header_refusal("{'descr': '<f4', 'fortran_order': True, 'shape': (1,)}",
                          "is in Fortran order, expected C order");
}

TEST_F(Npy, RefusesShapesThatOverflow) {
    expect_header_refusal(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000000,)}",
        "expected sizes below 10^15");
    expect_header_refusal(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000, 1000000000)}",
        "expected at most 2^50 elements");
}

TEST_F(Npy, RefusesFilesOfAnotherLength) {
    expect_header_refusal("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
                          "holds 4 bytes of elements, expected 8 for its shape");
    expect_header_refusal("{'descr': '<f2', 'fortran_order': False, 'shape': (1,)}",
                          "holds 4 bytes of elements, expected 2 for its shape");
}

TEST(NpyConversion, ToFloat) {
    EXPECT_THAT(to_float(array_of<uint16_t>(NpyDtype::float16, {2}, {0x3c00, 0xc100})),
                ElementsAre(1.f, -2.5f));
    EXPECT_THAT(to_float(array_of<float>(NpyDtype::float32, {1}, {0.1f})), ElementsAre(0.1f));
    EXPECT_THAT(to_float(array_of<double>(NpyDtype::float64, {1}, {0.1})), ElementsAre(0.1f));
    EXPECT_EQ(message_of([] { to_float(array_of<int32_t>(NpyDtype::int32, {1}, {1})); }),
              "dtype is int32, expected a float type");
}

TEST(NpyConversion, ToInt) {
    EXPECT_THAT(to_int(array_of<int32_t>(NpyDtype::int32, {2}, {-1, 2})), ElementsAre(-1, 2));
    EXPECT_THAT(to_int(array_of<int64_t>(NpyDtype::int64, {2}, {-2147483648, 2147483647})),
                ElementsAre(-2147483648, 2147483647));
    for (const int64_t value : {int64_t{2147483648}, int64_t{-2147483649}}) {
        EXPECT_EQ(message_of([&] { to_int(array_of<int64_t>(NpyDtype::int64, {1}, {value})); }),
                  "value " + std::to_string(value) + " does not fit into int32");
    }
    EXPECT_EQ(message_of([] { to_int(array_of<float>(NpyDtype::float32, {1}, {1})); }),
              "dtype is float32, expected int32 or int64");
}

TEST(Half, RoundsToNearestEven) {
    EXPECT_EQ(float_to_half(1), 0x3c00);
    EXPECT_EQ(float_to_half(-2.5f), 0xc100);
    EXPECT_EQ(float_to_half(-0.f), 0x8000);
    EXPECT_EQ(float_to_half(1 + 0x1p-11f), 0x3c00);  // ties
    EXPECT_EQ(float_to_half(1 + 0x3p-11f), 0x3c02);
    EXPECT_EQ(float_to_half(1 + 0x1.002p-11f), 0x3c01);  // above a tie
    EXPECT_EQ(float_to_half(0x1p-24f), 0x0001);          // subnormals
    EXPECT_EQ(float_to_half(0x1p-25f), 0x0000);
    EXPECT_EQ(float_to_half(0x3p-25f), 0x0002);
    EXPECT_EQ(float_to_half(0x1.ffep-15f), 0x0400);  // up to the smallest normal number
    EXPECT_EQ(float_to_half(65504), 0x7bff);
    EXPECT_EQ(float_to_half(65519), 0x7bff);
    EXPECT_EQ(float_to_half(65520), 0x7c00);
    EXPECT_EQ(float_to_half(-infinity), 0xfc00);
}

TEST(Half, EveryValueSurvives) {
    for (int bits = 0; bits < 1 << 16; bits++) {
        const float value = half_to_float(static_cast<uint16_t>(bits));
        const uint16_t back = float_to_half(value);
        if (std::isnan(value)) {
            EXPECT_TRUE(std::isnan(half_to_float(back))) << bits;
        } else {
            EXPECT_EQ(back, bits);
        }
    }
}

TEST(Bfloat16, RoundsToNearestEven) {
    EXPECT_EQ(float_to_bfloat16(1), 0x3f80);
    EXPECT_EQ(float_to_bfloat16(-0.f), 0x8000);
    EXPECT_EQ(float_to_bfloat16(1 + 0x1p-8f), 0x3f80);  // ties
    EXPECT_EQ(float_to_bfloat16(1 + 0x3p-8f), 0x3f82);
    EXPECT_EQ(float_to_bfloat16(1 + 0x1.01p-8f), 0x3f81);  // above a tie
    EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f80);
    EXPECT_EQ(float_to_bfloat16(-infinity), 0xff80);
}

TEST(Bfloat16, EveryValueSurvives) {
    for (int bits = 0; bits < 1 << 16; bits++) {
        const float value = bfloat16_to_float(static_cast<uint16_t>(bits));
        const uint16_t back = float_to_bfloat16(value);
        if (std::isnan(value)) {
            EXPECT_TRUE(std::isnan(bfloat16_to_float(back))) << bits;
        } else {
            EXPECT_EQ(back, bits);
        }
    }
}

}  // namespace
}  // namespace pagegrad
