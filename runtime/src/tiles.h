/// The tiles of keys that a plan's runs are cut into, and who adds to dQ when.
#pragma once

#include "plan.h"
#include "workspace.h"

#include <atomic>
#include <cstdint>

namespace pagegrad {

/// A span of keys of a run, small enough for its packed keys, values and gradients to stay in the
/// L2 cache.
struct KeyTile {
    int32_t run, tile;
    int32_t kv_head;
    Range keys;  ///< of the run
};

/// Enumerates the tiles of all runs for every KV head, in the order of execution.
class TileList {
public:
    TileList(const pagegrad_plan &plan, int32_t tile_keys, Carver &carver);
    /// Fills the list. The memory was carved before.
    void build();

    int64_t size() const;
    KeyTile operator[](int64_t task) const;
    /// Number of a tile among those of all runs, from 1.
    int64_t ticket(int32_t run, int32_t tile) const {
        return first_tile[run] + tile + 1;
    }

    const int32_t tile_keys;

private:
    const pagegrad_plan &plan;
    int64_t *first_tile;  ///< [runs + 1]
};

/// Keeps the additions to every row of dQ in the order of the tiles, whatever the threads.
///
/// The queries of a sequence are cut into chunks. A chunk remembers the ticket of the last tile
/// that was added to its rows; a tile waits until that is the one before it among the tiles that
/// the chunk sees. Tiles start in order, so the earliest unfinished one never waits for ever.
class ChunkProgress {
public:
    static constexpr int32_t chunk_rows = 512;

    ChunkProgress(const pagegrad_plan &plan, const TileList &tiles, Carver &carver);
    void build();

    int64_t chunk_of(int64_t query) const {
        return query / chunk_queries;
    }
    /// First query after a chunk.
    int64_t chunk_end(int64_t chunk) const {
        return (chunk + 1) * chunk_queries;
    }

    /// Waits until all tiles before this one have been added to the chunk.
    void wait(int32_t kv_head, int32_t sequence, int64_t chunk, const KeyTile &tile) const;
    /// Tells that this tile has been added.
    void publish(int32_t kv_head, int32_t sequence, int64_t chunk, const KeyTile &tile) const;

private:
    std::atomic<int64_t> &progress(int32_t kv_head, int32_t sequence, int64_t chunk) const {
        return last_ticket[kv_head * num_chunks + first_chunk[sequence] + chunk];
    }
    int64_t predecessor(int32_t sequence, int64_t chunk, const KeyTile &tile) const;
    /// Last tile of a use's run, below `limit`, that the chunk sees; -1 if none.
    int64_t last_tile(const SequenceUse &use, Range chunk_keys, int64_t limit) const;

    const pagegrad_plan &plan;
    const TileList &tiles;
    const int64_t chunk_queries;
    int64_t num_chunks;
    int64_t *first_chunk;  ///< [sequences]
    std::atomic<int64_t> *last_ticket;
};

}  // namespace pagegrad
