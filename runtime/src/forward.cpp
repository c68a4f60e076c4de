/// The forward on the CPU: every chunk of queries walks over the keys it sees.
#include "execute.h"
#include "rows.h"
#include "status.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace pagegrad {

namespace {

/// Query rows whose outputs stay in the L2 cache.
constexpr int32_t chunk_rows = 512;
constexpr int32_t tile_keys = max_kv_tile;

int64_t queries_of_chunk(const pagegrad_plan &plan) {
    return std::max(1, chunk_rows / plan.group());
}

int64_t row_capacity(const pagegrad_plan &plan) {
    return queries_of_chunk(plan) * plan.group();
}

/// Memory of one thread.
struct ForwardScratch {
    QueryRow *rows;
    float *acc;  ///< [row][d], unnormalised output
    float *row_max, *row_sum;
    char *arena;
    int64_t arena_size;

    ForwardScratch(const pagegrad_plan &plan, Carver &carver) {
        const int64_t capacity = row_capacity(plan), padded = capacity + max_query_tile;
        rows = carver.take<QueryRow>(capacity);
        acc = carver.take<float>(padded * padded_head_dim(plan));
        row_max = carver.take<float>(padded);
        row_sum = carver.take<float>(padded);
        arena_size = arena_bytes(plan, tile_keys, 2) + capacity * sizeof(float) + 4096;
        arena = carver.take<char>(arena_size);
    }
};

struct ForwardShared {
    int64_t *first_chunk;  ///< [sequences + 1]
    float *unwanted_lse;
    std::vector<ForwardScratch> scratch;

    ForwardShared(const ForwardCall &call, const QueryLayout &layout, Carver &carver)
        : first_chunk(carver.take<int64_t>(call.plan.sequences.size() + 1)),
          unwanted_lse(present(call.args.lse) ? nullptr
                                              : carver.take<float>(layout.rows(call.plan))) {
        for (int thread = 0; thread < call.threads.count(); thread++) {
            scratch.emplace_back(call.plan, carver);
        }
    }

    void build(const pagegrad_plan &plan) {
        first_chunk[0] = 0;
        const int64_t queries = queries_of_chunk(plan);
        for (size_t i = 0; i < plan.sequences.size(); i++) {
            first_chunk[i + 1] =
                first_chunk[i] + (plan.sequences[i].query_length + queries - 1) / queries;
        }
    }
};

/// One chunk of queries of one KV head.
class ChunkTask {
public:
    ChunkTask(const ForwardCall &call, const QueryLayout &layout, const pagegrad_tensor &lse,
              int32_t sequence, int64_t chunk, int32_t kv_head, const ForwardScratch &scratch,
              KernelStatus &status)
        : call(call), plan(call.plan), lse(lse), sequence(plan.sequences[sequence]),
          mask(plan.visibility(this->sequence)), kv_head(kv_head), scratch(scratch),
          status(status) {
        const int64_t first = chunk * queries_of_chunk(plan);
        queries = {first,
                   std::min<int64_t>(first + queries_of_chunk(plan), this->sequence.query_length)};
        fill_rows(layout, sequence);
    }

    void execute() {
        const int64_t rows = queries.size() * plan.group();
        std::fill(scratch.acc, scratch.acc + rows * padded_head_dim(plan), 0.0f);
        std::fill(scratch.row_max, scratch.row_max + rows, -1e30f);
        std::fill(scratch.row_sum, scratch.row_sum + rows, 0.0f);
        for (int32_t use = sequence.uses_begin; use < sequence.uses_end; use++) {
            add_run(plan.uses[use]);
        }
        finish();
    }

private:
    void fill_rows(const QueryLayout &layout, int32_t index) {
        QueryRow *row = scratch.rows;
        for (int64_t query = queries.begin; query < queries.end; query++) {
            const Range keys = mask.keys(query);
            for (int32_t head = kv_head * plan.group(); head < (kv_head + 1) * plan.group();
                 head++) {
                *row++ = {layout.token(sequence, query), layout.batch(index), head,
                          static_cast<int32_t>(keys.begin), static_cast<int32_t>(keys.end)};
            }
        }
    }

    void add_run(const SequenceUse &use) {
        const Run &run = plan.runs[use.run];
        const int64_t first_key = plan.users[use.user].first_key;
        for (int64_t key = 0; key < run.num_keys; key += tile_keys) {
            const Range keys{key, std::min<int64_t>(key + tile_keys, run.num_keys)};
            const Range seeing = mask.queries({first_key + keys.begin, first_key + keys.end});
            const Range rows{std::max(seeing.begin, queries.begin),
                             std::min(seeing.end, queries.end)};
            if (!rows.empty()) {
                add_tile(run, keys, first_key,
                         {(rows.begin - queries.begin) * plan.group(),
                          (rows.end - queries.begin) * plan.group()});
            }
        }
    }

    void add_tile(const Run &run, Range keys, int64_t first_key, Range rows) {
        const int64_t columns = padded_head_dim(plan);
        const int32_t query_tile =
            round_up(even_tile(static_cast<int32_t>(rows.size()), max_query_tile), 8);
        const int64_t padded_rows = rows.size() + max_query_tile;
        const KeyBlocks at = find_blocks(plan, run, keys);
        const KernelBuffer max(scratch.row_max + rows.begin, {{padded_rows, 1}});
        const KernelBuffer sum(scratch.row_sum + rows.begin, {{padded_rows, 1}});
        KernelArena arena(scratch.arena, scratch.arena_size);
        status.record(call.kernel.as<ForwardKernel>()(
            &arena, query_buffer(call.args.q), pool_buffer(call.args.k_pool),
            pool_buffer(call.args.v_pool), at.blocks,
            KernelBuffer(&scratch.rows[rows.begin].token,
                         {{query_row_fields, 1}, {rows.size(), query_row_fields}}),
            max, sum, at.first_slot, static_cast<int32_t>(first_key + keys.begin),
            static_cast<int32_t>(keys.size()), kv_head, query_tile, call.args.scale,
            KernelBuffer(scratch.acc + rows.begin * columns,
                         {{columns, 1}, {padded_rows, columns}}),
            max, sum));
    }

    void finish() {
        const int64_t rows = queries.size() * plan.group(), columns = padded_head_dim(plan);
        KernelArena arena(scratch.arena, scratch.arena_size);
        auto *kernel = companion(call.kernel, Operation::forward_finish).as<ForwardFinishKernel>();
        status.record(kernel(
            &arena, KernelBuffer(scratch.acc, {{plan.head_dim, 1}, {rows, columns}}),
            KernelBuffer(scratch.row_max, {{rows, 1}}), KernelBuffer(scratch.row_sum, {{rows, 1}}),
            KernelBuffer(&scratch.rows->token, {{query_row_fields, 1}, {rows, query_row_fields}}),
            query_buffer(call.args.out), row_buffer(lse)));
    }

    const ForwardCall &call;
    const pagegrad_plan &plan;
    const pagegrad_tensor &lse;
    const Sequence &sequence;
    const Visibility mask;
    const int32_t kv_head;
    const ForwardScratch &scratch;
    KernelStatus &status;
    Range queries;
};

}  // namespace

QueryLayout check_forward(const pagegrad_plan &plan, const pagegrad_forward_args &args) {
    require(args.struct_size == sizeof(args), "args.struct_size is ", args.struct_size,
            ", expected ", sizeof(args));
    require(std::isfinite(args.scale), "scale is ", args.scale, ", expected a finite number");
    const auto dtype = check_dtype("q", args.q.dtype);
    const QueryLayout layout = check_query(plan, args.q, dtype);
    check_pool("k_pool", plan, args.k_pool, dtype, Access::read);
    check_pool("v_pool", plan, args.v_pool, dtype, Access::read);
    check_like_query("out", plan, layout, args.out, dtype, Access::write);
    if (present(args.lse)) {
        check_row_tensor("lse", plan, layout, args.lse, Access::write);
    }
    check_distinct({{"out", &args.out}, {"lse", &args.lse}},
                   {{"q", &args.q}, {"k_pool", &args.k_pool}, {"v_pool", &args.v_pool}});
    return layout;
}

ForwardCall ForwardCall::check(const pagegrad_plan &plan, const pagegrad_forward_args &args,
                               const pagegrad_execution &execution) {
    check_forward(plan, args);
    return {plan, args, Threads(execution),
            choose_kernel(Operation::forward, check_dtype("q", args.q.dtype), plan.head_dim,
                          execution.kernel)};
}

size_t ForwardCall::workspace_size() const {
    Carver carver(nullptr);
    const ForwardShared sizes(*this, check_query(plan, args.q, kernel.dtype), carver);
    return carver.size();
}

void ForwardCall::execute(void *workspace) const {
    const QueryLayout layout = check_query(plan, args.q, kernel.dtype);
    Carver carver(workspace);
    ForwardShared shared(*this, layout, carver);
    shared.build(plan);
    const pagegrad_tensor lse =
        present(args.lse) ? args.lse : row_tensor(shared.unwanted_lse, args.q);
    // Rows of no sequence are not written below.
    fill(args.out, 0.0f);
    fill(lse, -INFINITY);
    KernelStatus status;
    const int64_t chunks = shared.first_chunk[plan.sequences.size()];
    threads.for_each(chunks * plan.num_kv_heads, [&](int thread, int64_t task) {
        const int64_t number = task / plan.num_kv_heads;
        const int64_t *begin = shared.first_chunk;
        const int64_t *after = std::upper_bound(begin, begin + plan.sequences.size() + 1, number);
        const auto sequence = static_cast<int32_t>(after - begin - 1);
        ChunkTask(*this, layout, lse, sequence, number - shared.first_chunk[sequence],
                  static_cast<int32_t>(task % plan.num_kv_heads), shared.scratch[thread], status)
            .execute();
    });
    status.check();
}

}  // namespace pagegrad
