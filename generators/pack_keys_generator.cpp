/// Packs keys or values of one KV head, read through the block table, as the right operand of a
/// product over keys.
#include "paging.h"
#include "products.h"

namespace pagegrad {
namespace {

using namespace Halide;

class PackKeys : public Generator<PackKeys> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};
    GeneratorParam<Type> product{"product", Float(32)};

    // Indices innermost first. The caller owns everything.
    Input<Buffer<void, 4>> pool{"pool"};         // d, KV head, slot, block
    Input<Buffer<int32_t, 1>> blocks{"blocks"};  // pool blocks of the tile
    Input<int> first_slot{"first_slot"};         // of the first key, in the first block
    Input<int> num_keys{"num_keys"};
    Input<int> kv_head{"kv_head"};
    Output<Buffer<void, 2>> packed{"packed"};  // d (padded), key word (padded): see products.h

    void configure() {
        pool.set_type(dtype);
        packed.set_type(Products(product).word_type());
    }

    void generate() {
        const TileKeys keys(blocks, pool, first_slot, num_keys);
        packed(d, c) =
            Products(product).word([&](const Expr &key) { return keys(pool, d, kv_head, key); }, c);
    }

    void schedule() {
        const int vector = natural_vector_size<float>();
        pool.dim(0).set_min(0);
        packed.dim(0).set_bounds(0, packed.dim(0).extent() / vector * vector);
        packed.vectorize(d, vector);
    }

private:
    Var d{"d"}, c{"c"};
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::PackKeys, pack_keys)
