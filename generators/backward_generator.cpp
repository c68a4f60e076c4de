/// The fused backward of one tile of keys: reads K and V through the block table and packed query
/// rows through a row list, adds to dQ in place and to the tile's dK and dV. Nothing of the size
/// queries x keys is stored beyond one pair of tiles.
#include "attention_algebra.h"
#include "paging.h"
#include "schedules/backward_cpu.h"

namespace pagegrad {
namespace {

using namespace Halide;

class Backward : public Generator<Backward> {
public:
    GeneratorParam<int> head_dim{"head_dim", 0};  // 0: any, padded inside

    // Indices innermost first. The caller owns everything.
    Input<Buffer<float, 4>> q{"q"};                // d, head, token, batch
    Input<Buffer<float, 4>> dout{"dout"};          // d, head, token, batch
    Input<Buffer<float, 3>> lse_log2{"lse_log2"};  // head, token, batch: see lse_to_log2()
    Input<Buffer<float, 3>> delta{"delta"};        // head, token, batch
    Input<Buffer<float, 4>> k_pool{"k_pool"};      // d, KV head, slot, block
    Input<Buffer<float, 4>> v_pool{"v_pool"};      // d, KV head, slot, block
    Input<Buffer<int32_t, 1>> blocks{"blocks"};    // pool blocks of the tile
    Input<Buffer<int32_t, 2>> rows{"rows"};        // field, row: the queries that see the tile
    Input<Buffer<int32_t, 2>> spans{"spans"};      // begin/end, query tile: keys that any row sees
    Input<int> first_slot{"first_slot"};           // of the first key, in the first block
    Input<int> first_key{"first_key"};             // of the tile, in the coordinates of the rows
    Input<int> num_keys{"num_keys"};
    Input<int> kv_head{"kv_head"};
    Input<int> kv_tile_size{"kv_tile"};        // keys of an inner tile
    Input<int> query_tile_size{"query_tile"};  // rows of an inner tile
    Input<float> scale{"scale"};
    Output<Buffer<float, 4>> dq{"dq"};                   // d, head, token, batch: added to
    Output<Func> dkv{"dkv", {Float(32), Float(32)}, 2};  // d (padded), key: dK and dV, added to

    void generate() {
        const BackwardCpuSchedule tiles(get_target());
        const int MR = tiles.registers.rows, NR = tiles.registers.columns;
        const Expr D = this->D();
        const Expr columns = padded(D, NR);
        const Expr kv_tile = clamp(kv_tile_size / NR, 1, tiles.kv_tile / NR) * NR;
        const Expr query_tile = clamp(query_tile_size / MR, 1, tiles.query_tile / MR) * MR;
        const Expr num_rows = rows.dim(1).extent();
        const Expr kv_tiles = (num_keys + kv_tile - 1) / kv_tile;
        const Expr query_tiles = (num_rows + query_tile - 1) / query_tile;

        // Packed tiles. Keys past the end repeat the last one, which no row then sees; rows past
        // the end and columns past head_dim are zero.
        const PoolRow at = find_in_pool(blocks, k_pool, first_slot, min(c, num_keys - 1));
        f.pool_block(c) = at.block;
        f.pool_slot(c) = at.slot;
        const auto key_element = [&](auto &pool) {
            const PoolRow row = clamp_to_pool({f.pool_block(c), f.pool_slot(c)}, pool);
            return in_head(pool(min(d, D - 1), kv_head, row.slot, row.block), d, D);
        };
        f.K(d, c) = key_element(k_pool);
        f.Kt(c, d) = key_element(k_pool);
        f.Vt(c, d) = key_element(v_pool);
        const Expr packed_row = qt * query_tile + r;
        const Expr exists = packed_row < num_rows;
        const QueryRow row(rows, q, min(packed_row, num_rows - 1));
        const auto row_element = [&](auto &tensor) {
            return select(exists, in_head(row.of(tensor, min(d, D - 1)), d, D), 0.0f);
        };
        f.Q(d, r, qt) = row_element(q) * scale;
        f.dO(d, r, qt) = row_element(dout);
        f.lse(r, qt) = lse_log2(row.head, row.token, row.batch);
        f.delta(r, qt) = delta(row.head, row.token, row.batch);
        f.key_begin(r, qt) = row.key_begin;
        f.key_end(r, qt) = select(exists, min(row.key_end, first_key + num_keys), row.key_begin);

        // Keys that the rows of a register block see, and rows of a query tile that see any key of
        // one: products skip the rest.
        RDom in_block(0, MR, "in_block"), in_tile(0, query_tile, "in_tile");
        f.in_tile = in_tile;
        const Expr block_member = ib * MR + in_block, tile_key = first_key + kt * kv_tile;
        f.block_key_begin(ib, qt) = minimum(f.key_begin(block_member, qt));
        f.block_key_end(ib, qt) = maximum(f.key_end(block_member, qt));
        const Expr member_sees = f.key_begin(in_tile, qt) < tile_key + (ib + 1) * MR &&
                                 f.key_end(in_tile, qt) > tile_key + ib * MR;
        f.first_row(ib, kt, qt) = query_tile;
        f.first_row(ib, kt, qt) =
            min(f.first_row(ib, kt, qt), select(member_sees, in_tile, query_tile));

        // Scores, key by row, in register blocks.
        f.over_d = RDom(0, columns, "over_d");
        f.over_d2 = RDom(0, columns, "over_d2");
        const Expr first_block_key = tile_key + cb * NR;
        const Expr block_sees = first_block_key < f.block_key_end(rb, qt) &&
                                first_block_key + NR > f.block_key_begin(rb, qt);
        f.depth(cb, rb, kt, qt) = select(block_sees, columns, 0);
        f.over_d.where(f.over_d < f.depth(cb, rb, kt, qt));
        f.over_d2.where(f.over_d2 < f.depth(cb, rb, kt, qt));
        const Expr block_key = kt * kv_tile + cb * NR + ci, block_row = rb * MR + ri;
        f.S(ci, cb, ri, rb, kt, qt) += f.Kt(block_key, f.over_d) * f.Q(f.over_d, block_row, qt);
        f.dP(ci, cb, ri, rb, kt, qt) += f.Vt(block_key, f.over_d2) * f.dO(f.over_d2, block_row, qt);
        const auto element = [&](const Func &product) {
            return product(c % NR, c / NR, r % MR, r / MR, kt, qt);
        };
        const Expr sees = visible(tile_key + c, f.key_begin(r, qt), f.key_end(r, qt));
        f.P(c, r, kt, qt) = select(sees, probability(element(f.S), f.lse(r, qt)), 0.0f);
        f.dS(c, r, kt, qt) = score_gradient(f.P(c, r, kt, qt), element(f.dP), f.delta(r, qt));

        // The products of a pair of tiles, in register blocks.
        f.over_keys = RDom(0, kv_tile, "over_keys");
        f.over_rows = RDom(0, query_tile, "over_rows");
        const Expr k = f.over_keys, x = f.over_rows;
        f.over_keys.where(k < f.block_key_end(ib, qt) - tile_key);
        f.over_rows.where(x >= f.first_row(ib, kt, qt));
        f.dQ_block(d, i, ib, kt, qt) += f.K(d, kt * kv_tile + k) * f.dS(k, ib * MR + i, kt, qt);
        f.dK_block(d, i, ib, kt, qt) += f.Q(d, x, qt) * f.dS(ib * MR + i, x, kt, qt);
        f.dV_block(d, i, ib, kt, qt) += f.dO(d, x, qt) * f.P(ib * MR + i, x, kt, qt);

        // Their sums over the pairs that see each other. Both walk over the same pairs; equal names
        // let a schedule fuse the loops.
        f.row_sum = RDom({{0, MR}, {0, query_tile / MR}, {0, kv_tiles}, {0, query_tiles}}, "pairs");
        f.key_sum = RDom({{0, MR}, {0, kv_tile / MR}, {0, kv_tiles}, {0, query_tiles}}, "pairs");
        for (RDom *pairs : {&f.row_sum, &f.key_sum}) {
            const Expr key = first_key + (*pairs)[2] * kv_tile, tile = (*pairs)[3];
            pairs->where(key < spans(1, tile) && key + kv_tile > spans(0, tile));
        }
        const auto &a = f.row_sum;
        const QueryRow to(rows, q, min(a[3] * query_tile + a[1] * MR + a[0], num_rows - 1));
        f.dQ(d, h, t, b) = undef<float>();
        f.dQ(d, to.head, to.token, to.batch) += scale * f.dQ_block(d, a[0], a[1], a[2], a[3]);
        const auto &e = f.key_sum;
        const Expr key = e[2] * kv_tile + e[1] * MR + e[0];
        f.dKV(d, c) = Tuple(undef<float>(), undef<float>());
        f.dKV(d, key) = Tuple(f.dKV(d, key)[0] + f.dK_block(d, e[0], e[1], e[2], e[3]),
                              f.dKV(d, key)[1] + f.dV_block(d, e[0], e[1], e[2], e[3]));
        dq = f.dQ;
        dkv = f.dKV;
    }

    void schedule() {
        for (auto *tensor : {&q, &dout, &k_pool, &v_pool}) {
            inner_extent(tensor->dim(0));
        }
        inner_extent(dq.dim(0));
        const int NR = register_tile(get_target()).columns;
        OutputImageParam dk = f.dKV.output_buffers()[0];  // dV has the same bounds
        dk.dim(0).set_bounds(0, padded(D(), NR));
        dk.dim(1).set_min(0);
        rows.dim(0).set_bounds(0, row_fields);
        spans.dim(0).set_bounds(0, 2);
        schedule_backward_cpu(f, BackwardCpuSchedule(get_target()));
    }

private:
    BackwardFuncs f;
    Var d = f.d, c = f.c, r = f.r, kt = f.kt, qt = f.qt, ci = f.ci, cb = f.cb, ri = f.ri, rb = f.rb,
        i = f.i, ib = f.ib, h{"h"}, t{"t"}, b{"b"};

    Expr D() const {
        return head_dim > 0 ? Expr(int(head_dim)) : q.dim(0).extent();
    }
    void inner_extent(Internal::Dimension dim) const {
        if (head_dim > 0) {
            dim.set_bounds(0, int(head_dim));
        } else {
            dim.set_min(0);
        }
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::Backward, backward)
