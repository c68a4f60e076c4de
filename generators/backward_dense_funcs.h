/// The stages of the materialised backward by name.
#pragma once

#include "Halide.h"

namespace pagegrad {

struct BackwardDenseFuncs {
    Halide::Var d{"d"}, j{"j"}, h{"h"}, i{"i"};  ///< column, key, head of the group, query
    Halide::Func Kt{"Kt"}, Vt{"Vt"};             ///< transposed
    Halide::Func S{"S"}, dP{"dP"}, P{"P"}, dS{"dS"}, dQ, dK, dV;
    Halide::Func cap{"cap"}, dS_biased{"dS_biased"};  ///< of general kernels
    Halide::RDom over_d, over_d2, over_keys, over_rows;
};

}  // namespace pagegrad
