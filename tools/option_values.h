/// Words that options of several commands take, and what they stand for.
#pragma once

#include "pagegrad/pagegrad.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace pagegrad {

inline const std::map<std::string, Mask> masks = {{"none", Mask::None},
                                                  {"causal", Mask::CausalBottomRight},
                                                  {"causal-top-left", Mask::CausalTopLeft}};
inline const std::map<std::string, Dtype> dtypes = {
    {"f32", Dtype::Float32}, {"bf16", Dtype::BFloat16}, {"f16", Dtype::Float16}};

/// The words of a map.
template<typename Value>
std::vector<std::string> names(const std::map<std::string, Value> &map) {
    std::vector<std::string> names;
    names.reserve(map.size());
    for (const auto &item : map) {
        names.push_back(item.first);
    }
    return names;
}

/// The word that stands for a value of a map.
template<typename Value>
const std::string &name_of(const std::map<std::string, Value> &map, Value value) {
    return std::find_if(map.begin(), map.end(),
                        [&](const auto &item) { return item.second == value; })
        ->first;
}

}  // namespace pagegrad
