#include "guarded_tensor.h"

#include "rounding.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

namespace pagegrad::test {

namespace {

constexpr int64_t guard_band = 67;  ///< elements; odd, so that no alignment is inherited

constexpr uint16_t guard_word = 0x7fc5;  ///< a NaN in 16 bits, and twice in 32

uint32_t guard_bits(pagegrad_dtype dtype) {
    return dtype == PAGEGRAD_FLOAT32 ? guard_word << 16 | guard_word : guard_word;
}

/// 16-bit words of an element.
int words(pagegrad_dtype dtype) {
    return element_size(dtype) / 2;
}

}  // namespace

GuardedTensor::GuardedTensor(const std::vector<int64_t> &shape, Layout layout, pagegrad_dtype dtype,
                             unsigned seed) {
    std::mt19937 random(seed);
    const int rank = static_cast<int>(shape.size());
    std::vector<int> outward(rank);  // dimensions from the innermost to the outermost
    std::iota(outward.rbegin(), outward.rend(), 0);
    if (layout == Layout::HeadMajor && rank > 2) {
        std::swap(outward[1], outward[2]);
    } else if (layout == Layout::Shuffled) {
        std::shuffle(outward.begin() + 1, outward.end(), random);
    }
    view_.dtype = dtype;
    view_.rank = rank;
    int64_t step = 1, padding = 0;
    for (const int dim : outward) {
        view_.shape[dim] = shape[dim];
        view_.stride[dim] = step;
        padding = layout == Layout::Contiguous ? 0
                  : layout == Layout::Shuffled ? 1 + static_cast<int64_t>(random() % 7)
                                               : padding + 3;
        step = step * std::max<int64_t>(shape[dim], 1) + padding;
    }
    offset_ = {guard_band};
    for (int dim = 0; dim < rank; dim++) {
        std::vector<int64_t> outer(std::move(offset_));
        offset_.clear();
        for (const int64_t offset : outer) {
            for (int64_t index = 0; index < shape[dim]; index++) {
                offset_.push_back(offset + index * view_.stride[dim]);
            }
        }
    }
    storage_.assign((step + 2 * guard_band) * words(dtype), guard_word);
    view_.data = &storage_[guard_band * words(dtype)];
}

uint32_t GuardedTensor::element(int64_t offset) const {
    uint32_t bits = 0;
    std::memcpy(&bits, &storage_[offset * words(dtype())], element_size(dtype()));
    return bits;
}

float GuardedTensor::operator[](int64_t index) const {
    return decoded(element(offset_[index]), dtype());
}

void GuardedTensor::set(int64_t index, double value) {
    const uint32_t bits = encoded(value, dtype());
    std::memcpy(&storage_[offset_[index] * words(dtype())], &bits, element_size(dtype()));
}

bool GuardedTensor::guards_intact() const {
    std::vector<bool> is_guard(storage_.size() / words(dtype()), true);
    for (const int64_t offset : offset_) {
        is_guard[offset] = false;
    }
    for (std::size_t offset = 0; offset < is_guard.size(); offset++) {
        if (is_guard[offset] && element(static_cast<int64_t>(offset)) != guard_bits(dtype())) {
            return false;
        }
    }
    return true;
}

bool GuardedTensor::is_untouched(int64_t index) const {
    return element(offset_[index]) == guard_bits(dtype());
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
