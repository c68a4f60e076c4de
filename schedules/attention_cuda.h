/// CUDA schedules of the kernels on tensor cores.
#pragma once

#include "lowering/tiles.h"

namespace pagegrad {

/// What the schedules may choose. One thread block per multiprocessor: sums fill the registers, and
/// tiles the shared memory.
struct CudaSchedules {
    /// Tiles of 64 query rows go past 128 keys.
    TileSchedule backward{64, 128, 8};
    /// The same, where dV is a pass of its own.
    TileSchedule backward_values = backward;
    /// Tiles of keys go past 192 query rows. On an H100, causal with 32 heads of 128 columns, two
    /// sequences of 4096: 0.67 ms; with 128 rows 0.76 ms, with tiles of 64 keys 0.70 ms.
    TileSchedule forward{96, 192, 12};
    /// The same: 0.73 ms; with 128 rows 0.85 ms, or 0.79 ms with tiles of 96 keys.
    TileSchedule backward_queries{64, 192, 12};

    /// For tiles of this many columns of head_dim.
    explicit CudaSchedules(int columns) {
        if (columns > 128) {
            // Sums of 256 columns take 128 registers of a thread: there is no room for a second
            // one, nor for more than 8 warps.
            backward = {32, 128, 8, true};
            backward_values = {64, 128, 8, true};
            forward = {64, 128, 8, true};
            backward_queries = {32, 128, 8};
        }
    }
};

}  // namespace pagegrad
