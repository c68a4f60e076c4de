#include "tiles.h"

#include "parallel.h"

#include <algorithm>

namespace pagegrad {

namespace {

int64_t tiles_of(const Run &run, int32_t tile_keys) {
    return (run.num_keys - 1) / tile_keys + 1;
}

}  // namespace

TileList::TileList(const pagegrad_plan &plan, int32_t tile_keys, Carver &carver)
    : tile_keys(tile_keys), plan(plan), first_tile(carver.take<int64_t>(plan.runs.size() + 1)) {
}

void TileList::build() {
    first_tile[0] = 0;
    for (size_t run = 0; run < plan.runs.size(); run++) {
        first_tile[run + 1] = first_tile[run] + tiles_of(plan.runs[run], tile_keys);
    }
}

int64_t TileList::size() const {
    return first_tile[plan.runs.size()] * plan.num_kv_heads;
}

KeyTile TileList::operator[](int64_t task) const {
    // Neighbours in the list differ in their head, so that they need not wait for each other.
    const int64_t number = task / plan.num_kv_heads;
    const int64_t *after = std::upper_bound(first_tile, first_tile + plan.runs.size() + 1, number);
    KeyTile tile;
    tile.run = static_cast<int32_t>(after - first_tile - 1);
    tile.tile = static_cast<int32_t>(number - first_tile[tile.run]);
    tile.kv_head = static_cast<int32_t>(task % plan.num_kv_heads);
    const int64_t begin = int64_t{tile.tile} * tile_keys;
    tile.keys = {begin, std::min<int64_t>(begin + tile_keys, plan.runs[tile.run].num_keys)};
    return tile;
}

ChunkProgress::ChunkProgress(const pagegrad_plan &plan, const TileList &tiles, Carver &carver)
    : plan(plan), tiles(tiles), chunk_queries(std::max(1, chunk_rows / plan.group())),
      num_chunks(0), first_chunk(carver.take<int64_t>(plan.sequences.size())) {
    for (const Sequence &sequence : plan.sequences) {
        num_chunks += (sequence.query_length + chunk_queries - 1) / chunk_queries;
    }
    last_ticket = carver.take<std::atomic<int64_t>>(num_chunks * plan.num_kv_heads);
}

void ChunkProgress::build() {
    int64_t chunks = 0;
    for (size_t i = 0; i < plan.sequences.size(); i++) {
        first_chunk[i] = chunks;
        chunks += (plan.sequences[i].query_length + chunk_queries - 1) / chunk_queries;
    }
    for (int64_t i = 0; i < num_chunks * plan.num_kv_heads; i++) {
        new (&last_ticket[i]) std::atomic<int64_t>(0);
    }
}

int64_t ChunkProgress::last_tile(const SequenceUse &use, Range chunk_keys, int64_t limit) const {
    const int64_t first_key = plan.users[use.user].first_key;
    const Range keys{std::max<int64_t>(chunk_keys.begin - first_key, 0),
                     std::min<int64_t>(chunk_keys.end - first_key, plan.runs[use.run].num_keys)};
    if (keys.empty()) {
        return -1;
    }
    const int64_t last = std::min((keys.end - 1) / tiles.tile_keys, limit - 1);
    return last >= keys.begin / tiles.tile_keys ? last : -1;
}

int64_t ChunkProgress::predecessor(int32_t sequence, int64_t chunk, const KeyTile &tile) const {
    const Sequence &of = plan.sequences[sequence];
    const Visibility mask = plan.visibility(of);
    const int64_t last_query = std::min<int64_t>(chunk_end(chunk), of.query_length) - 1;
    const Range keys{mask.keys(chunk * chunk_queries).begin, mask.keys(last_query).end};

    // The uses are in the order of the runs; a run that the sequence uses twice stands twice.
    const auto begin = plan.uses.begin() + of.uses_begin;
    auto use = std::upper_bound(begin, plan.uses.begin() + of.uses_end, tile.run,
                                [](int32_t run, const SequenceUse &u) { return run < u.run; });
    int64_t found = -1;
    int32_t found_run = -1;
    while (use != begin) {
        --use;
        if (found >= 0 && use->run != found_run) {
            break;
        }
        const int64_t limit = use->run == tile.run ? tile.tile : INT64_MAX;
        found = std::max(found, last_tile(*use, keys, limit));
        found_run = use->run;
    }
    return found < 0 ? 0 : tiles.ticket(found_run, static_cast<int32_t>(found));
}

void ChunkProgress::wait(int32_t kv_head, int32_t sequence, int64_t chunk,
                         const KeyTile &tile) const {
    const std::atomic<int64_t> &last = progress(kv_head, sequence, chunk);
    const int64_t before = predecessor(sequence, chunk, tile);
    for (Backoff backoff; last.load(std::memory_order_acquire) != before;) {
        backoff.wait();
    }
}

void ChunkProgress::publish(int32_t kv_head, int32_t sequence, int64_t chunk,
                            const KeyTile &tile) const {
    progress(kv_head, sequence, chunk)
        .store(tiles.ticket(tile.run, tile.tile), std::memory_order_release);
}

}  // namespace pagegrad
