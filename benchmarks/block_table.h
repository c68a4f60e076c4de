/// Block tables of benchmark batches: blocks in random places, the first ones shared if wanted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace pagegrad {

struct BlockTable {
    std::vector<int32_t> ids;  ///< [sequences, max_blocks], -1 where unused
    int32_t max_blocks = 0;
    int64_t num_blocks = 0;

    /// The first `shared_keys` keys of all sequences are the same blocks.
    BlockTable(const std::vector<int32_t> &kv_lengths, int block_size, int shared_keys) {
        const auto blocks = [&](int64_t keys) {
            return static_cast<int32_t>((keys + block_size - 1) / block_size);
        };
        max_blocks = blocks(*std::max_element(kv_lengths.begin(), kv_lengths.end()));
        ids.assign(kv_lengths.size() * max_blocks, -1);
        const int32_t shared = blocks(shared_keys);
        num_blocks = shared;
        for (size_t sequence = 0; sequence < kv_lengths.size(); sequence++) {
            for (int32_t i = 0; i < blocks(kv_lengths[sequence]); i++) {
                ids[sequence * max_blocks + i] =
                    i < shared ? i : static_cast<int32_t>(num_blocks++);
            }
        }
        std::vector<int32_t> place(num_blocks);
        std::iota(place.begin(), place.end(), 0);
        std::shuffle(place.begin(), place.end(), std::mt19937(5));
        for (int32_t &block : ids) {
            block = block < 0 ? block : place[block];
        }
    }
};

}  // namespace pagegrad
