#include "attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

namespace pagegrad::test {

namespace {

struct Product {
    double value = 0, size = 0;
};

Product dot(const double *a, const double *b, int count) {
    Product sum;
    for (int d = 0; d < count; d++) {
        sum.value += a[d] * b[d];
        sum.size += std::abs(a[d] * b[d]);
    }
    return sum;
}

/// sum += {factor, size} * x, entry by entry. The sum gets `repeats` such terms, with one error.
void add(Quantity &sum, std::size_t at, Product factor, const double *x, int count, int repeats) {
    for (int d = 0; d < count; d++) {
        sum.value[at + d] += factor.value * x[d];
        sum.size[at + d] += factor.size * std::abs(x[d]);
        sum.squares[at + d] += repeats * factor.value * x[d] * factor.value * x[d];
    }
}

/// Probabilities below the smallest normal float32 may be off by that.
constexpr double vanishing_probability = 0x1p-126 / relative_tolerance;

struct SeenKey {
    std::size_t row;  ///< offset of its head in the pools
    int repeats;      ///< keys of the sequence in that row
    Product score, probability;
};

/// One query of one head.
class QueryRow {
public:
    QueryRow(const AttentionInputs &inputs, const std::vector<int> &repeats, int sequence,
             int64_t i, std::size_t token, int head)
        : in(inputs), lse_at(token * inputs.num_heads + head), at(lse_at * inputs.head_dim) {
        const int kv_head = head / (in.num_heads / in.num_kv_heads);
        for (int64_t j = 0; j < in.kv_length[sequence]; j++) {
            if (sees(in, sequence, i, j)) {
                const std::size_t block = in.blocks[sequence][j / in.block_size];
                const std::size_t slot = block * in.block_size + j % in.block_size;
                keys.push_back({(slot * in.num_kv_heads + kv_head) * in.head_dim,
                                repeats[j / in.block_size],
                                {},
                                {}});
            }
        }
    }

    void forward(AttentionResult &result) {
        if (keys.empty()) {
            result.lse.value[lse_at] = -std::numeric_limits<double>::infinity();
            return;
        }
        double largest = -std::numeric_limits<double>::infinity();
        for (SeenKey &key : keys) {
            key.score = dot(&in.q[at], &in.k_pool[key.row], in.head_dim);
            key.score.value *= in.scale;
            key.score.size *= std::abs(in.scale);
            largest = std::max(largest, key.score.value);
        }
        double sum = 0, mean_size = 0;
        for (const SeenKey &key : keys) {
            const double weight = std::exp(key.score.value - largest);
            sum += weight;
            mean_size += weight * key.score.size;
        }
        const double lse = largest + std::log(sum);
        const double lse_size = 1 + std::abs(lse) + mean_size / sum;
        result.lse.value[lse_at] = lse;
        result.lse.size[lse_at] = lse_size;
        for (SeenKey &key : keys) {
            // exp turns absolute errors of the score and of lse into relative ones.
            key.probability.value = std::exp(key.score.value - lse);
            key.probability.size =
                key.probability.value * (lse_size + key.score.size) + vanishing_probability;
            add(result.out, at, key.probability, &in.v_pool[key.row], in.head_dim, key.repeats);
        }
    }

    void backward(AttentionResult &result) const {
        std::vector<double> out(result.out.value.begin() + static_cast<std::ptrdiff_t>(at),
                                result.out.value.begin() +
                                    static_cast<std::ptrdiff_t>(at + in.head_dim));
        if (in.stored_out) {
            std::transform(out.begin(), out.end(), out.begin(), in.stored_out);
        }
        Product delta = dot(&in.dout[at], out.data(), in.head_dim);
        if (!in.dlse.empty()) {
            delta.value -= in.dlse[lse_at];
            delta.size += std::abs(in.dlse[lse_at]);
        }
        for (const SeenKey &key : keys) {
            const Product dp = dot(&in.dout[at], &in.v_pool[key.row], in.head_dim);
            const Product ds = {in.scale * key.probability.value * (dp.value - delta.value),
                                std::abs(in.scale) * key.probability.size * (dp.size + delta.size)};
            add(result.dq, at, ds, &in.k_pool[key.row], in.head_dim, key.repeats);
            add(result.dk_pool, key.row, ds, &in.q[at], in.head_dim, key.repeats);
            add(result.dv_pool, key.row, key.probability, &in.dout[at], in.head_dim, key.repeats);
        }
    }

private:
    const AttentionInputs &in;
    std::size_t lse_at, at;  ///< offsets in lse and q
    std::vector<SeenKey> keys;
};

}  // namespace

bool sees(const AttentionInputs &inputs, int sequence, int64_t i, int64_t j) {
    const int64_t bottom_right = i + inputs.kv_length[sequence] - inputs.query_length[sequence];
    const int64_t p = inputs.mask == PAGEGRAD_MASK_CAUSAL_TOP_LEFT ? i : bottom_right;
    if (inputs.mask != PAGEGRAD_MASK_NONE && j > p) {
        return false;
    }
    const bool left = inputs.window_left < 0 || p - j <= inputs.window_left;
    const bool right = inputs.window_right < 0 || j - p <= inputs.window_right;
    return left && right;
}

std::vector<int> repeats_of(const AttentionInputs &in, int sequence) {
    std::map<int32_t, int> count;
    for (const int32_t block : in.blocks[sequence]) {
        count[block]++;
    }
    std::vector<int> repeats;
    for (const int32_t block : in.blocks[sequence]) {
        repeats.push_back(count[block]);
    }
    return repeats;
}

AttentionResult attention_reference(const AttentionInputs &inputs) {
    AttentionResult result;
    result.out = result.dq = Quantity(inputs.q.size());
    result.lse = Quantity(inputs.q.size() / inputs.head_dim);
    result.dk_pool = result.dv_pool = Quantity(inputs.k_pool.size());
    std::size_t token = 0;
    for (std::size_t b = 0; b < inputs.query_length.size(); b++) {
        const std::vector<int> repeats = repeats_of(inputs, static_cast<int>(b));
        for (int64_t i = 0; i < inputs.query_length[b]; i++, token++) {
            for (int head = 0; head < inputs.num_heads; head++) {
                QueryRow row(inputs, repeats, static_cast<int>(b), i, token, head);
                row.forward(result);
                row.backward(result);
            }
        }
    }
    return result;
}

}  // namespace pagegrad::test
