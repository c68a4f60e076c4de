/// One step of the forward: the online softmax of tiles of packed query rows over one tile of
/// packed keys. Between steps a row's unnormalised output, largest score and sum of exponentials
/// live in the caller's state. Scores are computed transposed, a row per vector lane, so that
/// maxima and sums over keys need no operation across lanes. (Milakov and Gimelshein, "Online
/// normalizer calculation for softmax", 2018.)
#include "attention_algebra.h"
#include "paging.h"
#include "products.h"
#include "schedules/forward_cpu.h"
#include "score_terms.h"

namespace pagegrad {
namespace {

using namespace Halide;

class Forward : public Generator<Forward> {
public:
    GeneratorParam<int> head_dim{"head_dim", 0};  // 0: any, padded inside
    GeneratorParam<Type> product{"product", Float(32)};
    GeneratorParam<bool> general{"general", false};  // with softcap and ALiBi

    // Packed operands, see pack and transpose; word: products.h. Indices innermost first; the
    // caller owns everything. D of values may be another one than that of keys.
    Input<Buffer<void, 3>> q{"q"};               // row, d word, query tile
    Input<Buffer<void, 2>> k{"k"};               // d word, key
    Input<Buffer<void, 2>> v_pairs{"v_pairs"};   // d, key word
    Input<Buffer<int32_t, 2>> rows{"rows"};      // field, row: the queries that see the tile
    Input<Buffer<float, 1>> old_max{"old_max"};  // row: largest score so far, times log2(e)
    Input<Buffer<float, 1>> old_sum{"old_sum"};  // row: sum of exponentials so far
    Input<int> first_key{"first_key"};           // in the coordinates of the rows
    Input<int> end_key{"end_key"};               // likewise, of the tile
    Input<float> scale{"scale"};
    ScoreTerms terms;                     // of general kernels
    Output<Buffer<float, 2>> acc{"acc"};  // d (padded), row (padded): updated
    // row (padded): new values; may be the memory of old_max and old_sum
    Output<Func> state{"state", {Float(32), Float(32)}, 1};

    void configure() {
        for (auto *operand : {&k, &v_pairs}) {
            operand->set_type(Products(product).word_type());
        }
        q.set_type(Products(product).word_type());
        if (general) {
            terms.add_to(*this);
        }
    }

    void generate() {
        if (general) {
            terms.prepare();
        }
        const Products products(product);
        const ForwardCpuSchedule tiles(get_target(), products.depth());
        const int MR = tiles.registers.rows, NR = tiles.registers.columns, W = products.depth();
        const Expr num_rows = rows.dim(1).extent();
        const Expr kv_tile = clamp((end_key - first_key + NR - 1) / NR, 1, tiles.kv_tile / NR) * NR;
        const Expr query_tile = clamp(q.dim(0).extent() / NR, 1, tiles.query_tile / NR) * NR;
        const Expr query_tiles = (num_rows + query_tile - 1) / query_tile;

        // Rows past the end see nothing.
        const Expr packed_row = qt * query_tile + r;
        const Expr at = min(packed_row, num_rows - 1);
        f.key_begin(r, qt) = rows(row_key_begin, at);
        f.key_end(r, qt) =
            select(packed_row < num_rows, min(rows(row_key_end, at), end_key), f.key_begin(r, qt));

        // Keys that any row of a register block sees: products skip the rest.
        RDom in_block(0, MR, "in_block"), in_blocks(0, NR / MR, "in_blocks");
        f.block_key_begin(ib, qt) = minimum(f.key_begin(ib * MR + in_block, qt));
        f.block_key_end(ib, qt) = maximum(f.key_end(ib * MR + in_block, qt));
        f.wide_key_begin(rb, qt) = minimum(f.block_key_begin(rb * (NR / MR) + in_blocks, qt));
        f.wide_key_end(rb, qt) = maximum(f.block_key_end(rb * (NR / MR) + in_blocks, qt));
        const Expr block_key = first_key + cb * MR;
        const Expr block_sees =
            block_key < f.wide_key_end(rb, qt) && block_key + MR > f.wide_key_begin(rb, qt);
        const Expr depth = columns(k.dim(0).extent() * W) / W;
        f.depth(cb, rb, qt) = select(block_sees, depth, 0);

        // Scores, row by key, in register blocks.
        f.over_d = RDom(0, depth, "over_d");
        f.over_d.where(f.over_d < f.depth(cb, rb, qt));
        const std::vector<Expr> block{ri, rb, ci, cb, qt};
        f.S(block) = 0.0f;
        f.S(block) = products.multiply_add(f.S(block), k(f.over_d, cb * MR + ci),
                                           q(rb * NR + ri, f.over_d, qt));
        const Expr sees = visible(first_key + c, f.key_begin(r, qt), f.key_end(r, qt));
        const Expr product_score = f.S(r % NR, r / NR, c % MR, c / MR, qt);
        if (general) {
            f.slope(r, qt) = terms.slope(rows(row_head, at));
            f.position(r, qt) = rows(row_position, at);
            const Expr away = distance(f.position(r, qt), first_key + c);
            const Expr capped = CappedScore(product_score * scale, terms.softcap()).value;
            f.score(r, c, qt) =
                masked_score(biased_score(capped, f.slope(r, qt), away), 1.0f, sees);
        } else {
            f.score(r, c, qt) = masked_score(product_score, scale, sees);
        }

        f.over_keys = RDom(0, kv_tile, "over_keys");
        f.tile_max(r, qt) = lowest_max;
        f.tile_max(r, qt) = max(f.tile_max(r, qt), f.score(r, f.over_keys, qt));
        f.new_max(r, qt) = max(old_max(packed_row), f.tile_max(r, qt));
        f.P(r, c, qt) = exp2(f.score(r, c, qt) - f.new_max(r, qt));
        f.tile_sum(r, qt) = 0.0f;
        f.tile_sum(r, qt) += f.P(r, f.over_keys, qt);
        f.rescale(r, qt) = exp2(old_max(packed_row) - f.new_max(r, qt));
        f.new_sum(r, qt) = old_sum(packed_row) * f.rescale(r, qt) + f.tile_sum(r, qt);

        f.P_keys(r, c, qt) = products.word([&](const Expr &x) { return f.P(r, x, qt); }, c);
        f.over_words = RDom(0, kv_tile / W, "over_words");
        f.over_words.where(f.over_words * W < f.block_key_end(ib, qt) - first_key);
        f.O_block(d, i, ib, qt) = 0.0f;
        f.O_block(d, i, ib, qt) =
            products.multiply_add(f.O_block(d, i, ib, qt), f.P_keys(ib * MR + i, f.over_words, qt),
                                  v_pairs(d, f.over_words));

        // Equal names let a schedule fuse the two loops.
        f.sum = RDom({{0, MR}, {0, query_tile / MR}, {0, query_tiles}}, "tiles");
        f.state_sum = RDom({{0, MR}, {0, query_tile / MR}, {0, query_tiles}}, "tiles");
        const auto tile_row = [&](const RDom &t) { return t[1] * MR + t[0]; };
        const auto list_row = [&](const RDom &t) { return t[2] * query_tile + tile_row(t); };
        const RDom &a = f.sum, &s = f.state_sum;
        f.acc(d, x) = undef<float>();
        f.acc(d, list_row(a)) =
            f.acc(d, list_row(a)) * f.rescale(tile_row(a), a[2]) + f.O_block(d, a[0], a[1], a[2]);
        f.state(x) = Tuple(undef<float>(), undef<float>());
        f.state(list_row(s)) = Tuple(f.new_max(tile_row(s), s[2]), f.new_sum(tile_row(s), s[2]));
        acc = f.acc;
        state = f.state;
    }

    void schedule() {
        acc.dim(0).set_bounds(0, columns(v_pairs.dim(0).extent()));
        acc.dim(1).set_min(0);
        rows.dim(0).set_bounds(0, row_fields);
        schedule_forward_cpu(f, ForwardCpuSchedule(get_target(), Products(product).depth()));
    }

private:
    ForwardFuncs f;
    Var d = f.d, c = f.c, r = f.r, qt = f.qt, ci = f.ci, cb = f.cb, ri = f.ri, rb = f.rb, i = f.i,
        ib = f.ib, x{"x"};

    /// Of packed tiles.
    Expr columns(const Expr &extent) const {
        return packed_columns(head_dim, extent, register_tile(get_target()));
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::Forward, forward)
