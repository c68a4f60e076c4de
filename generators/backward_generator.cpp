/// The fused backward of one tile of query rows against one tile of keys, both packed: adds to dQ
/// in place and to the tile's dK and dV. Nothing of the size queries x keys is stored beyond a pair
/// of inner tiles.
#include "attention_algebra.h"
#include "paging.h"
#include "products.h"
#include "schedules/backward_cpu.h"
#include "score_terms.h"

namespace pagegrad {
namespace {

using namespace Halide;

class Backward : public Generator<Backward> {
public:
    GeneratorParam<int> head_dim{"head_dim", 0};  // 0: any, padded inside
    GeneratorParam<Type> product{"product", Float(32)};
    GeneratorParam<bool> general{"general", false};  // with softcap and ALiBi

    // Packed operands, see pack_keys and pack_queries; word: products.h. Indices innermost first;
    // the caller owns everything. D of v and dout may be another one than that of k and q.
    Input<Buffer<void, 2>> q{"q"};                    // d word, row
    Input<Buffer<void, 2>> q_pairs{"q_pairs"};        // d, row word
    Input<Buffer<void, 2>> dout{"dout"};              // d word, row
    Input<Buffer<void, 2>> dout_pairs{"dout_pairs"};  // d, row word
    Input<Buffer<void, 2>> k{"k"};                    // key, d word
    Input<Buffer<void, 2>> v{"v"};                    // key, d word
    Input<Buffer<void, 2>> k_pairs{"k_pairs"};        // d, key word
    Input<Buffer<float, 3>> lse_log2{"lse_log2"};     // head, token, batch: see lse_to_log2()
    Input<Buffer<float, 3>> delta{"delta"};           // head, token, batch
    Input<Buffer<int32_t, 2>> rows{"rows"};           // field, row: the packed queries
    Input<int> first_key{"first_key"};                // in the coordinates of the rows
    Input<int> end_key{"end_key"};                    // likewise, of the tile
    Input<int> first_kv_tile{"first_kv_tile"};        // inner tiles of which any row sees a key
    Input<int> num_kv_tiles{"num_kv_tiles"};
    Input<int> kv_tile_size{"kv_tile"};  // keys of an inner tile
    Input<float> scale{"scale"};
    ScoreTerms terms;                   // of general kernels
    Output<Buffer<float, 4>> dq{"dq"};  // d, head, token, batch: added to
    Output<Buffer<float, 2>> dk{"dk"};  // d (padded), key: added to, without the score scale
    Output<Buffer<float, 2>> dv{"dv"};  // d (padded), key: added to
    // Of general kernels: head, token, batch: sum_j dS |p - j|, added to.
    Output<Buffer<float, 3>> *distance_sums = nullptr;

    void configure() {
        for (auto *operand : {&q, &q_pairs, &dout, &dout_pairs, &k, &v, &k_pairs}) {
            operand->set_type(Products(product).word_type());
        }
        if (general) {
            terms.add_to(*this);
            distance_sums = add_output<Buffer<float, 3>>("distance_sums");
        }
    }

    void generate() {
        if (general) {
            terms.prepare();
        }
        const Products products(product);
        const BackwardCpuSchedule tiles(get_target(), products.depth());
        const int MR = tiles.registers.rows, NR = tiles.registers.columns;
        const int W = products.depth();
        const Expr kv_tile = clamp(kv_tile_size / NR, 1, tiles.kv_tile / NR) * NR;
        const Expr num_rows = rows.dim(1).extent();
        const Expr query_tile = clamp((num_rows + MR - 1) / MR, 1, tiles.query_tile / MR) * MR;

        // Rows past the end see nothing.
        const Expr exists = r < num_rows;
        const QueryRow row(rows, lse_log2, min(r, num_rows - 1), 0);
        f.lse(r) = lse_log2(row.head, row.token, row.batch);
        f.delta(r) = delta(row.head, row.token, row.batch);
        f.key_begin(r) = row.key_begin;
        f.key_end(r) = select(exists, min(row.key_end, end_key), row.key_begin);
        if (general) {
            f.slope(r) = terms.slope(row.head);
            f.position(r) = rows(row_position, min(r, num_rows - 1));
        }

        // Keys that the rows of a register block see, and rows that see any key of one: products
        // skip the rest.
        RDom in_block(0, MR, "in_block");
        f.in_tile = RDom(0, query_tile, "in_tile");
        const Expr tile_key = first_key + kt * kv_tile, in_tile = f.in_tile;
        f.block_key_begin(ib) = minimum(f.key_begin(ib * MR + in_block));
        f.block_key_end(ib) = maximum(f.key_end(ib * MR + in_block));
        const Expr sees_block = f.key_begin(in_tile) < tile_key + (ib + 1) * MR &&
                                f.key_end(in_tile) > tile_key + ib * MR;
        f.first_row(ib, kt) = query_tile;
        f.first_row(ib, kt) = min(f.first_row(ib, kt), select(sees_block, in_tile, query_tile));

        // Scores, key by row, in register blocks.
        const Expr depth = columns(q.dim(0).extent() * W) / W;
        const Expr value_depth = columns(dout.dim(0).extent() * W) / W;
        f.over_d = RDom(0, depth, "over_d");
        f.over_d2 = RDom(0, value_depth, "over_d2");
        const Expr block_begin = tile_key + cb * NR;
        const Expr block_sees =
            block_begin < f.block_key_end(rb) && block_begin + NR > f.block_key_begin(rb);
        f.sees_block(cb, rb, kt) = select(block_sees, 1, 0);
        f.over_d.where(f.over_d < depth * f.sees_block(cb, rb, kt));
        f.over_d2.where(f.over_d2 < value_depth * f.sees_block(cb, rb, kt));
        const Expr block_key = kt * kv_tile + cb * NR + ci, block_row = rb * MR + ri;
        const auto accumulate = [&](Func &sum, const std::vector<Expr> &at, const Expr &a,
                                    const Expr &b) {
            sum(at) = 0.0f;
            sum(at) = products.multiply_add(sum(at), a, b);
        };
        accumulate(f.S, {ci, cb, ri, rb, kt}, q(f.over_d, block_row), k(block_key, f.over_d));
        accumulate(f.dP, {ci, cb, ri, rb, kt}, dout(f.over_d2, block_row), v(block_key, f.over_d2));
        define_gradients(tile_key, kv_tile);

        // Probabilities and gradients as operands of products over rows and over keys.
        const auto over_rows = [&](const Func &elements) {
            return products.word([&](const Expr &y) { return elements(c, y, kt); }, r);
        };
        f.P_rows(c, r, kt) = over_rows(f.P);
        f.dS_rows(c, r, kt) = over_rows(f.dS);
        f.dS_keys(c, r, kt) = products.word([&](const Expr &x) { return f.dS(x, r, kt); }, c);

        // The products of a pair of inner tiles, in register blocks.
        f.over_keys = RDom(0, kv_tile / W, "over_keys");
        f.over_rows = RDom(0, query_tile / W, "over_rows");
        const Expr x = f.over_keys, y = f.over_rows;
        f.over_keys.where(x * W < f.block_key_end(ib) - tile_key);
        f.over_rows.where(y >= f.first_row(ib, kt) / W);
        accumulate(f.dQ_block, {d, i, ib, kt}, f.dS_keys(x, ib * MR + i, kt),
                   k_pairs(d, kt * (kv_tile / W) + x));
        accumulate(f.dK_block, {d, i, ib, kt}, f.dS_rows(ib * MR + i, y, kt), q_pairs(d, y));
        accumulate(f.dV_block, {d, i, ib, kt}, f.P_rows(ib * MR + i, y, kt), dout_pairs(d, y));

        // Their sums over the inner tiles of keys. All walk over the same pairs; equal names let a
        // schedule fuse the loops.
        f.row_sum = RDom({{0, MR}, {0, query_tile / MR}, {first_kv_tile, num_kv_tiles}}, "pairs");
        f.key_sum = RDom({{0, MR}, {0, kv_tile / MR}, {first_kv_tile, num_kv_tiles}}, "pairs");
        f.value_sum = RDom({{0, MR}, {0, kv_tile / MR}, {first_kv_tile, num_kv_tiles}}, "pairs");
        const auto list_row = [&](const Expr &row) {
            return QueryRow(rows, lse_log2, min(row, num_rows - 1), 0);
        };
        const auto &a = f.row_sum, &e = f.key_sum, &o = f.value_sum;
        const QueryRow to = list_row(a[1] * MR + a[0]);
        f.dQ(d, h, t, b) = undef<float>();
        f.dQ(d, to.head, to.token, to.batch) += scale * f.dQ_block(d, a[0], a[1], a[2]);
        const auto tile_key_of = [&](const RDom &sum) {
            return sum[2] * kv_tile + sum[1] * MR + sum[0];
        };
        f.dK(d, c) = undef<float>();
        f.dK(d, tile_key_of(e)) += f.dK_block(d, e[0], e[1], e[2]);
        f.dV(d, c) = undef<float>();
        f.dV(d, tile_key_of(o)) += f.dV_block(d, o[0], o[1], o[2]);
        dq = f.dQ;
        dk = f.dK;
        dv = f.dV;
        if (general) {
            f.distance_sum =
                RDom({{0, MR}, {0, query_tile / MR}, {first_kv_tile, num_kv_tiles}}, "pairs");
            const Expr summed_row = f.distance_sum[1] * MR + f.distance_sum[0];
            const QueryRow of = list_row(summed_row);
            f.distances(h, t, b) = undef<float>();
            f.distances(of.head, of.token, of.batch) +=
                f.tile_distance(summed_row, f.distance_sum[2]);
            *distance_sums = f.distances;
        }
    }

    void schedule() {
        if (head_dim > 0) {
            dq.dim(0).set_bounds(0, int(head_dim));
        } else {
            dq.dim(0).set_min(0);
        }
        dk.dim(0).set_bounds(0, columns(q_pairs.dim(0).extent()));
        dv.dim(0).set_bounds(0, columns(dout_pairs.dim(0).extent()));
        dk.dim(1).set_min(0);
        dv.dim(1).set_min(0);
        rows.dim(0).set_bounds(0, row_fields);
        schedule_backward_cpu(f, BackwardCpuSchedule(get_target(), Products(product).depth()));
    }

private:
    BackwardFuncs f;
    Var d = f.d, c = f.c, r = f.r, kt = f.kt, ci = f.ci, cb = f.cb, ri = f.ri, rb = f.rb, i = f.i,
        ib = f.ib, h{"h"}, t{"t"}, b{"b"};

    /// P and dS: the gradient of the scores as the products of q and k gave them.
    void define_gradients(const Expr &tile_key, const Expr &kv_tile) {
        const RegisterTile block = register_tile(get_target());
        const auto element = [&](const Func &scores) {
            return scores(c % block.columns, c / block.columns, r % block.rows, r / block.rows, kt);
        };
        const Expr sees = visible(tile_key + c, f.key_begin(r), f.key_end(r));
        if (!general) {
            const Expr p = probability(element(f.S), f.lse(r), scale * log2_e);
            f.P(c, r, kt) = select(sees, p, 0.0f);
            f.dS(c, r, kt) = score_gradient(f.P(c, r, kt), element(f.dP), f.delta(r));
            return;
        }
        const Expr away = distance(f.position(r), tile_key + c);
        const CappedScore capped(element(f.S) * scale, terms.softcap());
        const Expr p = probability(biased_score(capped.value, f.slope(r), away), f.lse(r));
        f.P_and_cap(c, r, kt) = Tuple(select(sees, p, 0.0f), capped.derivative);
        f.P(c, r, kt) = f.P_and_cap(c, r, kt)[0];
        f.dS_biased(c, r, kt) = score_gradient(f.P(c, r, kt), element(f.dP), f.delta(r));
        f.dS(c, r, kt) = f.dS_biased(c, r, kt) * f.P_and_cap(c, r, kt)[1];
        f.in_row = RDom({{0, block.vector}, {0, kv_tile / block.vector}}, "in_row");
        const Expr key = f.in_row[1] * block.vector + f.in_row[0];
        f.tile_distance(r, kt) += f.dS_biased(key, r, kt) * distance(f.position(r), tile_key + key);
    }

    /// Of packed tiles.
    Expr columns(const Expr &extent) const {
        return packed_columns(head_dim, extent, register_tile(get_target()));
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::Backward, backward)
