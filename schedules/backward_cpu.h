/// CPU schedule of the fused backward.
#pragma once

#include "generators/backward_funcs.h"
#include "schedules/cpu_tiles.h"

namespace pagegrad {

/// What the schedule may choose.
struct BackwardCpuSchedule {
    RegisterTile registers;
    int word_depth;       ///< numbers in a word of an operand, see generators/products.h
    int query_tile = 64;  ///< largest; P and dS of a pair of tiles stay in the L1 cache
    int kv_tile = 64;     ///< largest

    BackwardCpuSchedule(const Halide::Target &target, int word_depth)
        : registers(register_tile(target)), word_depth(word_depth) {
    }
};

void schedule_backward_cpu(BackwardFuncs &f, const BackwardCpuSchedule &schedule);

}  // namespace pagegrad
