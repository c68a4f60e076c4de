/// CUDA schedules of the kernels on tensor cores.
#pragma once

#include "lowering/tiles.h"

namespace pagegrad {

/// What the schedules may choose. One thread block per multiprocessor: sums fill the registers, and
/// tiles the shared memory.
struct CudaSchedules {
    /// Tiles of 64 query rows go past 128 keys.
    TileSchedule backward{64, 128, 8};
    /// Tiles of keys go past 192 query rows. On an H100, causal with 32 heads of 128 columns, two
    /// sequences of 4096: 0.67 ms; with 128 rows 0.76 ms, with tiles of 64 keys 0.70 ms.
    TileSchedule forward{96, 192, 12};
    /// The same: 0.73 ms; with 128 rows 0.85 ms, or 0.79 ms with tiles of 96 keys.
    TileSchedule backward_queries{64, 192, 12};
};

}  // namespace pagegrad
