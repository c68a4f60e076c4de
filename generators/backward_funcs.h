/// The stages of the fused backward by name: what the algorithm defines and a schedule places.
#pragma once

#include "Halide.h"

namespace pagegrad {

struct BackwardFuncs {
    // d: column of head_dim; c: key; r: row of the query tile; kt: inner tile of keys.
    // ci, cb and ri, rb: place in and number of a register block. i, ib: the same for rows of sums.
    Halide::Var d{"d"}, c{"c"}, r{"r"}, kt{"kt"}, ci{"ci"}, cb{"cb"}, ri{"ri"}, rb{"rb"}, i{"i"},
        ib{"ib"};

    Halide::Func lse{"lse"}, delta{"row_delta"}, key_begin{"key_begin"}, key_end{"key_end"};
    Halide::Func block_key_begin{"block_key_begin"}, block_key_end{"block_key_end"};
    Halide::Func first_row{"first_row"}, depth{"depth"};
    Halide::Func S{"S"}, dP{"dP"}, P{"P"}, dS{"dS"};
    Halide::Func P_rows{"P_rows"}, dS_rows{"dS_rows"}, dS_keys{"dS_keys"};  ///< as words
    Halide::Func dQ_block{"dQ_block"}, dK_block{"dK_block"}, dV_block{"dV_block"};
    Halide::Func dQ{"dQ"}, dKV{"dKV"};  ///< sums over inner tiles

    /// Loops of the two sums: row in a register block, block, inner tile of keys.
    Halide::RDom row_sum, key_sum;
    Halide::RDom over_d, over_d2, over_keys, over_rows, in_tile;
};

}  // namespace pagegrad
