/// Batches to measure, their names and the suites that they form. benchmarks/README.md explains
/// both.
#pragma once

#include "pagegrad/pagegrad.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace pagegrad::bench {

struct Geometry {
    int heads = 8, kv_heads = 2, head_dim = 128, block_size = 16;
    std::vector<int32_t> query_lengths, kv_lengths;  ///< of each sequence
    Mask mask = Mask::CausalBottomRight;
    int64_t window_left = -1;  ///< keys before a query's own that it sees, -1: all
    int shared_keys = 0;       ///< the first keys of all sequences are the same blocks

    /// As in "B1_H8_2_S1024_D64_blk16_causal".
    std::string name() const;
};

/// `batch` sequences of the same lengths.
Geometry equal_lengths(int batch, int32_t query_length, int32_t kv_length, int head_dim);

/// Names of the suites; the last one, "all", has the geometries of the others.
std::vector<std::string> suite_names();

/// The geometries of a suite, which exists, each once.
std::vector<Geometry> suite(const std::string &name);

}  // namespace pagegrad::bench
