/// The stages of the fused backward by name: what the algorithm defines and a schedule places.
#pragma once

#include "Halide.h"

namespace pagegrad {

struct BackwardFuncs {
    // d: column of head_dim; c: key; r: row of a query tile; kt, qt: tiles of keys and of rows.
    // ci, cb and ri, rb: place in and number of a register block. i, ib: the same for rows of sums.
    Halide::Var d{"d"}, c{"c"}, r{"r"}, kt{"kt"}, qt{"qt"}, ci{"ci"}, cb{"cb"}, ri{"ri"}, rb{"rb"},
        i{"i"}, ib{"ib"};

    Halide::Func pool_block{"pool_block"}, pool_slot{"pool_slot"};  ///< of a key
    Halide::Func K{"K"}, Kt{"Kt"}, Vt{"Vt"};  ///< packed keys and values, t: transposed
    Halide::Func Q{"Q"}, dO{"dO"};            ///< packed query rows; Q times the score scale
    Halide::Func lse{"lse"}, delta{"row_delta"}, key_begin{"key_begin"}, key_end{"key_end"};
    Halide::Func block_key_begin{"block_key_begin"}, block_key_end{"block_key_end"};
    Halide::Func first_row{"first_row"}, depth{"depth"};
    Halide::Func S{"S"}, dP{"dP"}, P{"P"}, dS{"dS"};
    Halide::Func dQ_block{"dQ_block"}, dK_block{"dK_block"}, dV_block{"dV_block"};
    Halide::Func dQ{"dQ"}, dKV{"dKV"};  ///< sums over pairs of tiles

    /// Loops of the two sums: row in a register block, block, KV tile, query tile.
    Halide::RDom row_sum, key_sum;
    Halide::RDom over_d, over_d2, over_keys, over_rows, in_tile;
};

}  // namespace pagegrad
