/// The forward on the CPU: every chunk of queries walks over the keys it sees.
#include "execute.h"
#include "packing.h"
#include "rows.h"
#include "score_options.h"
#include "status.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace pagegrad {

namespace {

/// Query rows whose outputs stay in the L2 cache.
constexpr int32_t chunk_rows = 512;
constexpr int32_t tile_keys = 128;

int64_t queries_of_chunk(const pagegrad_plan &plan) {
    return std::max(1, chunk_rows / plan.group());
}

int64_t row_capacity(const pagegrad_plan &plan) {
    return queries_of_chunk(plan) * plan.group();
}

/// Where the largest scores of rows start: below all that kernels count as scores (lowest_max in
/// generators/attention_algebra.h).
constexpr float lowest_score = -0x1p127f;

/// Rows of a tile are a multiple of this.
constexpr int32_t row_multiple = 32;

/// Memory of one thread.
struct ForwardScratch {
    QueryRow *rows;
    int32_t *q;    ///< [query tile][d word][row], transposed
    Operand k, v;  ///< of a step
    float *acc;    ///< [row][d], unnormalised output
    float *row_max, *row_sum;
    char *arena;
    int64_t arena_size;

    ForwardScratch(const pagegrad_plan &plan, const Packing &packing, const Packing &value_packing,
                   Carver &carver) {
        const int64_t capacity = row_capacity(plan), padded = capacity + max_query_tile;
        rows = carver.take<QueryRow>(capacity);
        q = carver.take<int32_t>(padded * packing.words);
        k = packing.take(carver, tile_keys);
        v = value_packing.take(carver, tile_keys);
        acc = carver.take<float>(padded * value_packing.columns);
        row_max = carver.take<float>(padded);
        row_sum = carver.take<float>(padded);
        // The last kernel keeps two numbers of each row there.
        arena_size = arena_bytes + 2 * static_cast<int64_t>(sizeof(float)) * padded;
        arena = carver.take<char>(arena_size);
    }
};

struct ForwardShared {
    const Packing packing, value_packing;
    int64_t *first_chunk;  ///< [sequences + 1]
    float *unwanted_lse;
    std::vector<ForwardScratch> scratch;

    ForwardShared(const ForwardCall &call, const QueryLayout &layout, Carver &carver)
        : packing(call.plan.head_dim, call.kernel, call.dtype),
          value_packing(call.plan.value_head_dim, call.kernel, call.dtype),
          first_chunk(carver.take<int64_t>(call.plan.sequences.size() + 1)),
          unwanted_lse(present(call.args.lse) ? nullptr
                                              : carver.take<float>(layout.rows(call.plan))) {
        for (int thread = 0; thread < call.threads.count(); thread++) {
            scratch.emplace_back(call.plan, packing, value_packing, carver);
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
    ChunkTask(const ForwardCall &call, const ForwardShared &shared, const QueryLayout &layout,
              const pagegrad_tensor &lse, int32_t sequence, int64_t chunk, int32_t kv_head,
              const ForwardScratch &scratch, KernelStatus &status)
        : call(call), plan(call.plan), options(call.args), packing(shared.packing),
          value_packing(shared.value_packing), lse(lse), sequence(plan.sequences[sequence]),
          mask(plan.visibility(this->sequence)), kv_head(kv_head), scratch(scratch),
          status(status) {
        const int64_t first = chunk * queries_of_chunk(plan);
        queries = {first,
                   std::min<int64_t>(first + queries_of_chunk(plan), this->sequence.query_length)};
        num_rows = static_cast<int32_t>(queries.size()) * plan.group();
        query_tile = round_up(even_tile(num_rows, max_query_tile), row_multiple);
        fill_rows(layout, sequence);
    }

    void execute() {
        const int64_t rows = round_up(num_rows, query_tile);
        std::fill(scratch.acc, scratch.acc + rows * value_packing.columns, 0.0f);
        std::fill(scratch.row_max, scratch.row_max + rows, lowest_score);
        std::fill(scratch.row_sum, scratch.row_sum + rows, 0.0f);
        for (int32_t row = 0; row < num_rows; row += query_tile) {
            KernelArena arena(scratch.arena, scratch.arena_size);
            status.record(packing.transpose_queries(
                arena, call.args.q, list({row, std::min(row + query_tile, num_rows)}),
                scratch.q + row * packing.words, query_tile));
        }
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
                *row++ = {layout.token(sequence, query),
                          layout.batch(index),
                          head,
                          static_cast<int32_t>(keys.begin),
                          static_cast<int32_t>(keys.end),
                          static_cast<int32_t>(mask.diagonal(query))};
            }
        }
    }

    KernelBuffer list(Range rows) const {
        return {&scratch.rows[rows.begin].token,
                {{query_row_fields, 1}, {rows.size(), query_row_fields}}};
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
                add_tile(run, keys, first_key + key,
                         {(rows.begin - queries.begin) * plan.group(),
                          (rows.end - queries.begin) * plan.group()});
            }
        }
    }

    /// One step: the keys of a run, and the rows of the chunk that see any of them.
    void add_tile(const Run &run, Range keys, int64_t first_key, Range rows) {
        const KeyBlocks at = find_blocks(plan, run, keys);
        const int32_t padded_keys = round_up(at.num_keys, row_multiple);
        KernelArena arena(scratch.arena, scratch.arena_size);
        status.record(
            packing.pack_keys(arena, call.args.k_pool, at, kv_head, scratch.k, padded_keys));
        status.record(
            value_packing.pack_keys(arena, call.args.v_pool, at, kv_head, scratch.v, padded_keys));

        const int64_t begin = rows.begin / query_tile * query_tile;
        const int64_t tiles = (rows.end - begin + query_tile - 1) / query_tile;
        const int64_t padded_rows = tiles * query_tile;
        const KernelBuffer max(scratch.row_max + begin, {{padded_rows, 1}});
        const KernelBuffer sum(scratch.row_sum + begin, {{padded_rows, 1}});
        const int64_t columns = value_packing.columns;
        const auto step = [&](auto *kernel, const auto &...terms) {
            status.record(kernel(
                &arena,
                KernelBuffer(scratch.q + begin * packing.words,
                             {{query_tile, 1},
                              {packing.words, query_tile},
                              {tiles, query_tile * packing.words}}),
                packing.packed(scratch.k, padded_keys), value_packing.pairs(scratch.v, padded_keys),
                list({begin, rows.end}), max, sum, static_cast<int32_t>(first_key),
                static_cast<int32_t>(first_key) + at.num_keys, call.args.scale, terms...,
                KernelBuffer(scratch.acc + begin * columns, {{columns, 1}, {padded_rows, columns}}),
                max, sum));
        };
        if (call.kernel.is_general()) {
            step(call.kernel.as<ForwardGeneralKernel>(), options.softcap,
                 options.slopes_buffer(plan));
        } else {
            step(call.kernel.as<ForwardKernel>());
        }
    }

    void finish() {
        KernelArena arena(scratch.arena, scratch.arena_size);
        const auto dtype = static_cast<pagegrad_dtype>(call.args.out.dtype);
        auto *kernel =
            companion(call.kernel, Operation::forward_finish, dtype).as<ForwardFinishKernel>();
        status.record(
            kernel(&arena,
                   KernelBuffer(scratch.acc,
                                {{plan.value_head_dim, 1}, {num_rows, value_packing.columns}}),
                   KernelBuffer(scratch.row_max, {{num_rows, 1}}),
                   KernelBuffer(scratch.row_sum, {{num_rows, 1}}), options.sinks_buffer(plan),
                   list({0, num_rows}), query_buffer(call.args.out), row_buffer(lse)));
    }

    const ForwardCall &call;
    const pagegrad_plan &plan;
    const ScoreOptions options;
    const Packing &packing, &value_packing;
    const pagegrad_tensor &lse;
    const Sequence &sequence;
    const Visibility mask;
    const int32_t kv_head;
    const ForwardScratch &scratch;
    KernelStatus &status;
    Range queries;
    int32_t num_rows, query_tile;
};

}  // namespace

QueryLayout check_forward(const pagegrad_plan &plan, const pagegrad_forward_args &args) {
    require(args.struct_size == sizeof(args), "args.struct_size is ", args.struct_size,
            ", expected ", sizeof(args));
    require(std::isfinite(args.scale), "scale is ", args.scale, ", expected a finite number");
    ScoreOptions(args).check(plan);
    const auto dtype = check_dtype("q", args.q.dtype);
    const QueryLayout layout = check_query(plan, args.q, dtype);
    check_pool("k_pool", plan, args.k_pool, key_size(plan), dtype, Access::read);
    check_pool("v_pool", plan, args.v_pool, value_size(plan), dtype, Access::read);
    check_like_query("out", plan, layout, args.out, value_size(plan), float32_or(dtype, args.out),
                     Access::write);
    if (present(args.lse)) {
        check_row_tensor("lse", plan, layout, args.lse, Access::write);
    }
    check_distinct({{"out", &args.out}, {"lse", &args.lse}}, {{"q", &args.q},
                                                              {"k_pool", &args.k_pool},
                                                              {"v_pool", &args.v_pool},
                                                              {"alibi_slopes", &args.alibi_slopes},
                                                              {"sinks", &args.sinks}});
    return layout;
}

ForwardCall ForwardCall::check(const pagegrad_plan &plan, const pagegrad_forward_args &args,
                               const pagegrad_execution &execution) {
    check_forward(plan, args);
    const ScoreOptions options(args);
    options.check_values();
    const pagegrad_dtype dtype = check_dtype("q", args.q.dtype);
    return {plan, args, Threads(execution), dtype,
            choose_kernel(options.change_scores() ? Operation::forward_general : Operation::forward,
                          dtype, plan.head_dims(), execution.kernel)};
}

size_t ForwardCall::workspace_size() const {
    Carver carver(nullptr);
    const ForwardShared sizes(*this, check_query(plan, args.q, dtype), carver);
    return carver.size();
}

void ForwardCall::execute(void *workspace) const {
    const QueryLayout layout = check_query(plan, args.q, dtype);
    Carver carver(workspace);
    ForwardShared shared(*this, layout, carver);
    shared.build(plan);
    const pagegrad_tensor lse =
        present(args.lse) ? args.lse : row_tensor(shared.unwanted_lse, args.q);
    // Rows of no sequence are not written below.
    fill_zero(args.out);
    fill(lse, -INFINITY);
    KernelStatus status;
    const int64_t chunks = shared.first_chunk[plan.sequences.size()];
    threads.for_each(chunks * plan.num_kv_heads, [&](int thread, int64_t task) {
        const int64_t number = task / plan.num_kv_heads;
        const int64_t *begin = shared.first_chunk;
        const int64_t *after = std::upper_bound(begin, begin + plan.sequences.size() + 1, number);
        const auto sequence = static_cast<int32_t>(after - begin - 1);
        ChunkTask(*this, shared, layout, lse, sequence, number - shared.first_chunk[sequence],
                  static_cast<int32_t>(task % plan.num_kv_heads), shared.scratch[thread], status)
            .execute();
    });
    status.check();
}

}  // namespace pagegrad
