/// What the generators of attention on tensor cores share: their inputs and their set-up.
#pragma once

#include "cuda_work.h"
#include "lowering/tiles.h"
#include "schedules/attention_cuda.h"

#include <memory>

namespace pagegrad {

/// A kernel with a thread block for each task of a work list, which reads keys and values through
/// lists of pool blocks and query rows through a list of entries (lowering/README.md). `Derived` is
/// the generator.
template<typename Derived>
class AttentionCuda : public Halide::Generator<Derived> {
public:
    template<typename T>
    using Parameter = Halide::GeneratorParam<T>;
    template<typename T>
    using Input = Halide::GeneratorInput<T>;
    template<typename T = void, int dimensions = Halide::AnyDims>
    using Buffer = Halide::Buffer<T, dimensions>;

    Parameter<Halide::Type> element{"element", Halide::BFloat(16)};  // of q, out, dq and the pools
    Parameter<int> fixed_head_dim{"fixed_head_dim", 0};              // 0: any up to max_head_dim,
    Parameter<int> max_head_dim{"max_head_dim", 128};                // padded inside

    // Indices innermost first. The caller owns everything. A chunk is 8 elements.
    Input<Buffer<int32_t, 2>> tasks{"tasks"};                // field, task
    Input<Buffer<int32_t, 2>> queries{"queries"};            // field, entry
    Input<Buffer<int32_t, 1>> blocks{"blocks"};              // pool blocks of all tasks
    Input<Buffer<>> q{"q", Halide::UInt(128), 4};            // chunk, head, token, batch
    Input<Buffer<>> k_pool{"k_pool", Halide::UInt(128), 4};  // chunk, KV head, slot, block
    Input<Buffer<>> v_pool{"v_pool", Halide::UInt(128), 4};  // chunk, KV head, slot, block
    Input<int> head_dim{"head_dim"};
    Input<int> block_size{"block_size"};
    Input<int> group{"group"};                                 // query heads of a KV head
    Input<float> scale_log2{"scale_log2"};                     // of the scores, times log2(e)
    Halide::GeneratorOutput<Buffer<int32_t, 3>> done{"done"};  // lane, warp, task: not stored

protected:
    /// The generators add inputs of their own behind the output.
    bool allow_out_of_order_inputs_and_outputs() const override {
        return true;
    }

    CudaSchedules schedules() const {
        return CudaSchedules(head_columns().padded());
    }

    /// Begins generate().
    TileKernel &begin(const TileSchedule &tiles) {
        kernel = std::make_unique<TileKernel>(tiles, element);
        return *kernel;
    }

    /// Ends generate().
    void finish() {
        done(lane, warp, kernel->task) = kernel->result();
    }

    PaddedHead head_columns() const {
        return PaddedHead(fixed_head_dim, max_head_dim, head_dim);
    }

    /// Ends schedule().
    void schedule_tasks(int fields) {
        set_dense(tasks, fields);
        set_dense(queries, entry_fields);
        for (auto *tensor : {&q, &k_pool, &v_pool}) {
            set_origin(*tensor);
        }
        set_origin(blocks);
        set_origin(done);
        kernel->schedule_behind(done, lane, warp, this->get_pipeline());
    }

private:
    friend Derived;
    AttentionCuda() = default;

    Halide::Var lane{"lane"}, warp{"warp"};
    std::unique_ptr<TileKernel> kernel;
};

/// Further inputs of a backward.
struct BackwardInputs {
    template<typename T>
    using Input = Halide::GeneratorInput<T>;

    Input<Halide::Buffer<>> dout{"dout", Halide::UInt(128), 4};  // chunk, head, token, batch
    Input<Halide::Buffer<float, 2>> statistics{"statistics"};    // lse_log2/delta, row
    Input<int> num_heads{"num_heads"};
    Input<int> num_tokens{"num_tokens"};  // of a batch
    Input<float> scale{"scale"};          // of the scores

    /// Number of a query row.
    Expr row(const Expr &batch, const Expr &token, const Expr &head) const {
        return (batch * num_tokens + token) * num_heads + head;
    }

    /// What row_statistics has found for it.
    Expr statistic(const Expr &field, const Expr &row) const {
        return statistics(field, inside(row, statistics.dim(1)));
    }

    void set_layout() {
        set_origin(dout);
        set_dense(statistics, statistics_fields);
    }
};

}  // namespace pagegrad
