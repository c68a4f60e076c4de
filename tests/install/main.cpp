/// Plans one sequence with the installed library.
#include <pagegrad/pagegrad.hpp>

#include <cstdio>

int main() {
    const int32_t length = 3, block_table[] = {1, 0};
    const float pool[2 * 2 * 8] = {};

    pagegrad::PagedKv kv;
    kv.k = kv.v = pagegrad::Tensor(pool, {2, 2, 1, 8});
    kv.block_table = block_table;
    kv.max_blocks = 2;
    kv.kv_length = &length;
    pagegrad::QueryRows queries;
    queries.length = &length;
    queries.num_sequences = 1;

    const pagegrad::Plan plan(pagegrad::AttentionConfig(1, 1, 8), queries, kv);
    std::printf("pagegrad %s: %d kernels, %d visible pairs\n", pagegrad_version(),
                static_cast<int>(pagegrad_kernel_count()),
                static_cast<int>(plan.info().visible_pairs));
    return plan.info().visible_pairs == 6 && pagegrad_kernel_count() > 0 ? 0 : 1;
}
