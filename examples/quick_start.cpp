// Two sequences share the block that holds their prompt: forward, then gradients into the pools.
#include "pagegrad/pagegrad.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
    // 8 query heads over 2 KV heads; a pool of 5 blocks of 16 keys, as a serving engine keeps it.
    const pagegrad::AttentionConfig config(8, 2, 64, pagegrad::Mask::CausalBottomRight);
    const std::vector<int32_t> query_length = {4, 12}, kv_length = {20, 28};
    const std::vector<int32_t> block_table = {3, 0, 3, 4};  // both start with block 3
    std::vector<float> k_pool(5 * 16 * 2 * 64, 0.1f), v_pool(k_pool.size(), 0.2f);
    std::vector<float> q(16 * 8 * 64, 0.3f), out(q.size()), lse(16 * 8);

    const pagegrad::PagedKv kv{{k_pool.data(), {5, 16, 2, 64}},
                               {v_pool.data(), {5, 16, 2, 64}},
                               block_table.data(),
                               2,
                               kv_length.data()};
    const pagegrad::Plan plan(config, {query_length.data(), nullptr, 2}, kv);  // once per batch
    const pagegrad::Tensor q_view(q.data(), {16, 8, 64}), out_view(out.data(), {16, 8, 64});
    const pagegrad::Tensor lse_view(lse.data(), {16, 8});
    pagegrad::forward(plan, q_view, kv, out_view, lse_view);

    const std::vector<float> dout(q.size(), 1.0f);
    std::vector<float> dq(q.size()), dk_pool(k_pool.size()), dv_pool(v_pool.size());
    pagegrad::backward(plan, {{dout.data(), {16, 8, 64}}, q_view, out_view, lse_view, {}}, kv,
                       {{dq.data(), {16, 8, 64}},
                        {dk_pool.data(), {5, 16, 2, 64}},
                        {dv_pool.data(), {5, 16, 2, 64}}});

    double sum = 0;  // every query hands its whole gradient to the values it sees
    for (const float gradient : dv_pool) {
        sum += gradient;
    }
    std::printf("sum of dv: %.1f, sum of dout: %zu\n", sum, dout.size());
    return std::abs(sum - static_cast<double>(dout.size())) < 0.1 ? 0 : 1;
}
