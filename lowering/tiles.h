/// A vocabulary of tiles for kernels on Hopper's tensor cores.
///
/// A thread block keeps tiles in shared memory ("resident", of keys and values, or of queries) and
/// walks in steps over other tiles ("streamed", the next one copied while the current one is used).
/// Products run on `wgmma`, with sums in accumulator registers; element-wise maps turn accumulators
/// into fragments, which are the left operands of further products without leaving their registers.
///
/// The statements of an algorithm run in the order in which they are written. Products run
/// asynchronously; whatever reads an accumulator waits for its product and for no later one.
#pragma once

#include "Halide.h"
#include "passes.h"

#include <functional>
#include <string>
#include <vector>

namespace pagegrad {

using Halide::Expr;
using Halide::Func;
using Halide::Var;

constexpr int warp_size = 32;

/// What a schedule may choose.
struct TileSchedule {
    int streamed_rows;  ///< of a step: a multiple of 32, and 64 for transposed left operands
    int resident_rows;  ///< of a thread block
    int warps;          ///< 16 resident rows each
    /// Whether products end within their step: its tiles then need a slot of memory less, but the
    /// next step's products do not follow without a gap.
    bool drained = false;
};

class TileKernel;
struct Row;

/// A matrix of 16-bit elements in shared memory. Rows are cut into panels of 64 columns = 128 bytes
/// = 8 chunks of 16 bytes; chunks of a row change places by `chunk ^ row % 8` (the 128-byte
/// swizzle).
struct Tile {
    Func storage;  ///< ([word,] chunk, row, panel, place...): 16 bytes, or words of 32 bits
    int rows, columns;
    bool in_words;            ///< written word by word
    std::vector<Expr> place;  ///< step (if streamed) and thread block
};

/// A tile as an operand of a product.
struct Operand {
    Operand(const Tile &tile, bool transposed = false) : tile(tile), transposed(transposed) {
    }
    Tile tile;
    bool transposed;
};

inline Operand transposed(const Tile &tile) {
    return Operand(tile, true);
}

/// An element of an accumulator or fragment, as seen by the thread that holds it.
struct Element {
    Expr value;
    Expr row, column;  ///< coordinates within the tile

private:
    friend class Accumulator;
    friend class Fragment;
    friend class RowVector;
    Expr slot, group;  ///< register `slot` of 4 of a group of 8 columns
};

/// A matrix of floats in registers, laid out like the accumulator it was made from.
class Fragment {
public:
    /// The element at the same coordinates.
    Expr operator()(const Element &element) const;

    /// The sum of the thread's elements in a row.
    Expr sum_of(const Row &row) const;

private:
    friend class Accumulator;
    friend class TileKernel;
    Func values{"fragment"};       ///< (slot, group, place...)
    Func ready{"ready"};           ///< (place...): token of the wait before the values are computed
    std::vector<Func> conditions;  ///< (place...): what decides between versions of the map
    Var slot{"register_slot"}, group{"column_group"};
    int rows = 0, columns = 0;
    std::vector<Expr> place;  ///< lane, warp, step and thread block
};

/// A number for each row of an accumulator, in registers of the threads that hold the row.
class RowVector {
public:
    Expr operator()(const Element &element) const;
    Expr operator()(const Row &row) const;

private:
    friend class Accumulator;
    friend class TileKernel;
    Expr at(const Expr &half) const;

    Func values{"rows"};  ///< (half, place...)
    Func ready{"ready"};  ///< (place...): token of the wait before the values are computed
    std::vector<Func> conditions;
    Var half{"row_half"};
    std::vector<Expr> place;
};

/// A row of an accumulator, as seen by one of the four threads that hold it.
struct Row {
    Expr row;                       ///< coordinate within the tile
    std::vector<Element> elements;  ///< those of the thread

private:
    friend class Accumulator;
    friend class Fragment;
    friend class RowState;
    friend class RowVector;
    friend class TileKernel;
    Expr half, token;
};

/// The sum or maximum over the four threads of a row.
Expr row_sum(const Expr &of_thread);
Expr row_max(const Expr &of_thread);

/// A number for each row that lasts through all steps.
class RowState {
public:
    Expr operator()(const Row &row) const;
    void set(const std::function<Expr(const Row &)> &f);

private:
    friend class TileKernel;
    TileKernel *kernel = nullptr;
    int first_register = 0;
};

/// A product that an accumulator can take up: tile x tile or fragment x tile.
struct Product {
    std::vector<Operand> a;  ///< empty if the left operand is a fragment
    Fragment a_fragment;
    Operand b;
};

Product operator*(const Operand &a, const Operand &b);
Product operator*(const Fragment &a, const Operand &b);

/// Sums of a product in registers: every warpgroup holds 64 rows, or all 64 rows and a part of the
/// columns.
class Accumulator {
public:
    void operator+=(const Product &product);

    /// A new fragment, element by element.
    Fragment map(const std::function<Expr(const Element &)> &f) const;

    /// A number for each row.
    RowVector map_rows(const std::function<Expr(const Row &)> &f) const;

    /// Multiplies each row by a number.
    void scale_rows(const RowVector &factors);

    /// Two neighbouring columns in global memory, as a number of 64 bits, or of 32 if 16-bit.
    using Pair = std::function<Expr(const Expr &row, const Expr &pair)>;

    /// Adds all elements, times `factor`, to memory, in no fixed order. Within a step this happens
    /// in the next one, see TileKernel::issue_products().
    void add_to(const Pair &destination, const Expr &factor = 1.0f) const;
    /// The same for the pairs that exist.
    void add_to(const Pair &destination, const Expr &factor, const Pair &exists) const;

    /// Writes all elements that exist, times a factor of their row; rounded to the tiles' type
    /// where pairs have 32 bits. After the last step.
    void store_to(const Pair &destination, const RowVector &factors, const Pair &exists) const;

private:
    friend class TileKernel;
    friend class RowState;

    Expr row_of(const Expr &slot) const;
    Expr column_of(const Expr &slot, const Expr &group) const;

    TileKernel *kernel = nullptr;
    int first_register = 0;
    int rows = 0, columns = 0;      ///< of the whole matrix
    int columns_per_warpgroup = 0;  ///< all, or a part if every warpgroup has all rows
    int product = -1;               ///< serial number of the last product
};

/// `value`, known to be true where `condition` is, which does not depend on the element. A map gets
/// a version without the test.
Expr true_if(const Expr &condition, const Expr &value);

/// In the source of a tile or row: zero unless `condition` holds, and then nothing is read.
Expr value_or_zero(const Expr &value, const Expr &condition);

/// One kernel: first its algorithm, statement by statement, then its schedule.
class TileKernel {
public:
    /// `element` is the type of all tiles: BFloat(16) or Float(16).
    TileKernel(const TileSchedule &schedule, Halide::Type element);
    TileKernel(const TileKernel &) = delete;

    /// The thread block, and the step.
    const Var task{"task"}, step{"step"};

    /// The loop over steps runs `count` times, which may depend on the task: at least once.
    void set_steps(const Expr &count);

    /// 16 bytes of a row of a matrix in global memory.
    using ChunkSource = std::function<Expr(const Expr &chunk, const Expr &row)>;
    using RowSource = std::function<Expr(const Expr &row)>;
    using RecordSource = std::function<Expr(const Expr &field, const Expr &row)>;

    /// Tiles in shared memory.
    Tile resident(const std::string &name, int columns, const ChunkSource &source);
    Tile streamed(const std::string &name, int columns, const ChunkSource &source);

    /// A record of `fields` numbers of 32 bits for each streamed row: 1, 2 or 4.
    RecordSource streamed_records(const std::string &name, int fields, const RecordSource &source);

    /// The same, and a number computed for each row; they arrive early enough for the sources of
    /// streamed tiles and records to use them.
    RecordSource early_records(const std::string &name, int fields, const RecordSource &source);
    RowSource early_rows(const std::string &name, const RowSource &source);

    /// A condition of the thread block for `true_if` in the next map: found once, ahead of it.
    Expr decide(const Expr &condition);

    /// The same: whether a predicate holds for all streamed rows.
    Expr decide_for_all_streamed(const std::function<Expr(const Expr &row)> &predicate);

    /// An accumulator that is zero before the first step and lasts through all of them.
    Accumulator sum_over_steps(int columns);

    /// An accumulator of this step.
    Accumulator compute(const Product &product);

    /// Ends the first products of a step. While they run, the additions of the step before are
    /// made.
    void issue_products();

    /// A tile with the values of a fragment, rounded: brings rows of other warps within reach.
    Tile exchange(const std::string &name, const Fragment &fragment);

    /// Numbers that have a value before the first step.
    RowState row_state(float initial);

    /// A number for each resident row, found before the first step.
    RowVector resident_rows(const RowSource &source);

    /// A number for each row of the result, after the last step.
    RowVector final_rows(const Accumulator &result, const std::function<Expr(const Row &)> &f);

    /// Writes a number for each row that exists. After the last step.
    void store_rows(const RowVector &rows, const RowSource &destination,
                    const std::function<Expr(const Expr &row)> &exists);

    /// Ends the algorithm of a step. What follows happens after the last one.
    void end_step();

    /// What the pipeline's output, a dummy (lane, warp, task), is defined as.
    Expr result() const;

    /// Schedules the whole kernel behind that output and adds the passes that it needs.
    void schedule_behind(Func output, const Var &lane, const Var &warp, Halide::Pipeline pipeline);

private:
    friend class Accumulator;
    friend class RowState;

    std::vector<Expr> block() const;
    std::vector<Expr> block_step() const;
    std::vector<Expr> thread() const;

    Tile define(const Tile &staged, const ChunkSource &source) const;
    RecordSource stage_records(const std::string &name, int fields, const RecordSource &source,
                               int ahead, bool copied);
    Accumulator new_accumulator(int rows, int columns);
    void issue(Accumulator &sum, const Product &product, bool accumulate);
    Expr packed(const Fragment &fragment, const Expr &slot, const Expr &group,
                const std::vector<Expr> &place) const;
    Expr wait_for(const Accumulator &a) const;
    Expr left_address(const Operand &a) const;
    Expr right_address(const Operand &b, const Accumulator &sum) const;
    Expr keep_staged_alive() const;

    void schedule_copies(Func storage);
    void schedule_statement(Func statement);
    void schedule_fragment(const Fragment &f);
    void schedule_rows(const RowVector &f);
    void schedule_exchange(const Tile &exchanged);

    const TileSchedule schedule;
    const Halide::Type element;
    const Var lane{"lane"}, warp{"warp"};
    const Var word{"word"}, chunk{"chunk"}, row{"row"}, panel{"panel"}, field{"field"};
    Halide::RDom steps;
    Expr step_count;

    Expr token;       ///< of the last statement; each takes its predecessor's as an argument
    Expr zero_token;  ///< the same for what runs before the first step
    int products = 0, registers = 0;  ///< issued, and in use by accumulators, so far
    bool in_step = true;

    /// A record for each query of the step, in shared memory.
    struct Records {
        Func func;
        int fields, ahead;
        bool copied;
    };
    std::vector<Tile> resident_tiles, streamed_tiles, exchanged_tiles;
    std::vector<Records> staged_records;
    std::vector<Fragment> fragments;
    std::vector<RowVector> row_vectors, resident_vectors, final_vectors;
    std::vector<Func> conditions;  ///< for the next fragment or row vector
    Func issued{"issued"};         ///< token of the first products
    Func added{"added"};           ///< token of the additions of the step
    Func state{"state"};           ///< token of all steps so far, carried from step to step
};

}  // namespace pagegrad
