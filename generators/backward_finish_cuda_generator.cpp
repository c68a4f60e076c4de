/// dQ from the sums of the fused backward on a GPU: scaled and rounded.
#include "cuda_work.h"
#include "lowering/passes.h"

namespace pagegrad {
namespace {

using namespace Halide;

class BackwardFinishCuda : public Generator<BackwardFinishCuda> {
public:
    GeneratorParam<Type> element{"element", BFloat(16)};  // of dq

    // Indices innermost first. The caller owns everything. A word is 2 elements.
    Input<Buffer<float, 2>> dq_sum{"dq_sum"};  // d (padded), row
    Input<int> head_dim{"head_dim"};
    Input<int> num_rows{"num_rows"};
    Input<int> num_heads{"num_heads"};
    Input<int> num_tokens{"num_tokens"};   // of a batch
    Input<float> scale{"scale"};           // of the scores
    Output<Buffer<uint32_t, 4>> dq{"dq"};  // word, head, token, batch

    void generate() {
        elements = RDom({{0, head_dim / 2}, {0, num_rows}}, "elements");
        const Expr word = elements.x, row = elements.y;
        const RowPlace to(row, num_heads, num_tokens);
        const auto scaled = [&](const Expr &d) { return dq_sum(d, row) * scale; };
        dq(w, h, t, b) = undef<uint32_t>();
        to.of(dq, word) = packed_word(scaled(2 * word), scaled(2 * word + 1), element);
    }

    void schedule() {
        set_origin(dq_sum);
        set_origin(dq);
        RVar block("block"), row("row"), round("round"), lane("lane");
        dq.update()
            .allow_race_conditions()
            .split(elements.y, block, row, rows_per_block, TailStrategy::GuardWithIf)
            .split(elements.x, round, lane, row_lanes, TailStrategy::GuardWithIf)
            .reorder(round, lane, row, block)
            .gpu_blocks(block)
            .gpu_threads(lane, row);
        add_plain_passes(get_pipeline());
    }

private:
    Var w{"w"}, h{"h"}, t{"t"}, b{"b"};
    RDom elements;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::BackwardFinishCuda, backward_finish_cuda)
