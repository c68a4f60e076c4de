#include "tiles.h"

#include <stdexcept>
#include <utility>

namespace pagegrad {
namespace {

using namespace Halide;

using Exprs = std::vector<Expr>;

constexpr int words_per_chunk = 4, chunks_per_panel = 8, columns_per_panel = 64,
              bytes_per_row = 128;

/// Streamed tiles are copied one step ahead of their use, and what their addresses depend on two
/// (see pipeline_steps.cpp). Besides the steps ahead and the current one, products and additions of
/// the step before may still read their slots.
constexpr int streamed_ahead = 1, early_ahead = 2;

void require(bool condition, const char *what) {
    if (!condition) {
        throw std::invalid_argument(what);
    }
}

Exprs concat(Exprs a, const Exprs &b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

/// A call that stands for an instruction with effects (ptx_expander.h) or a marker (passes.h).
/// Returns a token.
Expr effect(const std::string &name, const Exprs &args) {
    return Internal::Call::make(Int(32), name, args, Internal::Call::Extern);
}

/// A call that stands for an instruction without effects.
Expr value(Type type, const std::string &name, const Exprs &args) {
    return Internal::Call::make(type, name, args, Internal::Call::PureExtern);
}

/// Accumulators change behind Halide's back: reading one is ordered like an effect.
Expr accumulator_read(const Expr &index, const Expr &token) {
    return Internal::Call::make(Float(32), "accumulator_read", {index, token},
                                Internal::Call::Extern);
}

/// Which chunk of a row is stored at `chunk`.
Expr stored_chunk(const Expr &chunk, const Expr &row) {
    return cast<int>(cast<uint8_t>(chunk) ^ cast<uint8_t>(row % 8));
}

/// Where a chunk of a row is stored: the same function, as a call whose bounds Halide finds.
Expr place_of_chunk(const Expr &chunk, const Expr &row) {
    return value(Int(32), "exclusive_or", {chunk, row}) % chunks_per_panel;
}

int panels(const Tile &tile) {
    return tile.columns / columns_per_panel;
}

/// A place in a tile: `chunk` as it is stored.
Expr stored_at(const Tile &tile, int word, const Expr &chunk, const Expr &row, const Expr &panel) {
    Exprs place = concat({chunk, row, panel}, tile.place);
    return tile.storage(tile.in_words ? concat({word}, place) : place);
}

/// Element (row, column), both multiples of 8: the first of a chunk that the swizzle leaves alone.
Expr first_of_chunk(const Tile &tile, const Expr &row, const Expr &column) {
    return stored_at(tile, 0, column % columns_per_panel / 8, row, column / columns_per_panel);
}

/// The last chunk of a row.
Expr last_of_row(const Tile &tile, const Expr &row) {
    return stored_at(tile, words_per_chunk - 1, chunks_per_panel - 1, row, panels(tile) - 1);
}

}  // namespace

Expr true_if(const Expr &condition, const Expr &value) {
    return pagegrad::value(Bool(), "true_if", {condition, value});
}

Expr value_or_zero(const Expr &value, const Expr &condition) {
    return pagegrad::value(value.type(), "value_or_zero", {value, condition});
}

Expr Fragment::operator()(const Element &element) const {
    return values(concat({element.slot, element.group}, place));
}

Expr Fragment::sum_of(const Row &row) const {
    Expr sum = 0.0f;
    for (int group = 0; group < columns / 8; group++) {
        for (int parity = 0; parity < 2; parity++) {
            sum += values(concat({row.half * 2 + parity, group}, place));
        }
    }
    return sum;
}

Expr RowVector::at(const Expr &half) const {
    return values(concat({half}, place));
}

Expr RowVector::operator()(const Element &element) const {
    return at(element.slot / 2);
}

Expr RowVector::operator()(const Row &row) const {
    return at(row.half);
}

Expr row_sum(const Expr &of_thread) {
    return value(Float(32), "quad_sum", {of_thread});
}

Expr row_max(const Expr &of_thread) {
    return value(Float(32), "quad_max", {of_thread});
}

Expr RowState::operator()(const Row &row) const {
    return accumulator_read(first_register + row.half, row.token);
}

Product operator*(const Operand &a, const Operand &b) {
    return {{a}, Fragment(), b};
}

Product operator*(const Fragment &a, const Operand &b) {
    return {{}, a, b};
}

TileKernel::TileKernel(const TileSchedule &schedule, Type element)
    : schedule(schedule), element(element), token(0), zero_token(lane) {
    require(schedule.streamed_rows % warp_size == 0, "warps stage whole rounds of rows");
    require(schedule.resident_rows == 16 * schedule.warps && schedule.warps % 4 == 0,
            "each warp takes 16 rows, four warps make a warpgroup");
    require(element == BFloat(16) || element == Float(16), "tiles hold bfloat16 or float16");
}

Exprs TileKernel::block() const {
    return {task};
}

Exprs TileKernel::block_step() const {
    return {step, task};
}

Exprs TileKernel::thread() const {
    return {lane, warp};
}

void TileKernel::set_steps(const Expr &count) {
    constexpr int bound = 1 << 24;  // the loop is trimmed to the count
    steps = RDom(0, bound, "steps");
    step_count = count;
}

// ---- Tiles and rows

Tile TileKernel::define(const Tile &staged, const ChunkSource &source) const {
    Func storage = staged.storage;
    storage(concat({chunk, row, panel}, staged.place)) =
        source(panel * chunks_per_panel + stored_chunk(chunk, row), row);
    return staged;
}

Tile TileKernel::resident(const std::string &name, int columns, const ChunkSource &source) {
    resident_tiles.push_back(
        define({Func(name), schedule.resident_rows, columns, false, block()}, source));
    return resident_tiles.back();
}

Tile TileKernel::streamed(const std::string &name, int columns, const ChunkSource &source) {
    streamed_tiles.push_back(
        define({Func(name), schedule.streamed_rows, columns, false, block_step()}, source));
    return streamed_tiles.back();
}

TileKernel::RecordSource TileKernel::stage_records(const std::string &name, int fields,
                                                   const RecordSource &source, int ahead,
                                                   bool copied) {
    Func records(name);
    records(concat({field, row}, block_step())) = source(field, row);
    staged_records.push_back({records, fields, ahead, copied});
    return [records, place = block_step()](const Expr &field, const Expr &row) {
        return records(concat({field, row}, place));
    };
}

TileKernel::RecordSource TileKernel::streamed_records(const std::string &name, int fields,
                                                      const RecordSource &source) {
    return stage_records(name, fields, source, streamed_ahead, true);
}

TileKernel::RecordSource TileKernel::early_records(const std::string &name, int fields,
                                                   const RecordSource &source) {
    return stage_records(name, fields, source, early_ahead, true);
}

TileKernel::RowSource TileKernel::early_rows(const std::string &name, const RowSource &source) {
    const auto records = stage_records(
        name, 1, [&](const Expr &, const Expr &row) { return source(row); }, early_ahead, false);
    return [records](const Expr &row) { return records(0, row); };
}

Expr TileKernel::decide(const Expr &condition) {
    Func decision("decision");
    const Exprs place = concat(thread(), block_step());
    decision(place) = cast<int>(condition);
    conditions.push_back(decision);
    return decision(place) != 0;
}

Expr TileKernel::decide_for_all_streamed(const std::function<Expr(const Expr &)> &predicate) {
    Expr holds = predicate(lane);
    for (int first = warp_size; first < schedule.streamed_rows; first += warp_size) {
        holds = holds && predicate(lane + first);
    }
    return decide(value(Int(32), "all_lanes", {cast<int>(holds)}) != 0);
}

Tile TileKernel::exchange(const std::string &name, const Fragment &fragment) {
    Tile exchanged{Func(name), fragment.rows, fragment.columns, true, block_step()};
    exchanged.storage(concat({word, chunk, row, panel}, exchanged.place)) = undef<uint32_t>();
    // A scatter over the groups of 8 columns: a thread names its registers by constants.
    RDom group(0, fragment.columns / 8, "column_group");
    Expr holder = row % 8 * 4 + word, half = row / 8 % 2;
    exchanged.storage(concat({word, place_of_chunk(group, row), row, group / 8}, exchanged.place)) =
        packed(fragment, half * 2, group, concat({holder, row / 16}, exchanged.place));
    exchanged_tiles.push_back(exchanged);
    return exchanged;
}

// ---- Accumulators

Accumulator TileKernel::new_accumulator(int rows, int columns) {
    const int warpgroups = schedule.warps / 4;
    Accumulator a;
    a.kernel = this;
    a.rows = rows;
    a.columns = columns;
    a.columns_per_warpgroup = rows == 64 * warpgroups ? columns : columns / warpgroups;
    a.first_register = registers;
    registers += a.columns_per_warpgroup / 2;
    return a;
}

Accumulator TileKernel::sum_over_steps(int columns) {
    Accumulator a = new_accumulator(schedule.resident_rows, columns);
    zero_token =
        effect("accumulator_zero", {zero_token, a.first_register, a.columns_per_warpgroup / 2});
    return a;
}

Accumulator TileKernel::compute(const Product &product) {
    require(product.a.size() == 1, "a sum of one step multiplies tiles");
    if (products == 0) {
        token = keep_staged_alive();  // all staging comes first
    }
    const Operand &a = product.a[0], &b = product.b;
    Accumulator sum = new_accumulator(a.transposed ? a.tile.columns : a.tile.rows,
                                      b.transposed ? b.tile.rows : b.tile.columns);
    issue(sum, product, false);
    return sum;
}

void Accumulator::operator+=(const Product &product) {
    kernel->issue(*this, product, true);
}

/// A warp holds 16 rows of its warpgroup's 64. Register `slot` of 4 for each group of 8 columns
/// belongs to row lane / 4, or to the eighth after it from slot 2 on ...
Expr Accumulator::row_of(const Expr &slot) const {
    const Expr lane = kernel->lane, warp = kernel->warp;
    Expr warp_row = columns_per_warpgroup == columns ? warp : warp % 4;
    return warp_row * 16 + lane / 4 + 8 * (slot / 2);
}

/// ... and to column 2 (lane % 4) of the group or the next.
Expr Accumulator::column_of(const Expr &slot, const Expr &group) const {
    const Expr lane = kernel->lane, warp = kernel->warp;
    Expr column = group * 8 + lane % 4 * 2 + slot % 2;
    return columns_per_warpgroup == columns ? column : warp / 4 * columns_per_warpgroup + column;
}

/// Registers `slot` and `slot + 1` of a fragment, rounded to the tiles' type.
Expr TileKernel::packed(const Fragment &fragment, const Expr &slot, const Expr &group,
                        const Exprs &place) const {
    const auto element_at = [&](const Expr &slot) {
        return fragment.values(concat({slot, group}, place));
    };
    return value(UInt(32), element.is_bfloat() ? "pack_bf16x2" : "pack_f16x2",
                 {element_at(slot), element_at(slot + 1)});
}

/// Address of the part of the left operand that the thread's warpgroup multiplies.
Expr TileKernel::left_address(const Operand &a) const {
    const Expr first_row = a.transposed ? Expr(0) : warp / 4 * 64;
    const Expr last_row = a.transposed ? Expr(a.tile.rows - 1) : first_row + 63;
    return effect("shared_address",
                  {first_of_chunk(a.tile, first_row, 0), last_of_row(a.tile, last_row)});
}

/// The same for the right operand.
Expr TileKernel::right_address(const Operand &b, const Accumulator &sum) const {
    const bool split_columns = sum.columns_per_warpgroup != sum.columns;
    const Expr first_column = split_columns ? warp / 4 * sum.columns_per_warpgroup : Expr(0);
    return effect("shared_address",
                  {first_of_chunk(b.tile, 0, first_column), last_of_row(b.tile, b.tile.rows - 1)});
}

void TileKernel::issue(Accumulator &sum, const Product &product, bool accumulate) {
    const Operand &b = product.b;
    const int contraction = b.transposed ? b.tile.columns : b.tile.rows;
    const std::string type = element.is_bfloat() ? "_bf16" : "_f16";
    const Exprs shape{token, sum.first_register, sum.columns_per_warpgroup, contraction,
                      static_cast<int>(accumulate)};
    const Exprs right{right_address(b, sum), b.tile.rows * bytes_per_row,
                      static_cast<int>(!b.transposed)};
    if (!product.a.empty()) {
        const Operand &a = product.a[0];
        const Exprs left{left_address(a), a.tile.rows * bytes_per_row,
                         static_cast<int>(a.transposed)};
        token = effect("wgmma_shared" + type, concat(shape, concat(left, right)));
    } else {
        const Fragment &a = product.a_fragment;
        Exprs left;
        for (int group = 0; group < a.columns / 8; group++) {
            for (int slot = 0; slot < 4; slot += 2) {
                left.push_back(packed(a, slot, group, a.place));
            }
        }
        token = effect("wgmma_registers" + type, concat(shape, concat(right, left)));
    }
    sum.product = products++;
}

void TileKernel::issue_products() {
    const Exprs place = concat(thread(), block_step());
    issued(place) = token;
    token = issued(place);
}

/// Waits until the accumulator's last product is done. Later ones may still run.
Expr TileKernel::wait_for(const Accumulator &a) const {
    return effect("wgmma_wait", {token, products - 1 - a.product});
}

Fragment Accumulator::map(const std::function<Expr(const Element &)> &f) const {
    Fragment fragment;
    fragment.rows = rows;
    fragment.columns = columns;
    fragment.place = concat(kernel->thread(), kernel->block_step());
    fragment.ready(fragment.place) = kernel->wait_for(*this);
    std::swap(fragment.conditions, kernel->conditions);

    Element e;
    e.slot = fragment.slot;
    e.group = fragment.group;
    e.row = row_of(e.slot);
    e.column = column_of(e.slot, e.group);
    e.value =
        accumulator_read(first_register + e.group * 4 + e.slot, fragment.ready(fragment.place));
    fragment.values(concat({e.slot, e.group}, fragment.place)) = f(e);

    // What follows comes after the last element.
    kernel->token = reinterpret<int>(fragment.values(concat({3, columns / 8 - 1}, fragment.place)));
    kernel->fragments.push_back(fragment);
    return fragment;
}

RowVector Accumulator::map_rows(const std::function<Expr(const Row &)> &f) const {
    RowVector vector;
    vector.place = concat(kernel->thread(), kernel->block_step());
    vector.ready(vector.place) = kernel->wait_for(*this);
    std::swap(vector.conditions, kernel->conditions);

    Row row;
    row.half = vector.half;
    row.row = row_of(vector.half * 2);
    row.token = vector.ready(vector.place);
    for (int group = 0; group < columns_per_warpgroup / 8; group++) {
        for (int parity = 0; parity < 2; parity++) {
            Element e;
            e.slot = vector.half * 2 + parity;
            e.group = group;
            e.row = row.row;
            e.column = column_of(e.slot, e.group);
            e.value = accumulator_read(first_register + group * 4 + e.slot, row.token);
            row.elements.push_back(e);
        }
    }
    vector.values(concat({vector.half}, vector.place)) = f(row);
    kernel->token = reinterpret<int>(vector.at(1));
    kernel->row_vectors.push_back(vector);
    return vector;
}

void Accumulator::scale_rows(const RowVector &factors) {
    kernel->token =
        effect("accumulator_scale", {kernel->token, first_register, columns_per_warpgroup / 2,
                                     factors.at(0), factors.at(1)});
}

void Accumulator::store_to(const Pair &destination, const RowVector &factors,
                           const Pair &exists) const {
    const std::string half = kernel->element.is_bfloat() ? "bf16x2" : "f16x2";
    for (int group = 0; group < columns_per_warpgroup / 8; group++) {
        for (int slot = 0; slot < 4; slot += 2) {
            const Expr row = row_of(slot), pair = column_of(slot, group) / 2;
            const Expr to = destination(row, pair);
            kernel->token = effect("accumulator_store_" + (to.type().bits() == 64 ? "f32x2" : half),
                                   {kernel->token, first_register + group * 4 + slot,
                                    factors.at(slot / 2), cast<int>(exists(row, pair)), to});
        }
    }
}

void Accumulator::add_to(const Pair &destination, const Expr &factor) const {
    add_to(destination, factor, [](const Expr &, const Expr &) { return Internal::const_true(); });
}

void Accumulator::add_to(const Pair &destination, const Expr &factor, const Pair &exists) const {
    Expr sum = kernel->in_step ? Expr(0) : kernel->token;
    for (int group = 0; group < columns_per_warpgroup / 8; group++) {
        for (int slot = 0; slot < 4; slot += 2) {
            const Expr row = row_of(slot), pair = column_of(slot, group) / 2;
            sum = effect("accumulator_add_x2",
                         {sum, first_register + group * 4 + slot, factor,
                          cast<int>(exists(row, pair)), destination(row, pair)});
        }
    }
    if (!kernel->in_step) {
        kernel->token = sum;
        return;
    }
    require(!kernel->added.defined(), "one sum is added to memory in each step");
    kernel->added(concat(kernel->thread(), kernel->block_step())) = sum;
}

// ---- Numbers of rows

RowState TileKernel::row_state(float initial) {
    RowState state;
    state.kernel = this;
    state.first_register = registers;
    registers += 2;
    for (int half = 0; half < 2; half++) {
        zero_token =
            effect("accumulator_write", {zero_token, state.first_register + half, initial});
    }
    return state;
}

void RowState::set(const std::function<Expr(const Row &)> &f) {
    for (int half = 0; half < 2; half++) {
        Row row;
        row.half = half;
        row.token = kernel->token;
        kernel->token = effect("accumulator_write", {kernel->token, first_register + half, f(row)});
    }
}

RowVector TileKernel::resident_rows(const RowSource &source) {
    RowVector vector;
    vector.place = concat(thread(), block());
    vector.values(concat({vector.half}, vector.place)) =
        source(warp * 16 + lane / 4 + 8 * vector.half);
    resident_vectors.push_back(vector);
    return vector;
}

RowVector TileKernel::final_rows(const Accumulator &result,
                                 const std::function<Expr(const Row &)> &f) {
    RowVector vector;
    vector.place = concat(thread(), block());
    Row row;
    row.half = vector.half;
    row.row = result.row_of(vector.half * 2);
    row.token = token;
    vector.values(concat({vector.half}, vector.place)) = f(row);
    final_vectors.push_back(vector);
    return vector;
}

void TileKernel::store_rows(const RowVector &rows, const RowSource &destination,
                            const std::function<Expr(const Expr &)> &exists) {
    for (int half = 0; half < 2; half++) {
        const Expr row = warp * 16 + lane / 4 + 8 * half;
        token = effect("store_f32", {token, rows.at(half), cast<int>(lane % 4 == 0 && exists(row)),
                                     destination(row)});
    }
}

/// Names everything staged, for the end of a step: Halide would otherwise give the memory of what
/// the step has finished with to another stage, although the next step reads it again.
Expr TileKernel::keep_staged_alive() const {
    Exprs elements;
    for (const auto *tiles : {&resident_tiles, &streamed_tiles}) {
        for (const Tile &t : *tiles) {
            elements.push_back(first_of_chunk(t, 0, 0));
            elements.push_back(last_of_row(t, t.rows - 1));
        }
    }
    for (const Records &records : staged_records) {
        elements.push_back(records.func(concat({0, 0}, block_step())));
        elements.push_back(
            records.func(concat({records.fields - 1, schedule.streamed_rows - 1}, block_step())));
    }
    return effect("keep_alive", elements);
}

void TileKernel::end_step() {
    require(added.defined() == issued.defined(), "sums are added while first products run");
    const Exprs place = concat(thread(), block());
    state(place) = zero_token;
    Exprs statements{token, state(place), keep_staged_alive(),
                     effect("loop_trip_count", {step, step_count})};
    if (added.defined()) {
        statements.push_back(added(concat(thread(), block_step())));
    }
    // The statements of the step are written in terms of a Var; the loop runs over an RVar.
    state(place) = Internal::substitute(step.name(), steps.x, effect("end_step", statements));
    token = state(place);
    in_step = false;
}

Expr TileKernel::result() const {
    return token;
}

// ---- Schedule

/// All threads copy chunks of 16 bytes; neighbouring lanes copy neighbouring chunks.
void TileKernel::schedule_copies(Func storage) {
    Var chunks("chunks"), round("round");
    storage.store_in(MemoryType::GPUShared)
        .bound_extent(chunk, chunks_per_panel)
        .fuse(chunk, row, chunks)
        .fuse(chunks, panel, chunks)
        // Where threads do not divide the chunks, the last round is not for all: two threads must
        // not write the same place, not even the same value.
        .split(chunks, round, chunks, schedule.warps * warp_size, TailStrategy::GuardWithIf)
        .split(chunks, warp, lane, warp_size)
        .reorder(round, lane, warp)
        .unroll(round)
        .gpu_threads(lane, warp);
}

void TileKernel::schedule_fragment(const Fragment &f) {
    Func values = f.values, ready = f.ready;
    values.compute_at(state, steps.x)
        .store_in(MemoryType::Register)
        .bound_extent(f.slot, 4)
        .bound_extent(f.group, f.columns / 8)
        .reorder(f.slot, f.group, lane, warp)
        .unroll(f.slot)
        .unroll(f.group)
        .gpu_threads(lane, warp);
    ready.compute_at(values, lane);
    for (Func condition : f.conditions) {
        condition.compute_at(values, lane);
    }
}

void TileKernel::schedule_rows(const RowVector &f) {
    Func values = f.values, ready = f.ready;
    values.compute_at(state, steps.x)
        .store_in(MemoryType::Register)
        .bound_extent(f.half, 2)
        .reorder(f.half, lane, warp)
        .unroll(f.half)
        .gpu_threads(lane, warp);
    ready.compute_at(values, lane);
    for (Func condition : f.conditions) {
        condition.compute_at(values, lane);
    }
}

/// A statement of each thread that only leaves a token.
void TileKernel::schedule_statement(Func statement) {
    statement.compute_at(state, steps.x).store_in(MemoryType::Register).gpu_threads(lane, warp);
}

void TileKernel::schedule_exchange(const Tile &exchanged) {
    Func storage = exchanged.storage;
    storage.store_in(MemoryType::GPUShared)
        .bound(word, 0, words_per_chunk)
        .bound(chunk, 0, chunks_per_panel)
        .bound(row, 0, exchanged.rows)
        .bound(panel, 0, panels(exchanged));
    Var half("half");
    RVar group = storage.rvars()[0];
    storage.update()
        .split(row, warp, row, 16)
        .split(row, half, row, 8)
        .fuse(word, row, lane)
        .reorder(group, half, lane, warp)
        .unroll(group)
        .unroll(half)
        .gpu_threads(lane, warp);
}

void TileKernel::schedule_behind(Func output, const Var &output_lane, const Var &output_warp,
                                 Pipeline pipeline) {
    output.bound(output_lane, 0, warp_size)
        .bound(output_warp, 0, schedule.warps)
        .gpu_blocks(task)
        .gpu_threads(output_lane, output_warp);
    state.compute_at(output, task).store_in(MemoryType::Register).gpu_threads(lane, warp);
    state.update().reorder(lane, warp, steps.x).gpu_threads(lane, warp);

    StagingPlan plan;
    plan.loop = state.name() + ".s1." + steps.x.name();
    plan.drained = schedule.drained;
    if (added.defined()) {
        plan.issue = issued.name();
        plan.addition = added.name();
        schedule_statement(issued);
        schedule_statement(added);
    }
    for (const Tile &resident : resident_tiles) {
        Func storage = resident.storage;
        storage.compute_at(output, task);
        schedule_copies(storage);
        plan.copied.insert(storage.name());
    }
    const auto in_ring = [&](Func f, int slots) {
        f.compute_at(state, steps.x).hoist_storage(output, task).ring_buffer(slots);
    };
    for (const Tile &streamed : streamed_tiles) {
        in_ring(streamed.storage, streamed_ahead + (schedule.drained ? 1 : 2));
        schedule_copies(streamed.storage);
        plan.staged[streamed.storage.name()] = streamed_ahead;
        plan.copied.insert(streamed.storage.name());
    }
    for (const Records &records : staged_records) {
        Func f = records.func;
        in_ring(f, records.ahead + 2);
        plan.staged[f.name()] = records.ahead;
        f.store_in(MemoryType::GPUShared)
            .bound_extent(field, records.fields)
            .split(row, warp, lane, warp_size)
            .reorder(field, lane, warp)
            .vectorize(field)
            .gpu_threads(lane, warp);
        if (records.copied) {
            plan.copied.insert(f.name());
        }
    }
    for (const Fragment &f : fragments) {
        schedule_fragment(f);
    }
    for (const RowVector &f : row_vectors) {
        schedule_rows(f);
    }
    for (const RowVector &f : resident_vectors) {
        Func values = f.values;
        values.compute_at(output, task)
            .store_in(MemoryType::Register)
            .bound_extent(f.half, 2)
            .reorder(f.half, lane, warp)
            .unroll(f.half)
            .gpu_threads(lane, warp);
    }
    for (const RowVector &f : final_vectors) {
        Func values = f.values;
        values.compute_at(output, output_lane).bound_extent(f.half, 2).unroll(f.half);
    }
    for (const Tile &exchanged : exchanged_tiles) {
        in_ring(exchanged.storage, 2);
        schedule_exchange(exchanged);
    }
    add_tile_passes(std::move(pipeline), plan, output.name());
}

}  // namespace pagegrad
