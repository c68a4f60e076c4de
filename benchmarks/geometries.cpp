#include "geometries.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

namespace pagegrad::bench {

namespace {

using Geometries = std::vector<Geometry>;

/// As in "1024", "1x32768" (queries x keys) or "1to300" (mixed).
std::string lengths_name(const Geometry &geometry) {
    const auto &queries = geometry.query_lengths, &keys = geometry.kv_lengths;
    const auto [least, most] = std::minmax_element(queries.begin(), queries.end());
    const std::string shortest = std::to_string(*least);
    if (*least != *most) {
        return shortest + "to" + std::to_string(*most);
    }
    return queries == keys ? shortest : shortest + "x" + std::to_string(keys[0]);
}

Geometry self_attention(int32_t length, int head_dim, Mask mask = Mask::CausalBottomRight) {
    Geometry geometry = equal_lengths(1, length, length, head_dim);
    geometry.mask = mask;
    return geometry;
}

Geometries default_suite() {
    Geometries list;
    for (const int head_dim : {64, 128}) {
        for (const Mask mask : {Mask::CausalBottomRight, Mask::None}) {
            for (const int32_t length : {512, 1024, 2048, 4096, 16384}) {
                list.push_back(self_attention(length, head_dim, mask));
            }
        }
        for (const int32_t length : {1000, 1023, 1025}) {
            list.push_back(self_attention(length, head_dim));
        }
    }
    for (const int head_dim : {96, 192, 256}) {
        list.push_back(self_attention(1024, head_dim));
    }
    return list;
}

Geometries short_suite() {
    Geometry mixed;
    for (int i = 0; i < 64; i++) {
        mixed.query_lengths.push_back(1 + i * 37 % 64 * 299 / 63);
    }
    mixed.kv_lengths = mixed.query_lengths;
    return {equal_lengths(8, 128, 128, 128), mixed};
}

/// A prefix in the pool once, and the same batch with a copy of it for every sequence.
Geometries prefix_suite() {
    constexpr int32_t prefix = 4096, own = 32;
    const Geometry copied = equal_lengths(64, own, prefix + own, 128);
    Geometry shared = copied;
    shared.shared_keys = prefix;
    return {shared, copied};
}

Geometries decode_suite() {
    return {equal_lengths(16, 1, 32768, 128)};
}

Geometries window_suite() {
    Geometries list;
    for (int32_t length = 1024; length <= 65536; length *= 2) {
        list.push_back(self_attention(length, 64));
        list.back().window_left = 256;
    }
    return list;
}

Geometries lengths_suite() {
    Geometries list;
    for (const int head_dim : {64, 128}) {
        for (int32_t length = 64; length <= 16384; length *= 2) {
            list.push_back(self_attention(length, head_dim));
        }
    }
    return list;
}

Geometries peers_suite() {
    Geometry multi_query = self_attention(2048, 128), multi_head = self_attention(512, 64);
    multi_query.heads = 4;
    multi_query.kv_heads = 1;
    multi_head.kv_heads = multi_head.heads;
    return {self_attention(1024, 64), self_attention(1024, 128), multi_query,
            equal_lengths(8, 128, 128, 128), multi_head};
}

const std::vector<std::pair<std::string, std::function<Geometries()>>> suites = {
    {"default", default_suite}, {"short", short_suite},   {"prefix", prefix_suite},
    {"decode", decode_suite},   {"window", window_suite}, {"lengths", lengths_suite},
    {"peers", peers_suite}};

}  // namespace

std::string Geometry::name() const {
    const auto part = [](const char *key, int64_t value) { return key + std::to_string(value); };
    return part("B", static_cast<int64_t>(query_lengths.size())) + part("_H", heads) +
           part("_", kv_heads) + "_S" + lengths_name(*this) + part("_D", head_dim) +
           part("_blk", block_size) + (mask == Mask::None ? "_full" : "_causal") +
           (window_left < 0 ? "" : part("_w", window_left)) +
           (shared_keys == 0 ? "" : part("_shared", shared_keys));
}

Geometry equal_lengths(int batch, int32_t query_length, int32_t kv_length, int head_dim) {
    Geometry geometry;
    geometry.head_dim = head_dim;
    geometry.query_lengths.assign(batch, query_length);
    geometry.kv_lengths.assign(batch, kv_length);
    return geometry;
}

std::vector<std::string> suite_names() {
    std::vector<std::string> names;
    names.reserve(suites.size() + 1);
    for (const auto &item : suites) {
        names.push_back(item.first);
    }
    names.emplace_back("all");
    return names;
}

std::vector<Geometry> suite(const std::string &name) {
    Geometries list;
    std::set<std::string> seen;
    for (const auto &[suite_name, make] : suites) {
        if (name != suite_name && name != "all") {
            continue;
        }
        for (Geometry &geometry : make()) {
            if (seen.insert(geometry.name()).second) {
                list.push_back(std::move(geometry));
            }
        }
    }
    return list;
}

}  // namespace pagegrad::bench
