/// Each lowering pass on small statements.
#include "lowering/passes.h"

#include "Halide.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

const Expr x = Variable::make(Int(32), "x"), n = Variable::make(Int(32), "n");
const Expr lane = Variable::make(Int(32), "lane");

Expr call(const std::string &name, const std::vector<Expr> &args, Type type = Int(32)) {
    return Call::make(type, name, args, Call::Extern);
}

Stmt effect(const std::string &name, const std::vector<Expr> &args = {0}) {
    return Evaluate::make(call(name, args));
}

Stmt barrier() {
    return Evaluate::make(
        Call::make(Int(32), Call::gpu_thread_barrier, {IntImm::make(Int(32), 2)}, Call::Intrinsic));
}

Expr load(const std::string &buffer, const Expr &index, Type type = Float(32)) {
    return Load::make(type, buffer, index, {}, {}, const_true(type.lanes()), ModulusRemainder());
}

Stmt store(const std::string &buffer, const Expr &value, const Expr &index) {
    return Store::make(buffer, value, index, {}, const_true(value.type().lanes()),
                       ModulusRemainder());
}

Stmt loop(const std::string &name, const Expr &extent, ForType type, const Stmt &body) {
    return For::make(name, 0, extent, type, Partition::Auto, DeviceAPI::CUDA, body);
}

Stmt shared(const std::string &name, int size, const Stmt &body, Type type = Float(32)) {
    return Allocate::make(name, type, MemoryType::GPUShared, {size}, const_true(), body);
}

Stmt produce(const std::string &func, const Stmt &body) {
    return ProducerConsumer::make_produce(func, body);
}

template<typename T>
std::string text(const T &s) {
    std::ostringstream stream;
    stream << s;
    return stream.str();
}

testing::AssertionResult contains(const std::string &text, const std::string &part) {
    if (text.find(part) != std::string::npos) {
        return testing::AssertionSuccess();
    }
    return testing::AssertionFailure() << "no \"" << part << "\" in:\n" << text;
}

int count(const std::string &text, const std::string &part) {
    int found = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at++) {
        found++;
    }
    return found;
}

// ---- trim_loops

TEST(TrimLoops, EndsALoopAtItsCount) {
    const Stmt s = loop("x", 100, ForType::Serial, effect("loop_trip_count", {x, n + 2}));
    const Stmt trimmed = trim_loops()->mutate(s);
    ASSERT_TRUE(trimmed.as<For>());
    const auto extent_for = [&](int value) {
        return *as_const_int(simplify(substitute("n", value, trimmed.as<For>()->extent)));
    };
    EXPECT_EQ(extent_for(5), 7);
    EXPECT_EQ(extent_for(200), 100);
    EXPECT_EQ(extent_for(-7), 0);
    EXPECT_FALSE(contains(text(trimmed), "loop_trip_count"));
}

TEST(TrimLoops, TakesLetsOutOfTheLoop) {
    const Expr t = Variable::make(Int(32), "t");
    const Stmt s = loop("x", 100, ForType::Serial,
                        LetStmt::make("t", n * 2, effect("loop_trip_count", {x, t})));
    EXPECT_FALSE(expr_uses_var(trim_loops()->mutate(s).as<For>()->extent, "t"));
}

TEST(TrimLoops, RefusesCountsThatDependOnTheLoop) {
    const Stmt own = loop("x", 100, ForType::Serial, effect("loop_trip_count", {x, n + x}));
    EXPECT_THROW(trim_loops()->mutate(own), std::runtime_error);
    EXPECT_THROW(trim_loops()->mutate(effect("loop_trip_count", {x, n})), std::runtime_error);
}

// ---- pipeline_steps

/// Runs a statement and writes down the calls in order.
class Interpreter : public IRVisitor {
public:
    std::vector<std::string> calls;

private:
    using IRVisitor::visit;

    Expr value(Expr e) {
        for (const auto &[name, number] : variables) {
            e = substitute(name, number, e);
        }
        return simplify(e);
    }

    void visit(const For *op) override {
        const auto begin = *as_const_int(value(op->min)), extent = *as_const_int(value(op->extent));
        for (int64_t i = begin; i < begin + extent; i++) {
            variables[op->name] = static_cast<int>(i);
            op->body.accept(this);
        }
        variables.erase(op->name);
    }

    void visit(const IfThenElse *op) override {
        if (is_const_one(value(op->condition))) {
            op->then_case.accept(this);
        }
    }

    void visit(const Call *op) override {
        calls.push_back(op->is_intrinsic() ? "barrier"
                                           : op->name + " " + text(value(op->args.back())));
    }

    std::map<std::string, int> variables;
};

std::vector<std::string> run(const Stmt &s) {
    Interpreter interpreter;
    s.accept(&interpreter);
    return interpreter.calls;
}

StagingPlan step_plan() {
    StagingPlan plan;
    plan.loop = "x";
    plan.staged = {{"far", 2}, {"near", 1}};
    plan.issue = "issue";
    plan.addition = "add";
    return plan;
}

/// The body of a step; statement `without` is left out.
Stmt step_loop(int steps, int without = -1) {
    std::vector<Stmt> body{produce("far", effect("far", {x})),
                           barrier(),
                           produce("near", effect("near", {x})),
                           effect("proxy_fence"),
                           barrier(),
                           produce("issue", effect("issue", {x})),
                           effect("first", {x}),
                           effect("proxy_fence"),
                           barrier(),
                           effect("second", {x}),
                           produce("add", effect("add", {x})),
                           barrier()};
    if (without >= 0) {
        body.erase(body.begin() + without);
    }
    return loop("x", steps, ForType::Serial, Block::make(body));
}

TEST(PipelineSteps, OverlapsStepsInTheRightOrder) {
    for (const int steps : {1, 2, 3, 9}) {
        std::map<std::string, int> done;                    // how often each has happened
        int far_committed = 0, near_committed = 0;          // copies
        int far_arrived = 0, near_arrived = 0;              // waited for, then a barrier
        int far_waited = 0, near_waited = 0, computed = 0;  // computed: steps whose products are
        for (const std::string &name : run(pipeline_steps(step_plan())->mutate(step_loop(steps)))) {
            const std::string what = name.substr(0, name.find(' '));
            const int number = name == "barrier" ? 0 : std::stoi(name.substr(name.find(' ')));
            if (what == "copy_async_commit") {
                far_committed = done["far"];
                near_committed = done["near"];
            } else if (what == "copy_async_wait") {
                far_waited = far_committed;
                near_waited = near_committed;
            } else if (what == "barrier") {
                far_arrived = far_waited;
                near_arrived = near_waited;
            } else if (what == "wgmma_wait") {
                computed = done["second"];
            } else if (what != "proxy_fence") {
                EXPECT_EQ(number, done[what]++) << name;
            }
            if (what == "far") {
                EXPECT_LE(number, done["issue"] + 2);
            } else if (what == "near") {
                EXPECT_LE(number, done["issue"] + 1);
                EXPECT_GT(far_arrived, number);
            } else if (what == "issue") {
                EXPECT_GT(near_arrived, number);
                EXPECT_EQ(computed, number);  // of the step before
            } else if (what == "add") {
                EXPECT_GT(computed, number);
                EXPECT_EQ(done["issue"], std::min(number + 2, steps));
            }
        }
        for (const char *what : {"far", "near", "issue", "first", "second", "add"}) {
            EXPECT_EQ(done[what], steps) << what;
        }
    }
}

/// What two steps without additions do, from the first statement of the first one on.
std::vector<std::string> calls_without_additions(bool drained) {
    StagingPlan plan = step_plan();
    plan.issue = plan.addition = "";
    plan.drained = drained;
    const Stmt s = loop("x", 2, ForType::Serial,
                        Block::make({produce("far", effect("far", {x})), barrier(),
                                     produce("near", effect("near", {x})), effect("proxy_fence"),
                                     barrier(), effect("first", {x}), barrier()}));
    const auto calls = run(pipeline_steps(plan)->mutate(s));
    return {std::find(calls.begin(), calls.end(), "first 0"), calls.end()};
}

TEST(PipelineSteps, KeepsProductsUnderWayWithoutAdditions) {
    const auto calls = calls_without_additions(false);
    const std::vector<std::string> expected{
        "first 0",          "copy_async_commit 0", "copy_async_wait 0", "proxy_fence 0",
        "barrier",          "wgmma_wait 0",        "first 1",           "copy_async_commit 0",
        "copy_async_wait 0"};
    ASSERT_GE(calls.size(), 9);
    EXPECT_EQ(std::vector<std::string>(calls.begin(), calls.begin() + 9), expected);
    EXPECT_EQ(calls.back(), "wgmma_wait 0");
}

/// All threads must be done with a step's tiles when one of them copies over them.
TEST(PipelineSteps, WaitsForProductsAheadOfTheBarrierWhereTheyAreDrained) {
    const auto calls = calls_without_additions(true);
    const std::vector<std::string> expected{
        "first 0",           "wgmma_wait 0",  "copy_async_commit 0",
        "copy_async_wait 0", "proxy_fence 0", "barrier"};
    ASSERT_GE(calls.size(), 6);
    EXPECT_EQ(std::vector<std::string>(calls.begin(), calls.begin() + 6), expected);
}

TEST(PipelineSteps, DrainsNoLoopWithAdditions) {
    StagingPlan plan = step_plan();
    plan.drained = true;
    EXPECT_THROW(pipeline_steps(plan)->mutate(step_loop(3)), std::runtime_error);
}

TEST(PipelineSteps, PublishesWhatAStepWrites) {
    const auto calls = run(pipeline_steps(step_plan())->mutate(step_loop(1)));
    const auto first = std::find(calls.begin(), calls.end(), "first 0");
    const std::vector<std::string> expected{"first 0",           "copy_async_commit 0",
                                            "copy_async_wait 0", "proxy_fence 0",
                                            "barrier",           "second 0"};
    ASSERT_GE(calls.end() - first, 6);
    EXPECT_EQ(std::vector<std::string>(first, first + 6), expected);
}

TEST(PipelineSteps, RefusesWhatItCannotMove) {
    StagingPlan more = step_plan();
    more.staged["other"] = 1;
    EXPECT_THROW(pipeline_steps(more)->mutate(step_loop(3)), std::runtime_error);
    for (const int without : {0, 2, 4, 5, 8, 10, 11}) {
        EXPECT_THROW(pipeline_steps(step_plan())->mutate(step_loop(3, without)), std::runtime_error)
            << without;
    }
}

// ---- prune_barriers

Stmt barrier_between(const Stmt &first, const Stmt &second) {
    const Stmt body = Block::make({first, barrier(), second, barrier()});
    return shared(
        "a", 64,
        shared("b", 64, loop("lane", 32, ForType::GPUThread, loop("x", n, ForType::Serial, body))));
}

TEST(PruneBarriers, KeepsThoseThatOrderAccesses) {
    const Stmt read = effect("use", {load("a", 31 - lane)});
    const Stmt kept = prune_barriers()->mutate(barrier_between(store("a", 1.0f, lane), read));
    EXPECT_EQ(count(text(kept), "gpu_thread_barrier"), 2);
    EXPECT_EQ(count(text(kept), "proxy_fence"), 1);  // where tiles were written
}

TEST(PruneBarriers, DropsThoseThatOrderNothing) {
    for (const Stmt &read :
         {effect("use", {load("b", lane)}), effect("use", {load("a", lane + 32)}),
          effect("use", {load("elsewhere", lane)})}) {
        const Stmt pruned = prune_barriers()->mutate(barrier_between(store("a", 1.0f, lane), read));
        EXPECT_EQ(count(text(pruned), "gpu_thread_barrier"), 1) << pruned;
    }
}

TEST(PruneBarriers, SeesWhatInstructionsRead) {
    const Stmt product = effect("product", {call("shared_address", {load("a", 0), load("a", 63)})});
    const Stmt kept = prune_barriers()->mutate(barrier_between(store("a", 1.0f, lane), product));
    EXPECT_EQ(count(text(kept), "gpu_thread_barrier"), 2);
}

// ---- copy_asynchronously

const StagingPlan copies_tile{"x", {}, {"tile"}, "", ""};

std::string copied(const Expr &value, const Expr &index) {
    return text(
        copy_asynchronously(copies_tile)->mutate(produce("tile", store("a", value, index))));
}

TEST(CopyAsynchronously, CopiesScalarsAndVectors) {
    EXPECT_TRUE(contains(copied(load("q", n), lane), "copy_async_4(lane*4, (float32)q[n])"));
    const Expr four = load("q", Ramp::make(n * 4, 1, 4), Float(32, 4));
    EXPECT_TRUE(contains(copied(four, Ramp::make(lane * 4, 1, 4)), "copy_async_16((lane*4)*4, "));
    const Expr two = load("q", Ramp::make(n * 2, 1, 2), Float(32, 2));
    EXPECT_TRUE(contains(copied(two, Ramp::make(lane * 2, 1, 2)), "copy_async_8((lane*2)*4, "));
}

TEST(CopyAsynchronously, CopiesConditionally) {
    const Expr value =
        Call::make(Float(32), "value_or_zero", {load("q", n), n < 5}, Call::PureExtern);
    EXPECT_TRUE(
        contains(copied(value, lane), "copy_async_4_or_zero(lane*4, (float32)q[n], int32(n < 5))"));
}

TEST(CopyAsynchronously, LeavesOtherStoresAlone) {
    const Stmt s = produce("other", store("a", load("q", n), lane));
    EXPECT_TRUE(copy_asynchronously(copies_tile)->mutate(s).same_as(s));
}

TEST(CopyAsynchronously, RefusesWhatIsNoCopy) {
    EXPECT_THROW(copied(load("q", n) + 1.0f, lane), std::runtime_error);
    EXPECT_THROW(copied(load("q", Ramp::make(n, 1, 4), Float(32, 4)), Ramp::make(lane, 2, 4)),
                 std::runtime_error);
    EXPECT_THROW(copied(load("q", Ramp::make(n, 1, 8), Float(32, 8)), Ramp::make(lane, 1, 8)),
                 std::runtime_error);
}

// ---- shared memory

TEST(ShiftSharedMemory, MovesSharedMemoryAlone) {
    const Stmt s = shared("a", 64, store("a", load("q", n) + load("a", n), lane));
    const std::string shifted = text(shift_shared_memory()->mutate(s));
    EXPECT_TRUE(contains(shifted, "a[float32 * (64 + 256)]"));
    EXPECT_TRUE(contains(shifted, "a[lane + 256] = (float32)q[n] + a[n + 256]"));
}

TEST(ResolveSharedAddresses, GivesBytes) {
    const Stmt s =
        effect("product",
               {call("shared_address", {load("a", lane * 4 + 256), load("a", lane * 4 + 300)})});
    EXPECT_TRUE(
        contains(text(resolve_shared_addresses()->mutate(s)), "product(((lane*4) + 256)*4)"));
}

TEST(ResolveSharedAddresses, RefusesTilesThatAreNotAligned) {
    const auto address = [](const Expr &first) {
        return effect("product", {call("shared_address", {first, first})});
    };
    EXPECT_THROW(resolve_shared_addresses()->mutate(address(load("a", lane * 4 + 128))),
                 std::runtime_error);
    EXPECT_THROW(resolve_shared_addresses()->mutate(address(n)), std::runtime_error);
}

TEST(ResolveSharedAddresses, DropsMarkersOfLife) {
    const Stmt s = effect("use", {call("keep_alive", {load("a", n)})});
    EXPECT_TRUE(contains(text(resolve_shared_addresses()->mutate(s)), "use(0)"));
}

// ---- privatize_registers

Stmt in_registers(const Expr &index) {
    const Stmt body = loop("warp", 8, ForType::GPUThread,
                           loop("lane", 32, ForType::GPUThread, store("r", 1.0f, index)));
    return Allocate::make("r", Float(32), MemoryType::Register, {1024}, const_true(), body);
}

TEST(PrivatizeRegisters, GivesEachThreadItsElements) {
    const Expr warp = Variable::make(Int(32), "warp");
    const Stmt s = privatize_registers()->mutate(in_registers((warp * 32 + lane) * 4 + 3));
    EXPECT_TRUE(contains(text(s), "r[3] = "));
    EXPECT_TRUE(contains(text(s), "r[float32 * 4]"));
}

TEST(PrivatizeRegisters, RefusesSharedElements) {
    const Expr warp = Variable::make(Int(32), "warp");
    EXPECT_THROW(privatize_registers()->mutate(in_registers(lane * 4)), std::runtime_error);
    EXPECT_THROW(privatize_registers()->mutate(in_registers((warp * 32 + lane) * 4 + 4)),
                 std::runtime_error);
    EXPECT_THROW(privatize_registers()->mutate(in_registers((warp * 32 + lane) * 4 + n)),
                 std::runtime_error);
}

// ---- unswitch

Stmt masked(const Expr &condition, const Expr &index) {
    const Expr sees = Call::make(Bool(), "true_if", {condition, n < 5}, Call::PureExtern);
    return store("p", select(sees, load("s", index), 0.0f), index);
}

TEST(Unswitch, MakesAVersionWithoutTheTest) {
    const Stmt s = Block::make({effect("before"), masked(lane == 0, 1), masked(lane == 0, 2)});
    const std::string split = text(unswitch()->mutate(s));
    EXPECT_EQ(count(split, "if (lane == 0)"), 1);
    EXPECT_EQ(count(split, "n < 5"), 2);
    EXPECT_TRUE(contains(split, "p[1] = (float32)s[1]"));
    EXPECT_FALSE(contains(split, "true_if"));
    EXPECT_LT(split.find("before"), split.find("if (lane"));
}

TEST(Unswitch, LeavesOtherCodeAlone) {
    const Stmt s = store("p", load("s", n), n);
    EXPECT_TRUE(unswitch()->mutate(s).same_as(s));
}

TEST(Unswitch, SplitsStagesByTheirOwnConditions) {
    const Stmt s = Block::make({masked(lane == 0, 1), masked(lane == 1, 2)});
    const std::string split = text(unswitch()->mutate(s));
    EXPECT_EQ(count(split, "if (lane == 0)"), 1);
    EXPECT_EQ(count(split, "if (lane == 1)"), 1);
}

TEST(Unswitch, LooksThroughLets) {
    const Expr t = Variable::make(Bool(), "t");
    const Stmt s = Block::make({LetStmt::make("t", lane == 0, masked(t, 1)), masked(lane == 0, 2)});
    EXPECT_EQ(count(text(unswitch()->mutate(s)), "if (lane == 0)"), 1);
}

TEST(Unswitch, RefusesTwoConditionsInOneStatement) {
    const auto marker = [](const Expr &condition) {
        return Call::make(Bool(), "true_if", {condition, n < 5}, Call::PureExtern);
    };
    const Stmt s =
        store("p", select(marker(lane == 0) && marker(lane == 1), load("s", n), 0.0f), n);
    EXPECT_THROW(unswitch()->mutate(s), std::runtime_error);
}

// ---- the kernel's interface

TEST(DiscardOutput, KeepsEffects) {
    const Stmt s = Block::make(store("done", call("act", {n}), lane), store("p", 1.0f, n));
    const std::string kept = text(discard_output("done")->mutate(s));
    EXPECT_TRUE(contains(kept, "act(n)"));
    EXPECT_FALSE(contains(kept, "done"));
    EXPECT_TRUE(contains(kept, "p[n] = "));
}

TEST(SinkHostValues, ComputesInTheKernelWhatScalarsGive) {
    const Expr t = Variable::make(Int(32), "t"), stride = Variable::make(Int(32), "q.stride.1");
    const Expr buffer = Variable::make(type_of<struct halide_buffer_t *>(), "q.buffer");
    const Stmt kernel = loop("block", n, ForType::GPUBlock, store("p", load("q", t + stride), 0));
    const Stmt s = LetStmt::make("q.stride.1", call("get_stride", {buffer}),
                                 LetStmt::make("t", n * 3, kernel));
    const std::string sunk = text(sink_host_values()->mutate(s));
    EXPECT_EQ(count(sunk, "let t = "), 2);           // outside, where nothing needs it, and inside
    EXPECT_EQ(count(sunk, "let q.stride.1 = "), 1);  // a parameter
    EXPECT_GT(sunk.rfind("let t = "), sunk.find("gpu_block"));
}

}  // namespace
}  // namespace pagegrad
