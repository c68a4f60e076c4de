/// CUDA schedule of the fused backward.
#pragma once

#include "lowering/tiles.h"

namespace pagegrad {

/// What the schedule may choose. One thread block per multiprocessor: dK and dV of 128 keys fill
/// half of the registers, and the tiles most of the shared memory.
struct BackwardCudaSchedule {
    TileSchedule tiles{64, 128, 8};
};

/// Columns of tiles that hold head_dim: panels of 64.
constexpr int tile_columns(int head_dim) {
    return (head_dim + 63) / 64 * 64;
}

}  // namespace pagegrad
