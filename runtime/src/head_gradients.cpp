#include "head_gradients.h"

#include <algorithm>
#include <cmath>

namespace pagegrad {

namespace {

/// Calls visit(token, batch) for every query of every sequence.
template<typename Visit>
void for_each_query(const pagegrad_plan &plan, const QueryLayout &layout, const Visit &visit) {
    for (size_t index = 0; index < plan.sequences.size(); index++) {
        const Sequence &sequence = plan.sequences[index];
        for (int64_t query = 0; query < sequence.query_length; query++) {
            visit(layout.token(sequence, query), layout.batch(static_cast<int32_t>(index)));
        }
    }
}

float value(const pagegrad_tensor &row_tensor, int64_t batch, int64_t token, int64_t head) {
    const int64_t *stride = row_tensor.stride + row_tensor.rank - 2;
    const int64_t of_batch = row_tensor.rank == 3 ? batch * row_tensor.stride[0] : 0;
    return static_cast<const float *>(row_tensor.data)[of_batch + token * stride[0] + head];
}

}  // namespace

void sum_head_gradients(const BackwardCall &call, const QueryLayout &layout,
                        const pagegrad_tensor &lse, const float *delta,
                        const float *distance_sums) {
    const pagegrad_backward_args &args = call.args;
    const int64_t heads = call.plan.num_heads;
    const auto row = [&](int64_t batch, int64_t token, int64_t head) {
        return (batch * layout.tokens + token) * heads + head;
    };
    /// gradient[head] = -(sum of term(batch, token, head))
    const auto sum = [&](const pagegrad_tensor &gradient, const auto &term) {
        if (!present(gradient)) {
            return;
        }
        call.threads.for_each(heads, [&](int, int64_t head) {
            double total = 0;
            for_each_query(call.plan, layout, [&](int64_t token, int64_t batch) {
                total += term(batch, token, head);
            });
            static_cast<float *>(gradient.data)[head] = static_cast<float>(-total);
        });
    };
    sum(args.dalibi_slopes, [&](int64_t batch, int64_t token, int64_t head) {
        return double{distance_sums[row(batch, token, head)]};
    });
    sum(args.dsinks, [&](int64_t batch, int64_t token, int64_t head) {
        // An lse that includes the sink may be rounded to less, and is -inf where there is none.
        const double sink = static_cast<const float *>(args.sinks.data)[head];
        const double above = sink - value(lse, batch, token, head);
        return std::isinf(sink) ? 0
                                : std::exp(std::min(above, 0.0)) * delta[row(batch, token, head)];
    });
}

}  // namespace pagegrad
