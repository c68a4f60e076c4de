/// Ceilings of the machine, measured in the process that compares with them: clocks drift.
#pragma once

#include "pagegrad/pagegrad.hpp"

#include <string>

namespace pagegrad::bench {

/// Instructions that products are made of.
enum class Roof {
    fma512,       ///< AVX-512 multiply-adds of float32
    fma256,       ///< AVX2 multiply-adds of float32
    bf16_dot512,  ///< vdpbf16ps: AVX-512 dot products of pairs of bfloat16
    fma_neon      ///< NEON multiply-adds of float32
};

/// As in "FMA 512-bit".
const char *roof_name(Roof roof);

/// The roof of a kernel for a target (see pagegrad_kernel_info) with tensors of `dtype`.
Roof roof_of(const std::string &target, Dtype dtype);

/// GFLOP/s of `threads` threads together, the best of some short runs; 0 where the processor does
/// not have the instructions.
double peak_gflops(Roof roof, int threads);

/// GB/s read and written by `threads` threads that copy memory with streaming stores.
double copy_gbytes(int threads);

}  // namespace pagegrad::bench
