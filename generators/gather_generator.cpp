/// Pool to dense: the keys (or values) of a list of blocks, one behind the other.
#include "paging.h"

namespace pagegrad {
namespace {

using namespace Halide;

class Gather : public Generator<Gather> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};

    // Indices innermost first. The caller owns everything.
    Input<Buffer<void, 4>> pool{"pool"};         // d, KV head, slot, block
    Input<Buffer<int32_t, 1>> blocks{"blocks"};  // pool blocks in order
    Output<Buffer<void, 3>> dense{"dense"};      // d, KV head, key

    void configure() {
        pool.set_type(dtype);
        dense.set_type(dtype);
    }

    void generate() {
        const PoolRow row = clamp_to_pool(find_in_pool(blocks, pool, 0, key), pool);
        dense(d, h, key) = pool(d, h, row.slot, row.block);
    }

    void schedule() {
        dense.vectorize(d, natural_vector_size<float>(), TailStrategy::GuardWithIf);
        dense.dim(0).set_min(0);
    }

private:
    Var d{"d"}, h{"h"}, key{"key"};
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::Gather, gather)
