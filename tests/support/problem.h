/// Problems for the tests: a geometry becomes random data with a reference result, and those become
/// a call of the library over a shuffled, partly poisoned pool.
#pragma once

#include "guarded_tensor.h"
#include "tests/reference/attention_reference.h"
#include "tolerance.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <iosfwd>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace pagegrad::test {

/// How the queries of the sequences lie in a tensor.
enum class Form {
    Packed,          ///< [T, H, D], one sequence after the other
    PackedWithGaps,  ///< [T, H, D], with query_start and rows of no sequence
    Batched          ///< [B, S, H, D], S larger than every length
};

/// The formats of the tensors that need not be float32.
struct Dtypes {
    pagegrad_dtype inputs;   ///< q, dout and the pools
    pagegrad_dtype out, dq;  ///< that of the inputs, or float32

    /// One format for all.
    Dtypes(pagegrad_dtype dtype = PAGEGRAD_FLOAT32) : Dtypes(dtype, dtype, dtype) {
    }
    Dtypes(pagegrad_dtype inputs, pagegrad_dtype out, pagegrad_dtype dq)
        : inputs(inputs), out(out), dq(dq) {
    }
};

enum class Data {
    Gaussian,
    Skewed  ///< outlier channels, large means, heavy tails
};

/// What a test problem is made of. Setters chain.
struct Geometry {
    std::vector<int32_t> query_length, kv_length;
    int num_heads = 1, num_kv_heads = 1, head_dim = 8, block_size = 16;
    int value_head_dim = 0;       ///< 0: head_dim
    std::optional<double> scale;  ///< else 1 / sqrt(head_dim)
    double softcap = 0;           ///< 0: none
    bool with_slopes = false, with_sinks = false;
    pagegrad_mask mask = PAGEGRAD_MASK_NONE;
    int64_t window_left = -1, window_right = -1;
    int prefix_blocks = 0;                     ///< leading blocks that all sequences share
    std::vector<std::vector<int32_t>> blocks;  ///< instead: any table, ids from 0
    Form form = Form::Packed;
    Layout layout = Layout::Contiguous;
    Data data = Data::Gaussian;
    bool with_dlse = false;
    Dtypes dtypes;
    bool also_half = false;

    Geometry(std::vector<int32_t> query_length, std::vector<int32_t> kv_length)
        : query_length(std::move(query_length)), kv_length(std::move(kv_length)) {
    }
    explicit Geometry(const std::vector<int32_t> &length) : Geometry(length, length) {
    }
    Geometry &heads(int query, int kv) {
        num_heads = query;
        num_kv_heads = kv;
        return *this;
    }
    Geometry &dim(int size) {
        head_dim = size;
        return *this;
    }
    /// D_v of values.
    Geometry &values(int size) {
        value_head_dim = size;
        return *this;
    }
    Geometry &scaled(double factor) {
        scale = factor;
        return *this;
    }
    Geometry &cap(double limit) {
        softcap = limit;
        return *this;
    }
    /// ALiBi slopes of either sign, one of them zero.
    Geometry &slopes() {
        with_slopes = true;
        return *this;
    }
    /// Sinks below and above the scores, the last one of several none.
    Geometry &sinks() {
        with_sinks = true;
        return *this;
    }
    Geometry &block(int size) {
        block_size = size;
        return *this;
    }
    Geometry &top_left() {
        mask = PAGEGRAD_MASK_CAUSAL_TOP_LEFT;
        return *this;
    }
    Geometry &bottom_right() {
        mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
        return *this;
    }
    Geometry &window(int64_t left, int64_t right) {
        window_left = left;
        window_right = right;
        return *this;
    }
    Geometry &prefix(int count) {
        prefix_blocks = count;
        return *this;
    }
    Geometry &table(std::vector<std::vector<int32_t>> ids) {
        blocks = std::move(ids);
        return *this;
    }
    Geometry &gaps() {
        form = Form::PackedWithGaps;
        return *this;
    }
    Geometry &batched() {
        form = Form::Batched;
        return *this;
    }
    Geometry &padded() {
        layout = Layout::Padded;
        return *this;
    }
    Geometry &head_major() {
        layout = Layout::HeadMajor;
        return *this;
    }
    Geometry &shuffled() {
        layout = Layout::Shuffled;
        return *this;
    }
    Geometry &skewed() {
        data = Data::Skewed;
        return *this;
    }
    Geometry &dlse() {
        with_dlse = true;
        return *this;
    }
    /// For kernels of 16-bit formats as well.
    Geometry &half() {
        also_half = true;
        return *this;
    }
    Geometry &stored_as(const Dtypes &formats) {
        dtypes = formats;
        return *this;
    }
};

/// Inputs, exact in their formats, and the expected results, with the backward's from `out` as it
/// is stored. Blocks have the ids of the geometry here; where they lie in the pool is up to each
/// call.
struct Problem {
    Form form;
    Layout layout;
    Dtypes dtypes;
    AttentionInputs inputs;
    AttentionResult expected;
    int num_blocks;
    std::vector<bool> used;  ///< per slot of the pool: some sequence has a key there
};

/// A problem with given data, which is rounded to its formats. `inputs.blocks` names the blocks of
/// inputs.k_pool.
Problem make_problem(AttentionInputs inputs, Form form = Form::Packed,
                     Layout layout = Layout::Contiguous, const Dtypes &dtypes = {});

/// A problem with random data; the same geometry gives the same data.
Problem make_problem(const Geometry &geometry);

/// What may differ between calls that must give the same results.
struct Options {
    std::string kernel;  ///< empty: dispatch chooses
    int num_threads = 1;
    unsigned placement = 1;  ///< seed of the order of the blocks in the pool
    float unused_value = std::numeric_limits<float>::quiet_NaN();  ///< in unused slots
    int32_t unused_id = -1;                                        ///< in unused table columns
    bool with_lse = true;
    pagegrad_pool_mode pool_mode = PAGEGRAD_POOL_OVERWRITE;
    bool with_head_gradients = true;  ///< dalibi_slopes and dsinks, where there are such terms
};

/// Results in the order of the problem, wherever the call had put them.
struct Results {
    std::vector<float> out, lse, dq, dk_pool, dv_pool, dalibi_slopes, dsinks;
};

/// One call of the library: tensors, plan and arguments. A test may change `forward_args`,
/// `backward_args` and `execution` before it runs.
class PagedCall {
public:
    explicit PagedCall(const Problem &problem, const Options &options = {});
    PagedCall(Problem &&problem, const Options &options = {}) = delete;  // it keeps a reference

    pagegrad_status forward();
    pagegrad_status backward();
    pagegrad_status gather(const pagegrad_tensor &pool, const pagegrad_tensor &dense);
    pagegrad_status scatter_add(const pagegrad_tensor &dense, const pagegrad_tensor &pool);

    /// Compares with the reference, and checks guard bands, unused rows and unused slots.
    void expect_forward() const;
    void expect_backward() const;
    /// One plain bound on every gradient as a whole.
    void expect_plain_bounds() const;
    Results results() const;
    const char *message() const {
        return error_.message;
    }
    pagegrad_plan *plan() const {
        return plan_.get();
    }
    /// Place in a pool tensor of a row [D] of the problem's pool.
    int64_t pool_row(int64_t row) const;
    /// Rows [D] of the problem's pool, in the order of gathered tensors.
    std::vector<int64_t> gathered_rows() const;
    /// Of each sequence, in packed tensors.
    const std::vector<int32_t> &query_start() const {
        return query_start_;
    }
    int64_t pool_blocks() const {
        return pool_blocks_;
    }

    GuardedTensor q, dout, k_pool, v_pool, saved_out, saved_lse, dlse;  ///< inputs
    GuardedTensor alibi_slopes, sinks;
    GuardedTensor out, lse, dq, dk_pool, dv_pool, dalibi_slopes, dsinks;  ///< outputs
    pagegrad_plan_desc desc{};                                            ///< of the plan
    pagegrad_forward_args forward_args{};
    pagegrad_backward_args backward_args{};
    pagegrad_execution execution{};

private:
    void place_tokens();
    void make_table();
    void make_plan();
    void fill_inputs();
    void fill_outputs();
    void fill_arguments();
    GuardedTensor query_tensor(pagegrad_dtype dtype, int head_dim,
                               const std::vector<double> *rows) const;
    GuardedTensor lse_tensor(const std::vector<double> *rows) const;
    GuardedTensor pool_tensor(pagegrad_dtype dtype, int head_dim) const;
    /// A seed for the layout of each tensor.
    unsigned next_layout() const;
    /// Sets the used slots of a pool; `value` is given an entry of the problem's pool.
    template<typename Value>
    void fill_used(GuardedTensor &pool, int head_dim, Value value) const;
    std::vector<float> query_rows(const GuardedTensor &tensor, int width) const;
    std::vector<float> pool_values(const GuardedTensor &tensor, int head_dim) const;
    void expect_heads(const char *name, const GuardedTensor &tensor,
                      const Quantity &expected) const;
    void expect_query_rows(const char *name, const GuardedTensor &tensor, int head_dim,
                           const Quantity &expected, Products products) const;
    void expect_pool(const char *name, const GuardedTensor &tensor, int head_dim, Quantity expected,
                     Products products) const;
    std::vector<int64_t> leading_shape() const;
    /// Head h of a tensor [H] gets values[h]. Absent if there are none.
    GuardedTensor head_tensor(const std::vector<double> &values) const;
    /// How the kernel that runs an operation multiplies.
    Products products(const std::string &operation) const;

    const Problem &problem_;
    Options options_;
    std::vector<int32_t> query_start_, table_;
    int32_t max_blocks_ = 0;
    int64_t num_rows_ = 0;            ///< query rows of a tensor, those of no sequence included
    int64_t batch_rows_ = 0;          ///< S of Form::Batched
    std::vector<int64_t> token_row_;  ///< row of each token of the problem
    int64_t pool_blocks_ = 0;
    std::vector<int64_t> placement_;  ///< pool block of each block of the problem
    mutable unsigned tensors_made_ = 0;
    std::unique_ptr<pagegrad_plan, void (*)(pagegrad_plan *)> plan_;
    pagegrad_error error_{};
};

/// A kernel, or the choice of dispatch for a dtype.
struct KernelChoice {
    std::string name;  ///< empty: dispatch chooses
    pagegrad_dtype dtype = PAGEGRAD_FLOAT32;
};

/// Whether a kernel runs tensors of a dtype: forward and backward in float32 widen 16-bit ones.
bool serves(const pagegrad_kernel_info &kernel, pagegrad_dtype dtype);

/// Whether scores are more than scaled and masked: a task for general kernels.
bool is_general(const AttentionInputs &inputs);

/// Available kernels for CPUs of the given operations that can run a head dimension (0: those for
/// any), with each dtype.
std::vector<KernelChoice> kernels(const std::vector<std::string> &operations, int head_dim);

/// The same, and the choices of dispatch for the dtypes that these kernels have.
std::vector<KernelChoice> kernels_and_dispatch(const std::vector<std::string> &operations,
                                               int head_dim);

/// In names of tests.
std::string label(const KernelChoice &kernel);
std::ostream &operator<<(std::ostream &stream, const KernelChoice &kernel);

/// A named problem and a kernel to run it with.
struct KernelCase {
    std::string name;
    KernelChoice kernel;
    Geometry geometry;  ///< in the dtype of the kernel
};

/// Every kernel, and dispatch, with every geometry that it can run. Kernels of 16-bit formats get
/// the geometries that are marked for them, with out and dq in the format, in float32, or mixed, by
/// turns.
std::vector<KernelCase>
with_kernels(const std::vector<std::pair<std::string, Geometry>> &geometries,
             const std::vector<std::string> &operations);

std::ostream &operator<<(std::ostream &stream, const KernelCase &test);
std::string case_name(const testing::TestParamInfo<KernelCase> &info);

/// The problem of a case, made once for all kernels.
const Problem &problem_of(const KernelCase &test);

}  // namespace pagegrad::test
