/// What tiles are packed from: keys of a pool, or rows of q or dout. Both are read as float32,
/// whatever their dtype, and are members of a generator that packs.
#pragma once

#include "paging.h"

namespace pagegrad {

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
        const Expr value = pool(Halide::min(d, D - 1), kv_head, row.slot, row.block);
        return in_head(Halide::cast<float>(value), d, D);
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
        const Expr value = Halide::cast<float>(row.of(tensor, Halide::min(d, D - 1)));
        return Halide::select(at < num_rows, in_head(value, d, D), 0.0f);
    }
};

}  // namespace pagegrad
