/// Tensors in the memory of a GPU: checks, their form as kernel arguments, and filling.
#pragma once

#include "device_kernels.h"
#include "driver.h"
#include "pagegrad/pagegrad.h"

#include <string>

namespace pagegrad::cuda {

/// Refuses memory that is not on the GPU of `place`.
void check_device_memory(const std::string &name, const void *data, const Place &place);

// Units in which kernels address tensors (lowering/README.md).
constexpr int vector_bytes = 16, pair_bytes = 8, word_bytes = 4;

/// Bytes of two neighbours, which kernels write at once.
int neighbour_bytes(const pagegrad_tensor &tensor);

/// Refuses a tensor that kernels cannot address in units of `unit_bytes` with 32-bit offsets, or
/// that is not in the memory of the GPU. Empty and absent tensors pass.
void check_device_tensor(const std::string &name, const pagegrad_tensor &tensor, int unit_bytes,
                         const Place &place);

/// Adds the address of a tensor and its strides, innermost dimension first, in units of
/// `unit_bytes`.
void add_tensor(Arguments &arguments, const std::string &name, const pagegrad_tensor &tensor,
                int unit_bytes);

/// The same for a result that may be float32 or have 16 bits: kernels get both views of it.
void add_output(Arguments &arguments, const std::string &name, const pagegrad_tensor &tensor);

/// Sets the elements of a tensor to the bits of `value`, on the stream; those of 16-bit tensors two
/// by two.
void fill(const pagegrad_tensor &tensor, uint32_t value, Stream stream);

}  // namespace pagegrad::cuda
