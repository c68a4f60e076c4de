/// CPU schedule of the forward.
#pragma once

#include "generators/forward_funcs.h"
#include "schedules/cpu_tiles.h"

namespace pagegrad {

/// What the schedule may choose.
struct ForwardCpuSchedule {
    RegisterTile registers;
    int word_depth;       ///< numbers in a word of an operand, see generators/products.h
    int query_tile = 64;  ///< largest; the scores of a tile stay in the L1 cache
    int kv_tile = 128;    ///< keys of a step

    ForwardCpuSchedule(const Halide::Target &target, int word_depth)
        : registers(register_tile(target)), word_depth(word_depth) {
    }
};

void schedule_forward_cpu(ForwardFuncs &f, const ForwardCpuSchedule &schedule);

}  // namespace pagegrad
