/// The plan: what there is to do for a batch, found once and validated.
///
/// A run is a maximal span of consecutive keys that the same sequences use, each at a place of its
/// own. Without sharing a sequence is one run; a common prompt prefix is a run with many users,
/// whose keys are loaded once for the queries of all of them. Every pool row that a sequence with
/// queries uses belongs to exactly one run, so whoever owns a span of a run owns the gradients of
/// its pool rows. Every user of a run has all of its keys: a block is cut at the slot where one of
/// its users ends.
#pragma once

#include "pagegrad/pagegrad.h"
#include "visibility.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace pagegrad {

namespace cuda {
class PreparedPlan;
}

/// Sizes of a head: of q and keys, and of values and out.
struct HeadDims {
    int32_t key, value;
};

/// A sequence that uses a run.
struct RunUser {
    int32_t sequence;
    int32_t first_key;  ///< place in the sequence of the run's first key
};

struct Run {
    int32_t first_block;             ///< index into Plan::blocks
    int32_t first_slot;              ///< of the first key, in that block
    int32_t num_keys;                ///< >= 1
    int32_t users_begin, users_end;  ///< range of Plan::users, ordered by sequence and key
};

/// One of the runs that make up a sequence.
struct SequenceUse {
    int32_t run;   ///< index into Plan::runs
    int32_t user;  ///< index into Plan::users
};

struct Sequence {
    int64_t query_start;  ///< first token in packed tensors
    int32_t query_length, kv_length;
    int64_t kv_start;              ///< sum of the KV lengths before it
    int32_t table_begin;           ///< index into Plan::table of its num_blocks() entries
    int32_t uses_begin, uses_end;  ///< range of Plan::uses, in order of execution (of runs)

    int32_t num_blocks(int32_t block_size) const {
        return kv_length / block_size + (kv_length % block_size != 0);
    }
};

}  // namespace pagegrad

struct pagegrad_plan {
    int32_t num_heads, num_kv_heads, head_dim, value_head_dim;
    pagegrad_mask mask;
    int64_t window_left, window_right;
    int32_t block_size;
    int64_t num_blocks;
    int64_t max_query_length;  ///< for tensors of rank 4
    int64_t query_end;         ///< one past the last token in packed tensors
    int64_t query_tokens, kv_tokens, visible_pairs;
    int64_t pool_rows;  ///< used by any sequence, with queries or without

    std::vector<pagegrad::Sequence> sequences;
    std::vector<int32_t> table;       ///< used entries of the block table, row after row
    std::vector<pagegrad::Run> runs;  ///< in order of execution: most work first
    std::vector<pagegrad::RunUser> users;
    std::vector<pagegrad::SequenceUse> uses;
    std::vector<int32_t> blocks;  ///< pool blocks of all runs, each once; runs may meet in a block
    std::shared_ptr<pagegrad::cuda::PreparedPlan> prepared;  ///< its copies on GPUs

    pagegrad::HeadDims head_dims() const {
        return {head_dim, value_head_dim};
    }
    int group() const {
        return num_heads / num_kv_heads;
    }
    pagegrad::Visibility visibility(const pagegrad::Sequence &sequence) const {
        return {mask, window_left, window_right, sequence.query_length, sequence.kv_length};
    }
};

namespace pagegrad {

/// Throws Failure.
pagegrad_plan make_plan(const pagegrad_plan_desc &desc);

/// Query tokens, summed over the users of a run, that see a key of it.
int64_t visible_tokens(const pagegrad_plan &plan, const Run &run);

pagegrad_plan_info describe(const pagegrad_plan &plan);

}  // namespace pagegrad
