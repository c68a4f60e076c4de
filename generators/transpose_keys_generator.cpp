/// Packs keys or values of one KV head, read through the block table, as the right operand of a
/// product over head_dim: transposed.
#include "paging.h"
#include "products.h"

namespace pagegrad {
namespace {

using namespace Halide;

class TransposeKeys : public Generator<TransposeKeys> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};
    GeneratorParam<Type> product{"product", Float(32)};

    // Indices innermost first. The caller owns everything.
    Input<Buffer<void, 4>> pool{"pool"};         // d, KV head, slot, block
    Input<Buffer<int32_t, 1>> blocks{"blocks"};  // pool blocks of the tile
    Input<int> first_slot{"first_slot"};         // of the first key, in the first block
    Input<int> num_keys{"num_keys"};
    Input<int> kv_head{"kv_head"};
    Output<Buffer<void, 2>> packed{"packed"};  // key (padded), d word (padded): see products.h

    void configure() {
        pool.set_type(dtype);
        packed.set_type(Products(product).word_type());
    }

    void generate() {
        const TileKeys keys(blocks, pool, first_slot, num_keys);
        words(d, c) = Products(product).word(
            [&](const Expr &column) { return keys(pool, column, kv_head, c); }, d);
        packed(c, d) = words(d, c);
    }

    void schedule() {
        const int vector = natural_vector_size<float>();
        Var block("block");
        pool.dim(0).set_min(0);
        packed.dim(0).set_bounds(0, packed.dim(0).extent() / vector * vector);
        packed.dim(1).set_bounds(0, packed.dim(1).extent() / vector * vector);
        packed.split(c, block, c, vector).reorder(c, d, block).vectorize(c);
        words.compute_at(packed, block).vectorize(d, vector);
    }

private:
    Var d{"d"}, c{"c"};
    Func words{"words"};
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::TransposeKeys, transpose_keys)
