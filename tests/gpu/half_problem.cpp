#include "half_problem.h"

#include "tests/support/rounding.h"

#include <cmath>

namespace pagegrad::test {

namespace {

/// Rounding to a 16-bit type: relative, and absolute for numbers below its normal ones. None to
/// float32.
struct Rounding {
    double relative, absolute;

    explicit Rounding(pagegrad_dtype dtype)
        : relative(dtype == PAGEGRAD_FLOAT32    ? 0
                   : dtype == PAGEGRAD_BFLOAT16 ? 0x1p-9
                                                : 0x1p-12),
          absolute(dtype == PAGEGRAD_FLOAT16 ? 0x1p-25 : 0) {
    }
    double variance(double value) const {
        return std::pow(relative * value, 2) + std::pow(absolute, 2);
    }
};

/// Variances of the results, taking roundings for independent.
class Variances {
public:
    Variances(const Problem &problem, const Dtypes &dtypes)
        : in(problem.inputs), expected(problem.expected), rounding(dtypes.inputs),
          out_rounding(dtypes.out), dq_rounding(dtypes.dq), out(in.q.size()), dq(in.q.size()),
          dk(in.k_pool.size()), dv(in.v_pool.size()) {
        std::size_t token = 0;
        for (std::size_t b = 0; b < in.query_length.size(); b++) {
            repeats = repeats_of(in, static_cast<int>(b));
            for (int64_t i = 0; i < in.query_length[b]; i++, token++) {
                for (int head = 0; head < in.num_heads; head++) {
                    add_row(static_cast<int>(b), i, token * in.num_heads + head, head);
                }
            }
        }
    }

private:
    const AttentionInputs &in;
    const AttentionResult &expected;
    const Rounding rounding, out_rounding, dq_rounding;
    std::vector<int> repeats;  ///< of the blocks of a sequence: their errors are the same

    void add_row(int sequence, int64_t i, std::size_t row, int head) {
        const int D = in.head_dim;
        const double *q = &in.q[row * D], *dout = &in.dout[row * D];
        double delta = in.dlse.empty() ? 0 : -in.dlse[row];
        for (int d = 0; d < D; d++) {
            delta += dout[d] * in.stored_out(expected.out.value[row * D + d]);
        }
        for (int64_t j = 0; j < in.kv_length[sequence]; j++) {
            if (!sees(in, sequence, i, j)) {
                continue;
            }
            const std::size_t at = key_at(sequence, j, head);
            const int equal = repeats[j / in.block_size];
            const double p = std::exp(in.scale * dot(q, &in.k_pool[at]) - expected.lse.value[row]);
            for (int d = 0; d < D; d++) {
                out[row * D + d] += equal * rounding.variance(p) * std::pow(in.v_pool[at + d], 2);
            }
            const double ds = p * (dot(dout, &in.v_pool[at]) - delta);
            // The score gradient has the rounding of the probability and its own.
            const double ds_variance = 2 * equal * rounding.variance(ds);
            for (int d = 0; d < D; d++) {
                const double k = in.scale * in.k_pool[at + d];
                dq[row * D + d] += ds_variance * k * k;
                dk[at + d] += ds_variance * std::pow(in.scale * q[d], 2);
                dv[at + d] += equal * rounding.variance(p) * std::pow(dout[d], 2);
            }
        }
        for (int d = 0; d < D; d++) {
            out[row * D + d] += out_rounding.variance(expected.out.value[row * D + d]);
            dq[row * D + d] += dq_rounding.variance(expected.dq.value[row * D + d]);
        }
    }

    std::size_t key_at(int sequence, int64_t j, int head) const {
        const std::size_t block = in.blocks[sequence][j / in.block_size];
        const std::size_t slot = block * in.block_size + j % in.block_size;
        const int kv_head = head / (in.num_heads / in.num_kv_heads);
        return (slot * in.num_kv_heads + kv_head) * in.head_dim;
    }

    double dot(const double *a, const double *b) const {
        double sum = 0;
        for (int d = 0; d < in.head_dim; d++) {
            sum += a[d] * b[d];
        }
        return sum;
    }

public:
    std::vector<double> out, dq, dk, dv;
};

/// Sizes are in units of the tolerance of float32. The variances take every rounding for as large
/// as it can be, about twice what it is on average: four deviations are seven or more.
void add_sizes(Quantity &quantity, const std::vector<double> &variances) {
    for (std::size_t at = 0; at < variances.size(); at++) {
        quantity.size[at] += 4 * std::sqrt(variances[at]) / relative_tolerance;
    }
}

}  // namespace

Problem make_half_problem(const Geometry &geometry, const Dtypes &dtypes) {
    Problem problem = make_problem(geometry);
    for (auto *tensor : {&problem.inputs.q, &problem.inputs.dout, &problem.inputs.k_pool,
                         &problem.inputs.v_pool}) {
        for (double &value : *tensor) {
            value = rounded(value, dtypes.inputs);
        }
    }
    problem = make_problem(std::move(problem.inputs), problem.form, problem.layout,
                           {PAGEGRAD_FLOAT32, dtypes.out, PAGEGRAD_FLOAT32});
    const Variances variances(problem, dtypes);
    add_sizes(problem.expected.out, variances.out);
    add_sizes(problem.expected.dq, variances.dq);
    add_sizes(problem.expected.dk_pool, variances.dk);
    add_sizes(problem.expected.dv_pool, variances.dv);
    return problem;
}

}  // namespace pagegrad::test
