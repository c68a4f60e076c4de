/// What every CPU schedule is built from: register tiles that fit the target's vector registers.
#pragma once

#include "Halide.h"

#include <vector>

namespace pagegrad {

/// A product of matrices is computed in blocks of `rows` x `columns` accumulators in registers.
struct RegisterTile {
    int rows, columns;
    int vector;  ///< lanes
};

/// 32 registers of 512 bits hold 8 x 32 sums, the two vectors of the right operand and broadcast
/// scalars of the left one from memory; 16 registers of 256 bits hold 4 x 16; 128 bits 4 x 8.
/// NEON's 32 registers of 128 bits hold 4 x 16 sums, four vectors and four broadcast scalars.
inline RegisterTile register_tile(const Halide::Target &target) {
    if (target.has_feature(Halide::Target::AVX512_Skylake)) {
        return {8, 32, 16};
    }
    if (target.has_feature(Halide::Target::AVX2)) {
        return {4, 16, 8};
    }
    if (target.arch == Halide::Target::ARM) {
        return {4, 16, 4};
    }
    return {4, 8, 4};
}

/// A product, one register block at a time: its sums stay in registers while the reduction runs.
/// `outer` are the loops over blocks, innermost first.
inline void schedule_product(Halide::Func product, const Halide::Var &columns,
                             const Halide::Var &rows, const Halide::RDom &reduction,
                             const std::vector<Halide::VarOrRVar> &outer,
                             const RegisterTile &tile) {
    product.bound_extent(columns, tile.columns)
        .bound_extent(rows, tile.rows)
        .vectorize(columns, tile.vector)
        .unroll(columns)
        .unroll(rows);
    std::vector<Halide::VarOrRVar> loops{columns, rows, reduction.x};
    loops.insert(loops.end(), outer.begin(), outer.end());
    product.update().reorder(loops).vectorize(columns, tile.vector).unroll(columns).unroll(rows);
}

/// A matrix of at most `columns` x `rows` elements made from products, on the stack. Afterwards the
/// two Vars count register blocks.
inline void schedule_elements(Halide::Func elements, const Halide::Var &column,
                              const Halide::Var &row, int columns, int rows,
                              const RegisterTile &tile) {
    Halide::Var c("block_c"), r("block_r");
    elements.bound_storage(column, columns)
        .bound_storage(row, rows)
        .store_in(Halide::MemoryType::Stack)
        .split(column, column, c, tile.columns)
        .split(row, row, r, tile.rows)
        .reorder(c, r, row, column)
        .vectorize(c, tile.vector)
        .unroll(c)
        .unroll(r);
}

/// Columns of packed tiles: head_dim padded so that every register tile is full. Where it is not
/// known (0), the extent of a packed tile is that already.
inline Halide::Expr packed_columns(int head_dim, const Halide::Expr &extent,
                                   const RegisterTile &tile) {
    const int multiple = tile.columns;
    return head_dim > 0 ? Halide::Expr((head_dim + multiple - 1) / multiple * multiple)
                        : extent / multiple * multiple;
}

}  // namespace pagegrad
