/// Tensors in the memory of a GPU: checks, their form as kernel arguments, and filling.
#pragma once

#include "device_kernels.h"
#include "driver.h"
#include "pagegrad/pagegrad.h"

#include <string>

namespace pagegrad::cuda {

/// Refuses memory that is not on the GPU of `place`.
void check_device_memory(const std::string &name, const void *data, const Place &place);

/// Refuses a tensor that kernels cannot address in units of `unit_bytes` with 32-bit offsets, or
/// that is not in the memory of the GPU. Empty and absent tensors pass.
void check_device_tensor(const std::string &name, const pagegrad_tensor &tensor, int unit_bytes,
                         const Place &place);

/// Refuses a tensor of another dtype than q, which other devices may take.
void check_dtype_of_q(const std::string &name, const pagegrad_tensor &tensor,
                      const pagegrad_tensor &q);

/// Adds the address of a tensor and its strides, innermost dimension first, in units of
/// `unit_bytes`.
void add_tensor(Arguments &arguments, const std::string &name, const pagegrad_tensor &tensor,
                int unit_bytes);

/// Sets the elements of a tensor to the bits of `value`, on the stream; those of 16-bit tensors two
/// by two.
void fill(const pagegrad_tensor &tensor, uint32_t value, Stream stream);

}  // namespace pagegrad::cuda
