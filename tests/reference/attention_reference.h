/// Attention over a paged pool in double precision, written straight from the formulas of
/// pagegrad.h and sharing no code with the library.
#pragma once

#include "pagegrad/pagegrad.h"

#include <cstdint>
#include <functional>
#include <vector>

namespace pagegrad::test {

struct AttentionInputs {
    int num_heads = 1, num_kv_heads = 1, head_dim = 1;
    int value_head_dim = 0;  ///< 0: head_dim
    double scale = 1;
    double softcap = 0;                       ///< 0: none
    std::vector<double> alibi_slopes, sinks;  ///< [H]; empty: none
    pagegrad_mask mask = PAGEGRAD_MASK_NONE;
    int64_t window_left = -1, window_right = -1;

    std::vector<int32_t> query_length, kv_length;  ///< [B]
    std::vector<std::vector<int32_t>> blocks;      ///< blocks of each sequence
    int block_size = 1;

    std::vector<double> q, dout;         ///< [sum of query lengths, H, D or D_v]
    std::vector<double> dlse;            ///< [sum of query lengths, H]; empty: zero
    std::vector<double> k_pool, v_pool;  ///< [num_blocks, block_size, H_kv, D or D_v]

    /// How an entry of out is stored between forward and backward; empty: exactly.
    std::function<double(double)> stored_out;

    int value_dim() const {
        return value_head_dim > 0 ? value_head_dim : head_dim;
    }
};

/// A result, and for each entry what its rounding errors are proportional to.
struct Quantity {
    std::vector<double> value;
    /// Sum of absolute values: an entry computed with unit roundoff u is off by a small multiple of
    /// u * size.
    std::vector<double> size;
    /// Sum of the squares of the terms (P v, dS k, ...) that are added to make the entry. Equal
    /// terms, of a block that a sequence names several times, count as one large one.
    std::vector<double> squares;
    explicit Quantity(std::size_t count = 0) : value(count), size(count), squares(count) {
    }
};

/// Allowed error of a float32 result relative to Quantity::size. A sum of n terms is off by about
/// sqrt(n) roundings: 16 for the 256 dimensions or 257 keys and queries of our long sums.
constexpr double relative_tolerance = 16 * 0x1p-24;

struct AttentionResult {
    Quantity out, lse, dq;           ///< out like dout, dq like q; lse [tokens, H]
    Quantity dk_pool, dv_pool;       ///< like the pools
    Quantity dalibi_slopes, dsinks;  ///< like the slopes and sinks
};

/// The key that the mask counts from, for query i of a sequence.
int64_t diagonal(const AttentionInputs &inputs, int sequence, int64_t i);

/// Whether query i of a sequence sees key j.
bool sees(const AttentionInputs &inputs, int sequence, int64_t i, int64_t j);

/// How often the block of each column stands in the sequence's row of the table.
std::vector<int> repeats_of(const AttentionInputs &inputs, int sequence);

AttentionResult attention_reference(const AttentionInputs &inputs);

}  // namespace pagegrad::test
