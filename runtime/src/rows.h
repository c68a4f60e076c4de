/// Packed query rows as kernels read them; the order of the fields is that of
/// generators/paging.h.
#pragma once

#include <cstdint>

namespace pagegrad {

struct QueryRow {
    int32_t token, batch, head;
    int32_t key_begin, key_end;  ///< keys that it sees
    int32_t position;            ///< the key that the mask and ALiBi count from
};
constexpr int query_row_fields = sizeof(QueryRow) / sizeof(int32_t);

/// Largest heights of the kernels' inner tiles, and what the runtime makes of them.
constexpr int max_query_tile = 64, max_kv_tile = 64;

/// Height of tiles that share `count` evenly instead of leaving a small last one.
constexpr int32_t even_tile(int32_t count, int32_t largest) {
    const int32_t tiles = (count + largest - 1) / largest;
    return (count + tiles - 1) / tiles;
}

/// Rounded up to the multiple that kernels use at most (register blocks of 8 rows, 32 keys).
constexpr int32_t round_up(int32_t value, int32_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace pagegrad
