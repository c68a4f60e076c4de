/// CPU schedule of the forward.
#pragma once

#include "generators/forward_funcs.h"
#include "schedules/cpu_tiles.h"

namespace pagegrad {

/// What the schedule may choose.
struct ForwardCpuSchedule {
    RegisterTile registers;
    int query_tile = 64;  ///< largest; the scores of a tile stay in the L1 cache
    int kv_tile = 64;     ///< keys of a step

    explicit ForwardCpuSchedule(const Halide::Target &target) : registers(register_tile(target)) {
    }
};

void schedule_forward_cpu(ForwardFuncs &f, const ForwardCpuSchedule &schedule);

}  // namespace pagegrad
