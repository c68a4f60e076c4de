/// Which keys a query sees: the one definition for plan, forward, backward and the skipping of
/// work.
#pragma once

#include "pagegrad/pagegrad.h"

#include <algorithm>
#include <cstdint>

namespace pagegrad {

/// Half-open range of keys or of queries.
struct Range {
    int64_t begin = 0, end = 0;
    bool empty() const {
        return begin >= end;
    }
    int64_t size() const {
        return empty() ? 0 : end - begin;
    }
};

/// Mask of one sequence. Both ends of keys(i) grow with i, so the queries that see a span of keys
/// are a range too.
class Visibility {
public:
    Visibility(pagegrad_mask mask, int64_t window_left, int64_t window_right, int64_t query_length,
               int64_t kv_length)
        : query_length(query_length), kv_length(kv_length),
          shift(mask == PAGEGRAD_MASK_CAUSAL_TOP_LEFT ? 0 : kv_length - query_length),
          left(window_left < 0 ? unbounded : std::min(window_left, unbounded)),
          right(mask != PAGEGRAD_MASK_NONE ? 0
                : window_right < 0         ? unbounded
                                           : std::min(window_right, unbounded)) {
    }

    /// The key that the mask and its window count from, for query i; may be no key at all.
    int64_t diagonal(int64_t i) const {
        return i + shift;
    }

    /// Keys that query i sees.
    Range keys(int64_t i) const {
        return {std::clamp<int64_t>(diagonal(i) - left, 0, kv_length),
                std::clamp<int64_t>(diagonal(i) + right + 1, 0, kv_length)};
    }

    /// Queries that see any key of a span inside [0, kv_length).
    Range queries(Range span) const {
        if (span.empty()) {
            return {};
        }
        return {std::clamp<int64_t>(span.begin - shift - right, 0, query_length),
                std::clamp<int64_t>(span.end - shift + left, 0, query_length)};
    }

    /// Number of (query, key) pairs that see each other.
    int64_t pairs() const {
        return clamped_sum(shift + right + 1) - clamped_sum(shift - left);
    }

private:
    /// Sum of clamp(i + offset, 0, kv_length) over all queries i.
    int64_t clamped_sum(int64_t offset) const {
        const int64_t begin = std::clamp(offset, -query_length, kv_length);  // no sum changes
        return clamped_sum_below(begin + query_length) - clamped_sum_below(begin);
    }

    /// Sum of min(x, kv_length) over 0 <= x < end.
    int64_t clamped_sum_below(int64_t end) const {
        const int64_t rising = std::clamp<int64_t>(end, 0, kv_length);
        return rising * (rising - 1) / 2 + std::max<int64_t>(end - kv_length, 0) * kv_length;
    }

    static constexpr int64_t unbounded = int64_t{1} << 40;
    int64_t query_length, kv_length, shift, left, right;
};

}  // namespace pagegrad
