#include "guarded_tensor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace pagegrad::test {

namespace {

constexpr uint32_t guard_bits = 0x7fc5a5a5;
constexpr int64_t guard_band = 67;  ///< odd, so that no alignment is inherited

float guard_value() {
    float value;
    std::memcpy(&value, &guard_bits, sizeof(value));
    return value;
}

}  // namespace

GuardedTensor::GuardedTensor(const std::vector<int64_t> &shape, Layout layout) {
    const int rank = static_cast<int>(shape.size());
    std::vector<int> outward(rank);  // dimensions from the innermost to the outermost
    std::iota(outward.rbegin(), outward.rend(), 0);
    if (layout == Layout::HeadMajor && rank > 2) {
        std::swap(outward[1], outward[2]);
    }
    view_.dtype = PAGEGRAD_FLOAT32;
    view_.rank = rank;
    int64_t step = 1, count = 1, padding = 0;
    for (const int dim : outward) {
        view_.shape[dim] = shape[dim];
        view_.stride[dim] = step;
        padding = layout == Layout::Contiguous ? 0 : padding + 3;
        step = step * std::max<int64_t>(shape[dim], 1) + padding;
        count *= shape[dim];
    }
    offset_.resize(count);
    for (int64_t index = 0; index < count; index++) {
        int64_t rest = index, offset = guard_band;
        for (int dim = rank - 1; dim >= 0; dim--) {
            offset += rest % shape[dim] * view_.stride[dim];
            rest /= shape[dim];
        }
        offset_[index] = offset;
    }
    storage_.assign(step + 2 * guard_band, guard_value());
    view_.data = storage_.data() + guard_band;
}

bool GuardedTensor::guards_intact() const {
    std::vector<bool> is_guard(storage_.size(), true);
    for (const int64_t offset : offset_) {
        is_guard[offset] = false;
    }
    for (std::size_t at = 0; at < storage_.size(); at++) {
        if (is_guard[at] && bits_of(storage_[at]) != guard_bits) {
            return false;
        }
    }
    return true;
}

bool GuardedTensor::is_untouched(int64_t index) const {
    return bits_of((*this)[index]) == guard_bits;
}

std::vector<uint32_t> GuardedTensor::bits() const {
    return bits_of(storage_);
}

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

std::vector<uint32_t> bits_of(const std::vector<float> &values) {
    std::vector<uint32_t> bits(values.size());
    if (!values.empty()) {
        std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
    }
    return bits;
}

}  // namespace pagegrad::test
