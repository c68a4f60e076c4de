#include "tools/npy.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <numeric>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace pagegrad {

namespace {

struct DtypeRow {
    NpyDtype dtype;
    const char *descr;
    const char *name;
    int64_t size;
};
constexpr DtypeRow dtypes[] = {
    {NpyDtype::float16, "<f2", "float16", 2}, {NpyDtype::float32, "<f4", "float32", 4},
    {NpyDtype::float64, "<f8", "float64", 8}, {NpyDtype::int32, "<i4", "int32", 4},
    {NpyDtype::int64, "<i8", "int64", 8},
};

const DtypeRow &row_of(NpyDtype dtype) {
    return *std::find_if(std::begin(dtypes), std::end(dtypes),
                         [&](const DtypeRow &row) { return row.dtype == dtype; });
}

constexpr char magic[] = "\x93NUMPY";
constexpr size_t magic_size = 6;

[[noreturn]] void fail(const std::string &path, const std::string &what) {
    throw std::runtime_error(path + ": " + what);
}

/// Text of one entry of the header, a Python dictionary.
std::string entry(const std::string &path, const std::string &header, const std::string &key,
                  const std::string &value_pattern) {
    std::smatch match;
    if (!std::regex_search(header, match, std::regex("'" + key + "': *(" + value_pattern + ")"))) {
        fail(path, "header has no valid '" + key + "': " + header);
    }
    return match[1];
}

std::vector<int64_t> parse_shape(const std::string &path, const std::string &text) {
    std::vector<int64_t> shape;
    int64_t elements = 1;
    const std::regex number("[0-9]+");
    for (std::sregex_iterator i(text.begin(), text.end(), number), end; i != end; ++i) {
        if (i->str().size() > 15) {
            fail(path, "shape is " + text + ", expected sizes below 10^15");
        }
        shape.push_back(std::stoll(i->str()));
        if (shape.back() > 0 && elements > (int64_t{1} << 50) / shape.back()) {
            fail(path, "shape is " + text + ", expected at most 2^50 elements");
        }
        elements *= shape.back();
    }
    return shape;
}

}  // namespace

int64_t element_size(NpyDtype dtype) {
    return row_of(dtype).size;
}

const char *name_of(NpyDtype dtype) {
    return row_of(dtype).name;
}

int64_t NpyArray::size() const {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

NpyArray read_npy(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        fail(path, "cannot be opened");
    }
    char start[magic_size + 2] = {};
    file.read(start, sizeof(start));
    if (!file || !std::equal(magic, magic + magic_size, start)) {
        fail(path, "is not an .npy file");
    }
    const int version = static_cast<unsigned char>(start[magic_size]);
    if (version != 1 && version != 2) {
        fail(path, "is of .npy version " + std::to_string(version) + ", expected 1 or 2");
    }
    unsigned char length_bytes[4] = {};
    file.read(reinterpret_cast<char *>(length_bytes), version == 1 ? 2 : 4);
    const uint32_t length = length_bytes[0] | length_bytes[1] << 8 | length_bytes[2] << 16 |
                            static_cast<uint32_t>(length_bytes[3]) << 24;
    constexpr uint32_t longest_header = 1 << 20;
    if (!file || length > longest_header) {
        fail(path, "is truncated, or its header is not valid");
    }
    std::string header(length, ' ');
    file.read(header.data(), length);
    if (!file) {
        fail(path, "is truncated in its header");
    }

    const std::string descr = entry(path, header, "descr", "'[^']*'");
    const auto *row = std::find_if(std::begin(dtypes), std::end(dtypes), [&](const DtypeRow &r) {
        return descr == std::string("'") + r.descr + "'";
    });
    if (row == std::end(dtypes)) {
        fail(path, "dtype is " + descr +
                       ", expected little-endian float16, float32, float64, int32 or int64");
    }
    if (entry(path, header, "fortran_order", "True|False") == "True") {
        fail(path, "is in Fortran order, expected C order");
    }
    NpyArray array;
    array.dtype = row->dtype;
    array.shape = parse_shape(path, entry(path, header, "shape", "\\([0-9, ]*\\)"));
    const auto data = file.tellg();
    file.seekg(0, std::ios::end);
    const int64_t found = file.tellg() - data, expected = array.size() * row->size;
    if (found != expected) {
        fail(path, "holds " + std::to_string(found) + " bytes of elements, expected " +
                       std::to_string(expected) + " for its shape");
    }
    file.seekg(data);
    array.bytes.resize(expected);
    file.read(array.bytes.data(), expected);
    if (!file) {
        fail(path, "could not be read");
    }
    return array;
}

void write_npy(const std::string &path, const NpyArray &array) {
    std::ostringstream dictionary;
    dictionary << "{'descr': '" << row_of(array.dtype).descr
               << "', 'fortran_order': False, 'shape': (";
    for (const int64_t size : array.shape) {
        dictionary << size << (array.shape.size() == 1 ? "," : ", ");
    }
    dictionary << "), }";
    std::string header = dictionary.str();
    // The elements start at a multiple of 64 bytes.
    const size_t before = magic_size + 4;
    header.resize((before + header.size() + 1 + 63) / 64 * 64 - before - 1, ' ');
    header += '\n';
    std::ofstream file(path, std::ios::binary);
    file.write(magic, magic_size);
    const char rest[] = {1, 0, static_cast<char>(header.size() & 255),
                         static_cast<char>(header.size() >> 8)};
    file.write(rest, sizeof(rest));
    file << header;
    file.write(array.bytes.data(), static_cast<std::streamsize>(array.bytes.size()));
    file.close();
    if (!file) {
        fail(path, "could not be written");
    }
}

std::vector<float> to_float(const NpyArray &array) {
    const int64_t size = array.size();
    std::vector<float> values(size);
    switch (array.dtype) {
    case NpyDtype::float16:
        std::transform(array.data<uint16_t>(), array.data<uint16_t>() + size, values.begin(),
                       half_to_float);
        break;
    case NpyDtype::float32:
        std::copy(array.data<float>(), array.data<float>() + size, values.begin());
        break;
    case NpyDtype::float64:
        std::transform(array.data<double>(), array.data<double>() + size, values.begin(),
                       [](double value) { return static_cast<float>(value); });
        break;
    default:
        throw std::runtime_error(std::string("dtype is ") + name_of(array.dtype) +
                                 ", expected a float type");
    }
    return values;
}

std::vector<int32_t> to_int(const NpyArray &array) {
    const int64_t size = array.size();
    std::vector<int32_t> values(size);
    if (array.dtype == NpyDtype::int32) {
        std::copy(array.data<int32_t>(), array.data<int32_t>() + size, values.begin());
    } else if (array.dtype == NpyDtype::int64) {
        std::transform(array.data<int64_t>(), array.data<int64_t>() + size, values.begin(),
                       [](int64_t value) {
                           if (value < std::numeric_limits<int32_t>::min() ||
                               value > std::numeric_limits<int32_t>::max()) {
                               throw std::runtime_error("value " + std::to_string(value) +
                                                        " does not fit into int32");
                           }
                           return static_cast<int32_t>(value);
                       });
    } else {
        throw std::runtime_error(std::string("dtype is ") + name_of(array.dtype) +
                                 ", expected int32 or int64");
    }
    return values;
}

uint16_t float_to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return static_cast<uint16_t>(sign | 0x7e00);
    }
    if (magnitude >= 0x477ff000) {
        return static_cast<uint16_t>(sign | 0x7c00);
    }
    if (magnitude < 0x38800000) {  // subnormal: let the float adder round
        float absolute;
        std::memcpy(&absolute, &magnitude, 4);
        const float shifted = absolute + 0.5f;
        uint32_t result;
        std::memcpy(&result, &shifted, 4);
        return static_cast<uint16_t>(sign | (result - 0x3f000000));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

float half_to_float(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
    uint32_t result;
    if (exponent == 0) {
        const float value = static_cast<float>(mantissa) * 0x1p-24f;
        std::memcpy(&result, &value, 4);
    } else {
        result = (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13;
    }
    result |= sign;
    float value;
    std::memcpy(&value, &result, 4);
    return value;
}

uint16_t float_to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return static_cast<uint16_t>(bits >> 16 | 0x40);
    }
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bfloat16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

}  // namespace pagegrad
