/// What tiles are packed from: keys of a pool, or rows of q or dout. Members of a generator that
/// packs.
#pragma once

#include "paging.h"

namespace pagegrad {

/// A column of head_dim. Most vectors of columns need no padding: loops are split so that those
/// loads are dense.
inline Expr column(const Expr &d, const Expr &head_dim) {
    return Halide::min(Halide::likely(d), head_dim - 1);
}

/// The value, or zero. On the bits: Halide would compute with 16-bit numbers in float32.
inline Expr where(const Expr &condition, const Expr &value) {
    const Halide::Type bits = Halide::UInt(value.type().bits());
    return Halide::reinterpret(
        value.type(),
        Halide::select(condition, Halide::reinterpret(bits, value), Halide::cast(bits, 0)));
}

/// Keys or values of one KV head, read through the block table. Keys past the end repeat the last
/// one, columns past head_dim are zero.
struct KeySource {
    template<typename T>
    using Input = Halide::GeneratorInput<T>;

    // Indices innermost first. The caller owns everything.
    Input<Halide::Buffer<void, 4>> pool{"pool"};         // d, KV head, slot, block
    Input<Halide::Buffer<int32_t, 1>> blocks{"blocks"};  // pool blocks of the tile
    Input<int> first_slot{"first_slot"};                 // of the first key, in the first block
    Input<int> num_keys{"num_keys"};
    Input<int> kv_head{"kv_head"};

    void set_type(const Halide::Type &type) {
        pool.set_type(type);
    }

    void prepare() {
        pool.dim(0).set_min(0);
        const PoolRow row = find_in_pool(blocks, pool, first_slot, Halide::min(key, num_keys - 1));
        block(key) = row.block;
        slot(key) = row.slot;
        for (Halide::Func index : {block, slot}) {
            index.compute_root();
        }
    }

    Expr operator()(const Expr &d, const Expr &at) const {
        const PoolRow row = clamp_to_pool({block(at), slot(at)}, pool);
        const Expr D = pool.dim(0).extent();
        return where(Halide::likely(d < D), pool(column(d, D), kv_head, row.slot, row.block));
    }

private:
    Halide::Var key{"key"};
    Halide::Func block{"pool_block"}, slot{"pool_slot"};
};

/// Listed query rows of a tensor. Rows past the end and columns past head_dim are zero.
struct QuerySource {
    template<typename T>
    using Input = Halide::GeneratorInput<T>;

    // Indices innermost first. The caller owns everything.
    Input<Halide::Buffer<void, 4>> tensor{"tensor"};  // d, head, token, batch
    Input<Halide::Buffer<int32_t, 2>> rows{"rows"};   // field, row

    void set_type(const Halide::Type &type) {
        tensor.set_type(type);
    }

    void prepare() {
        tensor.dim(0).set_min(0);
        rows.dim(0).set_bounds(0, row_fields);
    }

    Expr operator()(const Expr &d, const Expr &at) const {
        const Expr D = tensor.dim(0).extent(), num_rows = rows.dim(1).extent();
        const QueryRow row(rows, tensor, Halide::min(at, num_rows - 1));
        return where(Halide::likely(d < D) && at < num_rows, row.of(tensor, column(d, D)));
    }
};

}  // namespace pagegrad
