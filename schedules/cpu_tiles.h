/// What every CPU schedule is built from: register tiles that fit the target's vector registers.
#pragma once

#include "Halide.h"

namespace pagegrad {

/// A product of matrices is computed in blocks of `rows` x `columns` accumulators in registers.
struct RegisterTile {
    int rows, columns;
    int vector;  ///< lanes
};

/// 32 registers of 512 bits hold 8 x 32 sums, the two vectors of the right operand and broadcast
/// scalars of the left one from memory; 16 registers of 256 bits hold 4 x 16; 128 bits 4 x 8.
inline RegisterTile register_tile(const Halide::Target &target) {
    if (target.has_feature(Halide::Target::AVX512_Skylake)) {
        return {8, 32, 16};
    }
    if (target.has_feature(Halide::Target::AVX2)) {
        return {4, 16, 8};
    }
    return {4, 8, 4};
}

/// A product of a register block: its sums stay in registers while the reduction runs.
inline void keep_in_registers(Halide::Func product, const Halide::Var &columns,
                              const Halide::Var &rows, int vector) {
    product.vectorize(columns, vector).unroll(columns).unroll(rows);
}

/// Columns of packed tiles: head_dim padded so that every register tile is full.
inline Halide::Expr padded(const Halide::Expr &extent, int multiple) {
    return (extent + (multiple - 1)) / multiple * multiple;
}

}  // namespace pagegrad
