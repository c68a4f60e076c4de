/// What the backward needs of each query row besides q and dout, on a GPU: its LSE in base 2, and
/// delta = <dout, out> - dlse.
#include "attention_algebra.h"
#include "cuda_work.h"
#include "lowering/passes.h"

namespace pagegrad {
namespace {

using namespace Halide;

class RowStatisticsCuda : public Generator<RowStatisticsCuda> {
public:
    GeneratorParam<Type> element{"element", BFloat(16)};  // of dout and out

    // Indices innermost first. The caller owns everything. A word is 2 elements.
    Input<Buffer<uint32_t, 4>> dout{"dout"};  // word, head, token, batch
    Input<Buffer<uint32_t, 4>> out{"out"};    // word (of float32: 1 element), head, token, batch
    Input<int> out_is_f32{"out_is_f32"};
    Input<Buffer<float, 3>> lse{"lse"};    // head, token, batch
    Input<Buffer<float, 3>> dlse{"dlse"};  // head, token, batch; any buffer if there is none
    Input<int> has_dlse{"has_dlse"};
    Input<int> head_dim{"head_dim"};
    Input<int> num_rows{"num_rows"};
    Input<int> num_heads{"num_heads"};
    Input<int> num_tokens{"num_tokens"};                // of a batch
    Output<Buffer<float, 2>> statistics{"statistics"};  // lse_log2/delta, row

    void generate() {
        const RowPlace at(min(row, num_rows - 1), num_heads, num_tokens);
        over_words = RDom(0, (head_dim / 2 + row_lanes - 1) / row_lanes, "over_words");
        const Expr word = over_words * row_lanes + lane;
        over_words.where(word < head_dim / 2);
        const WordElements a(at.of(dout, word), element);
        // Of a 16-bit tensor both are the word itself.
        const Expr step = select(out_is_f32 != 0, 2, 1), next = step - 1;
        const Expr first = at.of(out, word * step), second = at.of(out, word * step + next);
        const WordElements halves(first, element);
        const auto out_element = [&](const Expr &single, const Expr &half) {
            return select(out_is_f32 != 0, reinterpret<float>(single), half);
        };
        product(lane, row) +=
            a.low * out_element(first, halves.low) + a.high * out_element(second, halves.high);
        sum(lane, row) = lanes_sum(product(lane, row));
        const Expr delta = sum(0, row) - select(has_dlse != 0, at.of(dlse), 0.0f);
        statistics(field, row) = select(field == statistics_lse, lse_to_log2(at.of(lse)), delta);
    }

    void schedule() {
        for (auto *tensor : {&dout, &out}) {
            set_origin(*tensor);
        }
        for (auto *rows : {&lse, &dlse}) {
            set_origin(*rows);
            rows->dim(0).set_stride(Expr());
        }
        statistics.dim(0).set_bounds(0, statistics_fields);
        statistics.dim(1).set_bounds(0, num_rows).set_stride(statistics_fields);

        Var block("block");
        statistics.bound(field, 0, statistics_fields)
            .split(row, block, row, rows_per_block, TailStrategy::GuardWithIf)
            .gpu_blocks(block)
            .gpu_threads(field, row);
        sum.compute_at(statistics, block)
            .bound_extent(lane, row_lanes)
            .bound_extent(row, rows_per_block)
            .gpu_threads(lane, row);
        product.compute_at(sum, lane);
        add_plain_passes(get_pipeline());
    }

private:
    Var lane{"lane"}, row{"row"}, field{"field"};
    Func product{"product"}, sum{"sum"};
    RDom over_words;
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::RowStatisticsCuda, row_statistics_cuda)
