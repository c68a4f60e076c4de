/// The formats of tensor elements, and rounding to them.
#pragma once

#include "pagegrad/pagegrad.h"

#include <cstdint>

namespace pagegrad::test {

constexpr pagegrad_dtype all_dtypes[] = {PAGEGRAD_FLOAT32, PAGEGRAD_BFLOAT16, PAGEGRAD_FLOAT16};

/// As in the names of kernels: "f32", "bf16" or "f16".
const char *dtype_name(pagegrad_dtype dtype);

/// Bytes.
constexpr int element_size(pagegrad_dtype dtype) {
    return dtype == PAGEGRAD_FLOAT32 ? 4 : 2;
}

/// The number of the format that is nearest, of two the even one; infinity from half a step beyond
/// the largest on.
double rounded(double value, pagegrad_dtype dtype);

/// The bits of rounded(value), in the low bits of a word. Every NaN becomes the same quiet one.
uint32_t encoded(double value, pagegrad_dtype dtype);

float decoded(uint32_t bits, pagegrad_dtype dtype);

}  // namespace pagegrad::test
