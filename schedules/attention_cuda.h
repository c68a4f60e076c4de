/// CUDA schedules of the kernels on tensor cores.
#pragma once

#include "lowering/tiles.h"

namespace pagegrad {

/// What the schedules may choose. One thread block per multiprocessor: sums fill the registers, and
/// tiles the shared memory.
struct CudaSchedules {
    TileSchedule backward{64, 128, 8};  ///< tiles of 64 query rows go past 128 keys
    TileSchedule forward{96, 128, 8};  ///< tiles of 96 keys go past 128 query rows
    TileSchedule backward_queries{64, 128, 8};
};

}  // namespace pagegrad
