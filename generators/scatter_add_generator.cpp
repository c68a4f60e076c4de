/// Dense to pool: adds rows to the pool rows of a list of blocks. Serial over the keys, so that a
/// block listed twice receives its sums in order.
#include "paging.h"

namespace pagegrad {
namespace {

using namespace Halide;

class ScatterAdd : public Generator<ScatterAdd> {
public:
    // Indices innermost first. The caller owns everything.
    Input<Buffer<float, 3>> dense{"dense"};      // d, KV head, key
    Input<Buffer<int32_t, 1>> blocks{"blocks"};  // pool blocks in order
    Input<int> first_slot{"first_slot"};         // of the first key, in the first block
    Input<float> scale{"scale"};                 // of what is added
    Output<Buffer<float, 4>> pool{"pool"};       // d, KV head, slot, block: added to

    void generate() {
        key = RDom(0, dense.dim(2).extent(), "key");
        const PoolRow row = clamp_to_pool(find_in_pool(blocks, pool, first_slot, key), pool);
        pool(d, h, slot, block) = undef<float>();
        pool(d, h, row.slot, row.block) += scale * dense(d, h, key);
    }

    void schedule() {
        Func(pool).update().reorder(d, h, key).vectorize(d, natural_vector_size<float>(),
                                                         TailStrategy::GuardWithIf);
        pool.dim(0).set_min(0);
    }

private:
    Var d{"d"}, h{"h"}, slot{"slot"}, block{"block"};
    RDom key;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::ScatterAdd, scatter_add)
