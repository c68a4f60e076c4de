/// The backward on the CPU: row statistics, then fused tiles or, as the reference schedule,
/// materialised matrices.
#include "execute.h"
#include "head_gradients.h"
#include "packing.h"
#include "rows.h"
#include "score_options.h"
#include "status.h"
#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

namespace pagegrad {

namespace {

/// Keys of a tile: packed keys, values and gradients fill half of a 1 MiB L2 cache.
int32_t tile_keys(const pagegrad_plan &plan) {
    const int32_t head_dim = std::max(plan.head_dim, plan.value_head_dim);
    return head_dim <= 64 ? 512 : head_dim <= 128 ? 256 : head_dim <= 256 ? 128 : 64;
}

/// Tokens of a task that computes statistics or converts dq.
constexpr int64_t tokens_per_task = 16;

/// Runs `work(thread, slice)` for slices of the tokens; slice(tensor) is that part of a tensor.
template<typename Work>
void for_each_slice(const BackwardCall &call, const QueryLayout &layout, const Work &work) {
    const int64_t tasks_per_batch = (layout.tokens + tokens_per_task - 1) / tokens_per_task;
    call.threads.for_each(tasks_per_batch * layout.batches, [&](int thread, int64_t task) {
        const int64_t batch = task / tasks_per_batch;
        const int64_t first = task % tasks_per_batch * tokens_per_task;
        const Range tokens{first, std::min(first + tokens_per_task, layout.tokens)};
        work(thread, [&](const pagegrad_tensor &tensor) {
            return token_slice(tensor, layout.batched, batch, tokens);
        });
    });
}

/// LSE and delta of all query rows, [batch][token][head].
struct RowStatistics {
    float *lse, *lse_log2, *delta;
    /// dout and out of a task as float32, for each thread, if they are not.
    std::vector<float *> dout, out;

    RowStatistics(const BackwardCall &call, const QueryLayout &layout, Carver &carver) {
        const int64_t rows = layout.rows(call.plan);
        lse = present(call.args.lse) ? nullptr : carver.take<float>(rows);
        lse_log2 = carver.take<float>(rows);
        delta = carver.take<float>(rows);
        const int64_t elements = tokens_per_task * call.plan.num_heads * call.plan.value_head_dim;
        for (int thread = 0; thread < call.threads.count() && call.dtype != PAGEGRAD_FLOAT32;
             thread++) {
            dout.push_back(carver.take<float>(elements));
            out.push_back(carver.take<float>(elements));
        }
    }
};

/// The forward that gives the LSE when the caller has none.
ForwardCall lse_forward(const BackwardCall &call, const pagegrad_forward_args &args) {
    const Operation operation =
        call.kernel.is_general() ? Operation::forward_general : Operation::forward;
    return {call.plan, args, call.threads, call.dtype,
            companion(call.kernel, operation, call.kernel.dtype, call.plan.head_dims())};
}

pagegrad_forward_args lse_forward_args(const BackwardCall &call, const RowStatistics &statistics,
                                       float *out) {
    pagegrad_forward_args args{};
    args.struct_size = sizeof(args);
    args.scale = call.args.scale;
    args.softcap = call.args.softcap;
    args.q = call.args.q;
    args.k_pool = call.args.k_pool;
    args.v_pool = call.args.v_pool;
    args.out = contiguous_like(call.args.dout, call.args.dout.rank, out);
    args.lse = row_tensor(statistics.lse, call.args.q);
    args.alibi_slopes = call.args.alibi_slopes;
    args.sinks = call.args.sinks;
    return args;
}

/// The caller's, or that of the forward that was run for it.
pagegrad_tensor lse_of(const BackwardCall &call, const RowStatistics &statistics) {
    return statistics.lse ? row_tensor(statistics.lse, call.args.q) : call.args.lse;
}

void compute_statistics(const BackwardCall &call, const QueryLayout &layout,
                        const RowStatistics &statistics, KernelStatus &status) {
    const pagegrad_backward_args &args = call.args;
    auto *kernel = companion(call.kernel, Operation::row_statistics, PAGEGRAD_FLOAT32)
                       .as<RowStatisticsKernel>();
    const bool has_dlse = present(args.dlse);
    const pagegrad_tensor lse = lse_of(call, statistics);
    const pagegrad_tensor &dlse = has_dlse ? args.dlse : lse;
    for_each_slice(call, layout, [&](int thread, const auto &slice) {
        KernelArena arena;
        const auto as_float = [&](const pagegrad_tensor &tensor,
                                  const std::vector<float *> &memory) {
            if (tensor.dtype == PAGEGRAD_FLOAT32) {
                return slice(tensor);
            }
            const pagegrad_tensor narrow = slice(tensor);
            const pagegrad_tensor wide = contiguous_like(narrow, narrow.rank, memory[thread]);
            auto *widen =
                companion(call.kernel, Operation::widen, call.dtype).template as<ConvertKernel>();
            status.record(widen(&arena, query_buffer(narrow), query_buffer(wide)));
            return wide;
        };
        status.record(kernel(&arena, query_buffer(as_float(args.dout, statistics.dout)),
                             query_buffer(as_float(args.out, statistics.out)),
                             row_buffer(slice(lse)), row_buffer(slice(dlse)), has_dlse,
                             row_buffer(slice(row_tensor(statistics.lse_log2, args.q))),
                             row_buffer(slice(row_tensor(statistics.delta, args.q)))));
    });
}

/// dq of 16 bits from its sums in float32.
void round_dq(const BackwardCall &call, const QueryLayout &layout, const pagegrad_tensor &sums,
              KernelStatus &status) {
    auto *narrow = companion(call.kernel, Operation::narrow, call.dtype).as<ConvertKernel>();
    for_each_slice(call, layout, [&](int, const auto &slice) {
        KernelArena arena;
        status.record(narrow(&arena, query_buffer(slice(sums)), query_buffer(slice(call.args.dq))));
    });
}

/// Sums for the gradient of slopes, which general kernels add to.
float *take_distance_sums(const BackwardCall &call, const QueryLayout &layout, Carver &carver) {
    return call.kernel.is_general() ? carver.take<float>(layout.rows(call.plan)) : nullptr;
}

void clear_distance_sums(const BackwardCall &call, const QueryLayout &layout, float *sums) {
    if (sums) {
        std::fill_n(sums, layout.rows(call.plan), 0.0f);
    }
}

/// A chunk whose rows are in the list, or were in one before and go on.
struct PendingChunk {
    int32_t sequence;
    int64_t number;
};

/// Memory of one thread of the fused backward.
struct TileScratch {
    QueryRow *rows;
    PendingChunk *chunks;  ///< at most one per row, and all of a sequence that uses a run again
    Operand q, dout;       ///< of a tile of query rows
    Operand k;             ///< of a tile of keys
    int32_t *k_transposed, *v_transposed;
    float *dk, *dv;  ///< [key][d], gradients of the tile
    char *arena;

    TileScratch(const pagegrad_plan &plan, const Packing &packing, const Packing &value_packing,
                int64_t row_capacity, Carver &carver)
        : rows(carver.take<QueryRow>(row_capacity)),
          chunks(carver.take<PendingChunk>(row_capacity + plan.max_query_length)),
          q(packing.take(carver, max_query_tile)), dout(value_packing.take(carver, max_query_tile)),
          k(packing.take(carver, max_keys(plan))),
          k_transposed(carver.take<int32_t>(max_keys(plan) * packing.words)),
          v_transposed(carver.take<int32_t>(max_keys(plan) * value_packing.words)),
          dk(carver.take<float>(max_keys(plan) * packing.columns)),
          dv(carver.take<float>(max_keys(plan) * value_packing.columns)),
          arena(carver.take<char>(arena_bytes)) {
    }

    /// Keys of a tile, rounded up to whole inner tiles.
    static int64_t max_keys(const pagegrad_plan &plan) {
        return tile_keys(plan) + max_kv_tile;
    }
};

/// What all tiles of a fused backward share.
struct FusedBackward {
    const BackwardCall &call;
    const QueryLayout layout;
    const Packing packing, value_packing;
    RowStatistics statistics;
    float *const distance_sums;  ///< of each row, if the kernel is general
    pagegrad_tensor dq;          ///< sums in float32: the caller's tensor, or of the workspace
    TileList tiles;
    ChunkProgress progress;
    /// Rows of a kernel call. One thread has nobody to hand finished chunks to and takes more at
    /// once; the sums are the same, since rows are cut at multiples of chunk_rows anyway.
    const int64_t row_capacity;
    std::vector<TileScratch> scratch;

    FusedBackward(const BackwardCall &call, const QueryLayout &layout, Carver &carver)
        : call(call), layout(layout), packing(call.plan.head_dim, call.kernel, call.dtype),
          value_packing(call.plan.value_head_dim, call.kernel, call.dtype),
          statistics(call, layout, carver), distance_sums(take_distance_sums(call, layout, carver)),
          dq(call.args.dq), tiles(call.plan, tile_keys(call.plan), carver),
          progress(call.plan, tiles, carver),
          row_capacity(ChunkProgress::chunk_rows * (call.threads.count() == 1 ? 4 : 1)) {
        if (dq.dtype != PAGEGRAD_FLOAT32) {
            dq = contiguous_like(dq, dq.rank,
                                 carver.take<float>(layout.rows(call.plan) * call.plan.head_dim));
        }
        for (int thread = 0; thread < call.threads.count(); thread++) {
            scratch.emplace_back(call.plan, packing, value_packing, row_capacity, carver);
        }
    }
};

/// One tile: takes the queries of all users of its run, chunk by chunk.
class TileTask {
public:
    TileTask(const FusedBackward &shared, const KeyTile &tile, const TileScratch &scratch,
             KernelStatus &status)
        : shared(shared), plan(shared.call.plan), tile(tile), run(plan.runs[tile.run]),
          keys(find_blocks(plan, run, tile.keys)), first_key(static_cast<int32_t>(tile.keys.begin)),
          kv_tile(round_up(even_tile(keys.num_keys, max_kv_tile), 32)),
          rows(round_up(keys.num_keys, kv_tile)), scratch(scratch), status(status) {
    }

    void execute() {
        for (int32_t user = run.users_begin; user < run.users_end; user++) {
            add_user(user);
        }
        open_chunk_goes_on = false;
        flush();
        publish();
        if (touched) {
            add_to_pools();
        }
    }

private:
    void add_user(int32_t user) {
        const int32_t index = plan.users[user].sequence;
        const int32_t first_key = plan.users[user].first_key;
        const Sequence &sequence = plan.sequences[index];
        const Visibility mask = plan.visibility(sequence);
        const Range queries =
            mask.queries({first_key + tile.keys.begin, first_key + tile.keys.end});
        const bool uses_again = user + 1 < run.users_end && plan.users[user + 1].sequence == index;
        for (int64_t query = queries.begin; query < queries.end; query++) {
            const int64_t chunk = shared.progress.chunk_of(query);
            if (query == queries.begin || query == shared.progress.chunk_end(chunk - 1)) {
                open(index, chunk);
            }
            add_query(index, query, mask.keys(query), mask.diagonal(query), first_key);
            open_chunk_goes_on = uses_again || (query + 1 < queries.end &&
                                                query + 1 < shared.progress.chunk_end(chunk));
        }
    }

    /// Users are ordered by sequence: what is known of this one stands at the end of the list.
    void open(int32_t sequence, int64_t chunk) {
        for (int64_t i = num_chunks - 1; i >= 0 && scratch.chunks[i].sequence == sequence; i--) {
            if (scratch.chunks[i].number == chunk) {
                return;
            }
        }
        scratch.chunks[num_chunks++] = {sequence, chunk};
    }

    void add_query(int32_t sequence, int64_t query, Range keys, int64_t diagonal,
                   int32_t first_key) {
        const int32_t group = plan.group();
        QueryRow row;
        row.token = shared.layout.token(plan.sequences[sequence], query);
        row.batch = shared.layout.batch(sequence);
        row.key_begin = static_cast<int32_t>(keys.begin - first_key);
        row.key_end = static_cast<int32_t>(keys.end - first_key);
        row.position = static_cast<int32_t>(diagonal - first_key);
        for (int32_t head = tile.kv_head * group; head < (tile.kv_head + 1) * group; head++) {
            row.head = head;
            if (num_rows == shared.row_capacity) {
                open_chunk_goes_on = true;
                flush();
            }
            scratch.rows[num_rows++] = row;
        }
    }

    /// Computes with the rows in the list.
    void flush() {
        if (num_rows == 0) {
            return;
        }
        if (!touched) {
            touched = true;
            begin_tile();
        }
        for (int64_t i = 0; i < num_chunks; i++) {
            shared.progress.wait(tile.kv_head, scratch.chunks[i].sequence, scratch.chunks[i].number,
                                 tile);
        }
        const int32_t whole_chunks =
            num_rows / ChunkProgress::chunk_rows * ChunkProgress::chunk_rows;
        compute(0, whole_chunks);
        compute(whole_chunks, num_rows);
        num_rows = 0;
        publish();
    }

    /// Hands on the chunks that are complete, and keeps those that go on.
    void publish() {
        if (num_chunks == 0) {
            return;
        }
        const PendingChunk last = scratch.chunks[num_chunks - 1];
        const bool keep_all = open_chunk_goes_on && repeats(last.sequence);
        int64_t kept = 0;
        for (int64_t i = 0; i < num_chunks; i++) {
            const PendingChunk chunk = scratch.chunks[i];
            if (open_chunk_goes_on && chunk.sequence == last.sequence &&
                (keep_all || chunk.number == last.number)) {
                scratch.chunks[kept++] = chunk;
            } else {
                shared.progress.publish(tile.kv_head, chunk.sequence, chunk.number, tile);
            }
        }
        num_chunks = kept;
    }

    /// Whether a sequence uses this run more than once.
    bool repeats(int32_t sequence) const {
        int uses = 0;
        for (int32_t user = run.users_begin; user < run.users_end; user++) {
            uses += plan.users[user].sequence == sequence;
        }
        return uses > 1;
    }

    /// Packs the keys and values, and clears their gradients.
    void begin_tile() {
        const size_t row_bytes = tile.keys.size() * sizeof(float);
        std::memset(scratch.dk, 0, row_bytes * shared.packing.columns);
        std::memset(scratch.dv, 0, row_bytes * shared.value_packing.columns);
        const pagegrad_tensor &k = shared.call.args.k_pool, &v = shared.call.args.v_pool;
        KernelArena arena(scratch.arena, arena_bytes);
        status.record(shared.packing.pack_keys(arena, k, keys, tile.kv_head, scratch.k, rows));
        status.record(shared.packing.transpose_keys(arena, k, keys, tile.kv_head,
                                                    scratch.k_transposed, rows));
        status.record(shared.value_packing.transpose_keys(arena, v, keys, tile.kv_head,
                                                          scratch.v_transposed, rows));
    }

    /// Computes with rows of the list.
    void compute(int32_t begin, int32_t end) {
        if (begin == end) {
            return;
        }
        const int32_t query_tile = round_up(even_tile(end - begin, max_query_tile), 8);
        for (int32_t first = begin; first < end; first += query_tile) {
            compute_tile(first, std::min(first + query_tile, end));
        }
    }

    void compute_tile(int32_t begin, int32_t end) {
        Range seen{keys.num_keys, 0};
        for (int32_t row = begin; row < end; row++) {
            seen.begin = std::min<int64_t>(seen.begin, scratch.rows[row].key_begin - first_key);
            seen.end = std::max<int64_t>(seen.end, scratch.rows[row].key_end - first_key);
        }
        const int64_t first_tile = std::max<int64_t>(seen.begin, 0) / kv_tile;
        const int64_t end_tile =
            (std::min<int64_t>(seen.end, keys.num_keys) + kv_tile - 1) / kv_tile;
        if (first_tile >= end_tile) {
            return;
        }
        const BackwardCall &call = shared.call;
        const Packing &packing = shared.packing, &value_packing = shared.value_packing;
        const int64_t query_rows = round_up(end - begin, 8);
        const KernelBuffer list(&scratch.rows[begin].token,
                                {{query_row_fields, 1}, {end - begin, query_row_fields}});
        KernelArena arena(scratch.arena, arena_bytes);
        status.record(packing.pack_queries(arena, call.args.q, list, scratch.q, query_rows));
        status.record(
            value_packing.pack_queries(arena, call.args.dout, list, scratch.dout, query_rows));
        const auto gradient = [&](const float *data, const Packing &of) {
            return KernelBuffer(data, {{of.columns, 1}, {keys.num_keys, of.columns}});
        };
        const auto rows_of = [&](float *data) { return row_buffer(row_tensor(data, call.args.q)); };
        const auto run = [&](auto *kernel, const auto &...terms) {
            return [&, kernel](const auto &...sums) {
                status.record(kernel(
                    &arena, packing.packed(scratch.q, query_rows),
                    packing.pairs(scratch.q, query_rows),
                    value_packing.packed(scratch.dout, query_rows),
                    value_packing.pairs(scratch.dout, query_rows),
                    packing.transposed(scratch.k_transposed, rows),
                    value_packing.transposed(scratch.v_transposed, rows),
                    packing.pairs(scratch.k, rows), rows_of(shared.statistics.lse_log2),
                    rows_of(shared.statistics.delta), list, first_key, first_key + keys.num_keys,
                    static_cast<int32_t>(first_tile), static_cast<int32_t>(end_tile - first_tile),
                    kv_tile, call.args.scale, terms..., query_buffer(shared.dq),
                    gradient(scratch.dk, packing), gradient(scratch.dv, value_packing), sums...));
            };
        };
        if (call.kernel.is_general()) {
            const ScoreOptions options(call.args);
            run(call.kernel.as<BackwardGeneralKernel>(), options.softcap,
                options.slopes_buffer(plan))(rows_of(shared.distance_sums));
        } else {
            run(call.kernel.as<BackwardKernel>())();
        }
    }

    void add_to_pools() {
        auto *scatter = companion(shared.call.kernel, Operation::scatter_add, PAGEGRAD_FLOAT32)
                            .as<ScatterAddKernel>();
        KernelArena arena;
        const auto add = [&](const float *gradient, float scale, const pagegrad_tensor &pool,
                             const Packing &packing) {
            const KernelBuffer dense(
                gradient, {{pool.shape[3], 1}, {1, 0}, {keys.num_keys, packing.columns}});
            status.record(scatter(&arena, dense, keys.blocks, keys.first_slot, scale,
                                  pool_head_buffer(pool, tile.kv_head)));
        };
        add(scratch.dk, shared.call.args.scale, shared.call.args.dk_pool, shared.packing);
        add(scratch.dv, 1.0f, shared.call.args.dv_pool, shared.value_packing);
    }

    const FusedBackward &shared;
    const pagegrad_plan &plan;
    const KeyTile tile;
    const Run &run;
    const KeyBlocks keys;
    const int32_t first_key;
    const int32_t kv_tile;  ///< keys of an inner tile
    const int64_t rows;     ///< keys rounded up to whole inner tiles
    const TileScratch &scratch;
    KernelStatus &status;
    int32_t num_rows = 0;
    bool touched = false;             ///< whether any query sees the tile
    bool open_chunk_goes_on = false;  ///< whether more rows of the last sequence's chunks follow
    int64_t num_chunks = 0;
};

/// Memory of one thread of the materialised backward.
struct DenseScratch {
    float *k, *v, *dk, *dv;  ///< [key][d]
    int32_t *seen;           ///< [query][begin, end, diagonal]
    char *arena;
    int64_t arena_size;

    DenseScratch(const pagegrad_plan &plan, bool general, Carver &carver) {
        int64_t keys = 0, queries = 0;
        arena_size = 4096;
        for (const Sequence &sequence : plan.sequences) {
            keys = std::max<int64_t>(keys, sequence.kv_length);
            queries = std::max<int64_t>(queries, sequence.query_length);
            // Four matrices, or six with options, and the transposed operands, their rows rounded
            // up to vectors.
            const int64_t row = sequence.kv_length + 64;
            const int64_t rows =
                (general ? 6 : 4) * plan.group() * (int64_t{sequence.query_length} + 1) +
                plan.head_dim + plan.value_head_dim;
            arena_size = std::max(arena_size, counted(row, rows * sizeof(float)) + 8192);
        }
        for (float **tensor : {&k, &dk}) {
            *tensor = carver.take<float>(keys * plan.head_dim);
        }
        for (float **tensor : {&v, &dv}) {
            *tensor = carver.take<float>(keys * plan.value_head_dim);
        }
        seen = carver.take<int32_t>(3 * queries);
        arena = carver.take<char>(arena_size);
    }
};

struct DenseBackward {
    const BackwardCall &call;
    const QueryLayout layout;
    RowStatistics statistics;
    float *const distance_sums;  ///< of each row, if the kernel is general
    std::vector<DenseScratch> scratch;

    DenseBackward(const BackwardCall &call, const QueryLayout &layout, Carver &carver)
        : call(call), layout(layout), statistics(call, layout, carver),
          distance_sums(take_distance_sums(call, layout, carver)) {
        for (int thread = 0; thread < call.threads.count(); thread++) {
            scratch.emplace_back(call.plan, call.kernel.is_general(), carver);
        }
    }
};

/// Gather, dense backward and scatter-add of one KV head of one sequence.
void compute_dense(const DenseBackward &shared, int32_t index, int32_t kv_head,
                   const DenseScratch &scratch, KernelStatus &status) {
    const BackwardCall &call = shared.call;
    const pagegrad_plan &plan = call.plan;
    const Sequence &sequence = plan.sequences[index];
    if (sequence.query_length == 0 || sequence.kv_length == 0) {
        return;
    }
    const int64_t keys = sequence.kv_length, group = plan.group();
    const int64_t D = plan.head_dim, Dv = plan.value_head_dim;
    const Visibility mask = plan.visibility(sequence);
    for (int64_t query = 0; query < sequence.query_length; query++) {
        const Range seen = mask.keys(query);
        scratch.seen[3 * query] = static_cast<int32_t>(seen.begin);
        scratch.seen[3 * query + 1] = static_cast<int32_t>(seen.end);
        scratch.seen[3 * query + 2] = static_cast<int32_t>(mask.diagonal(query));
    }
    const KernelBuffer blocks(&plan.table[sequence.table_begin],
                              {{sequence.num_blocks(plan.block_size), 1}});
    KernelArena arena(scratch.arena, arena_bytes);
    auto *gather_kernel =
        companion(call.kernel, Operation::gather, PAGEGRAD_FLOAT32).as<GatherKernel>();
    const auto dense_head = [&](float *data, int64_t D) {
        return KernelBuffer(data, {{D, 1}, {1, 0}, {keys, D}});
    };
    status.record(gather_kernel(&arena, pool_head_buffer(call.args.k_pool, kv_head), blocks,
                                dense_head(scratch.k, D)));
    status.record(gather_kernel(&arena, pool_head_buffer(call.args.v_pool, kv_head), blocks,
                                dense_head(scratch.v, Dv)));

    const int64_t batch = shared.layout.batch(index), first = shared.layout.token(sequence, 0);
    const auto part = [&](const pagegrad_tensor &tensor, int head_dim) {
        pagegrad_tensor slice = token_slice(tensor, shared.layout.batched, batch,
                                            {first, first + sequence.query_length});
        slice.data = static_cast<float *>(slice.data) + kv_head * group * slice.stride[head_dim];
        slice.shape[head_dim] = group;
        return slice;
    };
    // Heads are the last dimension but one of rank-3 slices, the last of rank-2 slices.
    const auto queries = [&](const pagegrad_tensor &tensor) { return row_buffer(part(tensor, 1)); };
    const auto rows = [&](float *data) {
        const pagegrad_tensor slice = part(row_tensor(data, call.args.q), 1);
        return KernelBuffer(static_cast<float *>(slice.data),
                            {{slice.shape[1], slice.stride[1]}, {slice.shape[0], slice.stride[0]}});
    };
    const auto matrix = [&](float *data, int64_t D) {
        return KernelBuffer(data, {{D, 1}, {keys, D}});
    };
    const auto run = [&](auto *kernel, const auto &...terms) {
        return [&, kernel](const auto &...sums) {
            status.record(kernel(&arena, queries(call.args.q), queries(call.args.dout),
                                 rows(shared.statistics.lse_log2), rows(shared.statistics.delta),
                                 matrix(scratch.k, D), matrix(scratch.v, Dv),
                                 KernelBuffer(scratch.seen, {{3, 1}, {sequence.query_length, 3}}),
                                 call.args.scale, terms..., queries(call.args.dq),
                                 matrix(scratch.dk, D), matrix(scratch.dv, Dv), sums...));
        };
    };
    if (call.kernel.is_general()) {
        const ScoreOptions options(call.args);
        run(call.kernel.as<BackwardDenseGeneralKernel>(), options.softcap,
            options.slopes_buffer(plan, kv_head * plan.group()))(rows(shared.distance_sums));
    } else {
        run(call.kernel.as<BackwardDenseKernel>())();
    }

    auto *scatter =
        companion(call.kernel, Operation::scatter_add, PAGEGRAD_FLOAT32).as<ScatterAddKernel>();
    status.record(scatter(&arena, dense_head(scratch.dk, D), blocks, 0, 1.0f,
                          pool_head_buffer(call.args.dk_pool, kv_head)));
    status.record(scatter(&arena, dense_head(scratch.dv, Dv), blocks, 0, 1.0f,
                          pool_head_buffer(call.args.dv_pool, kv_head)));
}

/// The LSE forward runs first and is done before the rest of the workspace is used.
size_t lse_forward_size(const BackwardCall &call, const QueryLayout &layout) {
    if (present(call.args.lse)) {
        return 0;
    }
    Carver carver(nullptr);
    const RowStatistics statistics(call, layout, carver);
    const pagegrad_forward_args args = lse_forward_args(call, statistics, nullptr);
    carver.take<float>(layout.rows(call.plan) * call.plan.value_head_dim);
    return carver.size() + lse_forward(call, args).workspace_size();
}

void compute_lse(const BackwardCall &call, const QueryLayout &layout,
                 const RowStatistics &statistics, void *workspace) {
    Carver carver(workspace);
    const RowStatistics same_place(call, layout, carver);
    float *out = carver.take<float>(layout.rows(call.plan) * call.plan.value_head_dim);
    const pagegrad_forward_args args = lse_forward_args(call, statistics, out);
    lse_forward(call, args).execute(carver.take<char>(0));
}

/// Refuses the gradient of an option that is not there.
void check_head_gradient(const std::string &name, const pagegrad_plan &plan,
                         const pagegrad_tensor &gradient, const pagegrad_tensor &option) {
    if (present(gradient)) {
        check_head_tensor("d" + name, plan, gradient, Access::write);
        require(present(option), "d", name, " is given without ", name, ", expected both");
    }
}

}  // namespace

QueryLayout check_backward(const pagegrad_plan &plan, const pagegrad_backward_args &args) {
    require(args.struct_size == sizeof(args), "args.struct_size is ", args.struct_size,
            ", expected ", sizeof(args));
    require(std::isfinite(args.scale), "scale is ", args.scale, ", expected a finite number");
    ScoreOptions(args).check(plan);
    require(args.pool_mode == PAGEGRAD_POOL_ACCUMULATE || args.pool_mode == PAGEGRAD_POOL_OVERWRITE,
            "pool_mode is ", args.pool_mode, ", expected a pagegrad_pool_mode");
    const auto dtype = check_dtype("q", args.q.dtype);
    const QueryLayout layout = check_query(plan, args.q, dtype);
    const NamedSize key = key_size(plan), value = value_size(plan);
    check_like_query("dout", plan, layout, args.dout, value, dtype, Access::read);
    check_like_query("out", plan, layout, args.out, value, float32_or(dtype, args.out),
                     Access::read);
    check_pool("k_pool", plan, args.k_pool, key, dtype, Access::read);
    check_pool("v_pool", plan, args.v_pool, value, dtype, Access::read);
    if (present(args.lse)) {
        check_row_tensor("lse", plan, layout, args.lse, Access::read);
    }
    if (present(args.dlse)) {
        check_row_tensor("dlse", plan, layout, args.dlse, Access::read);
    }
    check_like_query("dq", plan, layout, args.dq, key, float32_or(dtype, args.dq), Access::write);
    check_pool("dk_pool", plan, args.dk_pool, key, PAGEGRAD_FLOAT32, Access::write);
    check_pool("dv_pool", plan, args.dv_pool, value, PAGEGRAD_FLOAT32, Access::write);
    check_head_gradient("alibi_slopes", plan, args.dalibi_slopes, args.alibi_slopes);
    check_head_gradient("sinks", plan, args.dsinks, args.sinks);
    check_distinct({{"dq", &args.dq},
                    {"dk_pool", &args.dk_pool},
                    {"dv_pool", &args.dv_pool},
                    {"dalibi_slopes", &args.dalibi_slopes},
                    {"dsinks", &args.dsinks}},
                   {{"dout", &args.dout},
                    {"q", &args.q},
                    {"k_pool", &args.k_pool},
                    {"v_pool", &args.v_pool},
                    {"out", &args.out},
                    {"lse", &args.lse},
                    {"dlse", &args.dlse},
                    {"alibi_slopes", &args.alibi_slopes},
                    {"sinks", &args.sinks}});
    return layout;
}

BackwardCall BackwardCall::check(const pagegrad_plan &plan, const pagegrad_backward_args &args,
                                 const pagegrad_execution &execution) {
    check_backward(plan, args);
    const ScoreOptions options(args);
    options.check_values();
    const pagegrad_dtype dtype = check_dtype("q", args.q.dtype);
    return {
        plan, args, Threads(execution), dtype,
        choose_kernel(options.change_scores() ? Operation::backward_general : Operation::backward,
                      dtype, plan.head_dims(), execution.kernel)};
}

size_t BackwardCall::workspace_size() const {
    const QueryLayout layout = check_query(plan, args.q, dtype);
    Carver carver(nullptr);
    if (!kernel.is_dense()) {
        const FusedBackward sizes(*this, layout, carver);
    } else {
        const DenseBackward sizes(*this, layout, carver);
    }
    return std::max(carver.size(), lse_forward_size(*this, layout));
}

void BackwardCall::execute(void *workspace) const {
    const QueryLayout layout = check_query(plan, args.q, dtype);
    KernelStatus status;
    if (args.pool_mode == PAGEGRAD_POOL_OVERWRITE) {
        fill(args.dk_pool, 0.0f);
        fill(args.dv_pool, 0.0f);
    }
    const auto prepare = [&](const RowStatistics &statistics) {
        if (statistics.lse) {
            compute_lse(*this, layout, statistics, workspace);
        }
        compute_statistics(*this, layout, statistics, status);
    };
    const auto finish = [&](const auto &shared) {
        sum_head_gradients(*this, layout, lse_of(*this, shared.statistics), shared.statistics.delta,
                           shared.distance_sums);
    };
    Carver carver(workspace);
    if (!kernel.is_dense()) {
        FusedBackward shared(*this, layout, carver);
        prepare(shared.statistics);
        for_each_slice(*this, layout,
                       [&](int, const auto &slice) { fill(slice(shared.dq), 0.0f); });
        clear_distance_sums(*this, layout, shared.distance_sums);
        shared.tiles.build();
        shared.progress.build();
        threads.for_each(shared.tiles.size(), [&](int thread, int64_t task) {
            TileTask(shared, shared.tiles[task], shared.scratch[thread], status).execute();
        });
        if (args.dq.dtype != PAGEGRAD_FLOAT32) {
            round_dq(*this, layout, shared.dq, status);
        }
        finish(shared);
    } else {
        const DenseBackward shared(*this, layout, carver);
        prepare(shared.statistics);
        fill(args.dq, 0.0f);
        clear_distance_sums(*this, layout, shared.distance_sums);
        threads.for_each(plan.num_kv_heads, [&](int thread, int64_t kv_head) {
            for (size_t sequence = 0; sequence < plan.sequences.size(); sequence++) {
                compute_dense(shared, static_cast<int32_t>(sequence), static_cast<int32_t>(kv_head),
                              shared.scratch[thread], status);
            }
        });
        finish(shared);
    }
    status.check();
}

}  // namespace pagegrad
