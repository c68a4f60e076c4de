/// A tensor that lies between guard bands.
#pragma once

#include "pagegrad/pagegrad.h"

#include <cstdint>
#include <vector>

namespace pagegrad::test {

/// How a tensor lies in memory.
enum class Layout {
    Contiguous,
    Padded,     ///< gaps after every row, plane and volume
    HeadMajor,  ///< dimensions -2 and -3 swapped, with gaps
    Shuffled    ///< all but the last dimension in any order, with gaps of any size
};

/// Memory that belongs to no entry (before, after and between) holds a fixed NaN, so that reading
/// it spoils results and writing it is noticed. So does every entry at first. The data is aligned
/// to its element only.
class GuardedTensor {
public:
    GuardedTensor() = default;
    /// `seed` decides a shuffled layout.
    GuardedTensor(const std::vector<int64_t> &shape, Layout layout,
                  pagegrad_dtype dtype = PAGEGRAD_FLOAT32, unsigned seed = 0);

    /// The view to pass to the library.
    operator pagegrad_tensor() const {
        return view_;
    }
    pagegrad_dtype dtype() const {
        return static_cast<pagegrad_dtype>(view_.dtype);
    }
    int64_t size() const {
        return static_cast<int64_t>(offset_.size());
    }
    /// Entry at `index` in row-major order, whatever the layout.
    float operator[](int64_t index) const;
    /// Stores the number of the tensor's dtype that is nearest to `value`.
    void set(int64_t index, double value);
    bool guards_intact() const;
    bool is_untouched(int64_t index) const;
    /// The bits of all memory.
    std::vector<uint16_t> bits() const {
        return storage_;
    }

private:
    uint32_t element(int64_t offset) const;

    std::vector<uint16_t> storage_;  ///< 16-bit words, two of them a float32
    std::vector<int64_t> offset_;    ///< of every entry, row-major, in elements
    pagegrad_tensor view_{};
};

uint32_t bits_of(float value);
std::vector<uint32_t> bits_of(const std::vector<float> &values);

}  // namespace pagegrad::test
