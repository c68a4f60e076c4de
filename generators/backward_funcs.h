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
    Halide::Func first_row{"first_row"}, sees_block{"sees_block"};
    Halide::Func S{"S"}, dP{"dP"}, P{"P"}, dS{"dS"};
    // Of general kernels: P with the derivative of the softcap, and dS behind it.
    Halide::Func slope{"slope"}, position{"position"}, P_and_cap{"P_and_cap"},
        dS_biased{"dS_biased"}, tile_distance{"tile_distance"};
    Halide::Func P_rows{"P_rows"}, dS_rows{"dS_rows"}, dS_keys{"dS_keys"};  ///< as words
    Halide::Func dQ_block{"dQ_block"}, dK_block{"dK_block"}, dV_block{"dV_block"};
    /// Sums over inner tiles, and their loops: row in a register block, block, inner tile of keys.
    Halide::Func dQ{"dQ"}, dK{"dK"}, dV{"dV"}, distances{"distances"};
    Halide::RDom row_sum, key_sum, value_sum, distance_sum;
    Halide::RDom over_d, over_d2, over_keys, over_rows, in_tile, in_row;
};

}  // namespace pagegrad
