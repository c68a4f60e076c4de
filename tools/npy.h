/// Arrays in NumPy's .npy files (format versions 1 and 2, little-endian, C order).
/// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace pagegrad {

enum class NpyDtype { float16, float32, float64, int32, int64 };

/// Bytes of an element.
int64_t element_size(NpyDtype dtype);

/// NumPy's name of a type, as in "float32".
const char *name_of(NpyDtype dtype);

struct NpyArray {
    NpyDtype dtype = NpyDtype::float32;
    std::vector<int64_t> shape;  ///< outermost first
    std::vector<char> bytes;

    /// Number of elements.
    int64_t size() const;

    /// The elements, which must be of type T.
    template<typename T>
    const T *data() const {
        return reinterpret_cast<const T *>(bytes.data());
    }
};

/// Throws std::runtime_error with the file's name, what was found and what was expected.
NpyArray read_npy(const std::string &path);
void write_npy(const std::string &path, const NpyArray &array);

/// Elements of a float16, float32 or float64 array as float32. Throws for integers.
std::vector<float> to_float(const NpyArray &array);

/// Elements of an int32 or int64 array as int32. Throws for floats, and for values out of range.
std::vector<int32_t> to_int(const NpyArray &array);

/// IEEE half precision and bfloat16, rounded to nearest even.
uint16_t float_to_half(float value);
float half_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);
float bfloat16_to_float(uint16_t bits);

}  // namespace pagegrad
