/// The stages of the forward by name: what the algorithm defines and a schedule places.
#pragma once

#include "Halide.h"

namespace pagegrad {

struct ForwardFuncs {
    // d: column of head_dim; c: key; r: row of a query tile; qt: query tile.
    // ci, cb and ri, rb: place in and number of a register block. i, ib: the same for rows of sums.
    Halide::Var d{"d"}, c{"c"}, r{"r"}, qt{"qt"}, ci{"ci"}, cb{"cb"}, ri{"ri"}, rb{"rb"}, i{"i"},
        ib{"ib"};

    Halide::Func key_begin{"key_begin"}, key_end{"key_end"};
    Halide::Func slope{"slope"}, position{"position"};  ///< of general kernels only
    Halide::Func block_key_begin{"block_key_begin"}, block_key_end{"block_key_end"};
    Halide::Func wide_key_begin{"wide_key_begin"}, wide_key_end{"wide_key_end"};
    Halide::Func depth{"depth"};
    Halide::Func S{"S"}, score{"score"}, P{"P"}, P_keys{"P_keys"};  ///< P_keys: as words
    Halide::Func tile_max{"tile_max"}, new_max{"new_max"}, rescale{"rescale"};
    Halide::Func tile_sum{"tile_sum"}, new_sum{"new_sum"};
    Halide::Func O_block{"O_block"};
    Halide::Func acc{"acc"}, state{"state"};

    Halide::RDom sum, state_sum;  ///< row in a register block, block, query tile
    Halide::RDom over_d, over_keys, over_words;
};

}  // namespace pagegrad
