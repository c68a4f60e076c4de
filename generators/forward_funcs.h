/// The stages of the forward by name: what the algorithm defines and a schedule places.
#pragma once

#include "Halide.h"

namespace pagegrad {

struct ForwardFuncs {
    // d: column of head_dim; c: key; r: row of a query tile; qt: query tile.
    // ci, cb and ri, rb: place in and number of a register block. i, ib: the same for rows of sums.
    Halide::Var d{"d"}, c{"c"}, r{"r"}, qt{"qt"}, ci{"ci"}, cb{"cb"}, ri{"ri"}, rb{"rb"}, i{"i"},
        ib{"ib"};

    Halide::Func pool_block{"pool_block"}, pool_slot{"pool_slot"};  ///< of a key
    Halide::Func Kt{"Kt"}, V{"V"};  ///< packed keys, transposed, and values
    Halide::Func Q{"Q"};            ///< packed query rows times the score scale
    Halide::Func key_begin{"key_begin"}, key_end{"key_end"};
    Halide::Func S{"S"}, score{"score"}, P{"P"};
    Halide::Func tile_max{"tile_max"}, new_max{"new_max"}, rescale{"rescale"};
    Halide::Func tile_sum{"tile_sum"}, new_sum{"new_sum"};
    Halide::Func O_block{"O_block"};
    Halide::Func acc{"acc"}, state{"state"};

    Halide::RDom sum, state_sum;  ///< row in a register block, block, query tile
    Halide::RDom over_d, over_keys;
};

}  // namespace pagegrad
