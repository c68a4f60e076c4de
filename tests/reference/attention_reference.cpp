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

/// tanh and its derivative.
struct SoftStep {
    double value, derivative;
    explicit SoftStep(double x)
        : value(std::tanh(x)), derivative(1 / (std::cosh(x) * std::cosh(x))) {
    }
};

struct SeenKey {
    std::size_t k, v;  ///< offsets of its head in the pools
    int repeats;       ///< keys of the sequence in that row
    double distance;   ///< from the diagonal
    Product score, probability;
    Product slope;  ///< of the softcap
};

/// One query of one head.
class QueryRow {
public:
    QueryRow(const AttentionInputs &inputs, const std::vector<int> &repeats, int sequence,
             int64_t i, std::size_t token, int head)
        : in(inputs), head(head), lse_at(token * inputs.num_heads + head),
          q_at(lse_at * inputs.head_dim), out_at(lse_at * inputs.value_dim()) {
        const int kv_head = head / (in.num_heads / in.num_kv_heads);
        for (int64_t j = 0; j < in.kv_length[sequence]; j++) {
            if (sees(in, sequence, i, j)) {
                const std::size_t block = in.blocks[sequence][j / in.block_size];
                const std::size_t slot = block * in.block_size + j % in.block_size;
                const std::size_t row = slot * in.num_kv_heads + kv_head;
                const int64_t distance = std::abs(diagonal(in, sequence, i) - j);
                keys.push_back({row * in.head_dim,
                                row * in.value_dim(),
                                repeats[j / in.block_size],
                                static_cast<double>(distance),
                                {},
                                {},
                                {}});
            }
        }
    }

    void forward(AttentionResult &result) {
        double largest = sink();
        for (SeenKey &key : keys) {
            compute_score(key);
            largest = std::max(largest, key.score.value);
        }
        if (std::isinf(largest)) {  // neither keys nor a sink
            result.lse.value[lse_at] = largest;
            return;
        }
        const double sink_weight = std::exp(sink() - largest);
        double sum = sink_weight;
        double mean_size = sink_weight > 0 ? sink_weight * std::abs(sink()) : 0;
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
            add(result.out, out_at, key.probability, &in.v_pool[key.v], in.value_dim(),
                key.repeats);
        }
    }

    void backward(AttentionResult &result) const {
        const Product delta = this->delta(result);
        for (const SeenKey &key : keys) {
            const Product dp = dot(&in.dout[out_at], &in.v_pool[key.v], in.value_dim());
            const Product ds = {key.probability.value * (dp.value - delta.value),
                                key.probability.size * (dp.size + delta.size)};
            const Product dqk = {in.scale * ds.value * key.slope.value,
                                 std::abs(in.scale) * (ds.size * key.slope.value +
                                                       std::abs(ds.value) * key.slope.size)};
            add(result.dq, q_at, dqk, &in.k_pool[key.k], in.head_dim, key.repeats);
            add(result.dk_pool, key.k, dqk, &in.q[q_at], in.head_dim, key.repeats);
            add(result.dv_pool, key.v, key.probability, &in.dout[out_at], in.value_dim(),
                key.repeats);
            if (!in.alibi_slopes.empty()) {
                const double minus_distance = -key.distance;
                add(result.dalibi_slopes, head, ds, &minus_distance, 1, key.repeats);
            }
        }
        const double lse = result.lse.value[lse_at];
        if (std::isfinite(sink()) && std::isfinite(lse)) {
            const double weight = std::exp(sink() - lse), minus_one = -1;
            const double size = weight * (std::abs(sink()) + result.lse.size[lse_at]);
            add(result.dsinks, head, {weight * delta.value, size * delta.size}, &minus_one, 1, 1);
        }
    }

private:
    double sink() const {
        return in.sinks.empty() ? -std::numeric_limits<double>::infinity() : in.sinks[head];
    }

    void compute_score(SeenKey &key) const {
        key.score = dot(&in.q[q_at], &in.k_pool[key.k], in.head_dim);
        key.score.value *= in.scale;
        key.score.size *= std::abs(in.scale);
        key.slope = {1, 0};
        if (in.softcap > 0) {
            // Errors of the score pass through the slope; tanh and its slope have their own.
            const SoftStep step(key.score.value / in.softcap);
            const double passed = step.derivative * key.score.size;
            key.slope = {step.derivative,
                         4 * step.derivative + 2 * std::abs(step.value) * passed / in.softcap};
            key.score.value = in.softcap * step.value;
            key.score.size = passed + 2 * std::abs(key.score.value);
        }
        if (!in.alibi_slopes.empty()) {
            const double bias = in.alibi_slopes[head] * key.distance;
            key.score.value -= bias;
            key.score.size += 2 * std::abs(bias);
        }
    }

    Product delta(const AttentionResult &result) const {
        const auto begin = result.out.value.begin() + static_cast<std::ptrdiff_t>(out_at);
        std::vector<double> out(begin, begin + in.value_dim());
        if (in.stored_out) {
            std::transform(out.begin(), out.end(), out.begin(), in.stored_out);
        }
        Product delta = dot(&in.dout[out_at], out.data(), in.value_dim());
        if (!in.dlse.empty()) {
            delta.value -= in.dlse[lse_at];
            delta.size += std::abs(in.dlse[lse_at]);
        }
        return delta;
    }

    const AttentionInputs &in;
    const int head;
    std::size_t lse_at, q_at, out_at;  ///< offsets in lse, q and out
    std::vector<SeenKey> keys;
};

}  // namespace

int64_t diagonal(const AttentionInputs &inputs, int sequence, int64_t i) {
    const int64_t bottom_right = i + inputs.kv_length[sequence] - inputs.query_length[sequence];
    return inputs.mask == PAGEGRAD_MASK_CAUSAL_TOP_LEFT ? i : bottom_right;
}

bool sees(const AttentionInputs &inputs, int sequence, int64_t i, int64_t j) {
    const int64_t p = diagonal(inputs, sequence, i);
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
    result.out = Quantity(inputs.dout.size());
    result.dq = Quantity(inputs.q.size());
    result.lse = Quantity(inputs.q.size() / inputs.head_dim);
    result.dk_pool = Quantity(inputs.k_pool.size());
    result.dv_pool = Quantity(inputs.v_pool.size());
    result.dalibi_slopes = Quantity(inputs.alibi_slopes.size());
    result.dsinks = Quantity(inputs.sinks.size());
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
