/// One step of the forward: the online softmax of packed query rows over one tile of keys, which it
/// reads through the block table. Between steps a row's unnormalised output, largest score and sum
/// of exponentials live in the caller's state.
/// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.)
#include "attention_algebra.h"
#include "paging.h"
#include "schedules/forward_cpu.h"

namespace pagegrad {
namespace {

using namespace Halide;

class Forward : public Generator<Forward> {
public:
    GeneratorParam<int> head_dim{"head_dim", 0};  // 0: any, padded inside

    // Indices innermost first. The caller owns everything.
    Input<Buffer<float, 4>> q{"q"};              // d, head, token, batch
    Input<Buffer<float, 4>> k_pool{"k_pool"};    // d, KV head, slot, block
    Input<Buffer<float, 4>> v_pool{"v_pool"};    // d, KV head, slot, block
    Input<Buffer<int32_t, 1>> blocks{"blocks"};  // pool blocks of the tile
    Input<Buffer<int32_t, 2>> rows{"rows"};      // field, row: the queries that see the tile
    Input<Buffer<float, 1>> old_max{"old_max"};  // row: largest score so far, times log2(e)
    Input<Buffer<float, 1>> old_sum{"old_sum"};  // row: sum of exponentials so far
    Input<int> first_slot{"first_slot"};         // of the first key, in the first block
    Input<int> first_key{"first_key"};           // of the tile, in the coordinates of the rows
    Input<int> num_keys{"num_keys"};             // at most the schedule's kv_tile
    Input<int> kv_head{"kv_head"};
    Input<int> query_tile_size{"query_tile"};  // rows of an inner tile
    Input<float> scale{"scale"};
    Output<Buffer<float, 2>> acc{"acc"};  // d (padded), row (padded): updated
    // row (padded): new values; may be the memory of old_max and old_sum
    Output<Func> state{"state", {Float(32), Float(32)}, 1};

    void generate() {
        const ForwardCpuSchedule tiles(get_target());
        const int MR = tiles.registers.rows, NR = tiles.registers.columns;
        const Expr D = this->D();
        const Expr columns = padded(D, NR);
        const Expr num_rows = rows.dim(1).extent();
        const Expr kv_tile = clamp((num_keys + NR - 1) / NR, 1, tiles.kv_tile / NR) * NR;
        const Expr query_tile = clamp(query_tile_size / MR, 1, tiles.query_tile / MR) * MR;
        const Expr query_tiles = (num_rows + query_tile - 1) / query_tile;

        const PoolRow at = find_in_pool(blocks, k_pool, first_slot, min(c, num_keys - 1));
        f.pool_block(c) = at.block;
        f.pool_slot(c) = at.slot;
        const auto key_element = [&](auto &pool) {
            const PoolRow row = clamp_to_pool({f.pool_block(c), f.pool_slot(c)}, pool);
            return in_head(pool(min(d, D - 1), kv_head, row.slot, row.block), d, D);
        };
        f.Kt(c, d) = key_element(k_pool);
        f.V(d, c) = key_element(v_pool);
        const Expr packed_row = qt * query_tile + r;
        const Expr exists = packed_row < num_rows;
        const QueryRow row(rows, q, min(packed_row, num_rows - 1));
        f.Q(d, r, qt) = select(exists, in_head(row.of(q, min(d, D - 1)), d, D), 0.0f) * scale;
        f.key_begin(r, qt) = row.key_begin;
        f.key_end(r, qt) = select(exists, min(row.key_end, first_key + num_keys), row.key_begin);

        f.over_d = RDom(0, columns, "over_d");
        f.S(ci, cb, ri, rb, qt) += f.Kt(cb * NR + ci, f.over_d) * f.Q(f.over_d, rb * MR + ri, qt);
        const Expr hidden = -1e30f;
        f.score(c, r, qt) = select(visible(first_key + c, f.key_begin(r, qt), f.key_end(r, qt)),
                                   f.S(c % NR, c / NR, r % MR, r / MR, qt) * log2_e, hidden);
        f.over_keys = RDom(0, kv_tile, "over_keys");
        f.tile_max(r, qt) = hidden;
        f.tile_max(r, qt) = max(f.tile_max(r, qt), f.score(f.over_keys, r, qt));
        f.new_max(r, qt) = max(old_max(packed_row), f.tile_max(r, qt));
        f.P(c, r, qt) = select(f.score(c, r, qt) > hidden / 2,
                               exp2(f.score(c, r, qt) - f.new_max(r, qt)), 0.0f);
        f.tile_sum(r, qt) += f.P(f.over_keys, r, qt);
        f.rescale(r, qt) = exp2(old_max(packed_row) - f.new_max(r, qt));
        f.new_sum(r, qt) = old_sum(packed_row) * f.rescale(r, qt) + f.tile_sum(r, qt);
        f.O_block(d, i, ib, qt) += f.V(d, f.over_keys) * f.P(f.over_keys, ib * MR + i, qt);

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
        for (auto *tensor : {&q, &k_pool, &v_pool}) {
            if (head_dim > 0) {
                tensor->dim(0).set_bounds(0, int(head_dim));
            } else {
                tensor->dim(0).set_min(0);
            }
        }
        acc.dim(0).set_bounds(0, padded(D(), register_tile(get_target()).columns));
        acc.dim(1).set_min(0);
        rows.dim(0).set_bounds(0, row_fields);
        schedule_forward_cpu(f, ForwardCpuSchedule(get_target()));
    }

private:
    ForwardFuncs f;
    Var d = f.d, c = f.c, r = f.r, qt = f.qt, ci = f.ci, cb = f.cb, ri = f.ri, rb = f.rb, i = f.i,
        ib = f.ib, x{"x"};

    Expr D() const {
        return head_dim > 0 ? Expr(int(head_dim)) : q.dim(0).extent();
    }
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::Forward, forward)
