#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// What happens to shared memory between two barriers.
struct SharedAccesses {
    struct Range {
        std::string allocation;
        Interval elements;
    };
    std::vector<Range> reads, writes;

    void add(const SharedAccesses &other) {
        reads.insert(reads.end(), other.reads.begin(), other.reads.end());
        writes.insert(writes.end(), other.writes.begin(), other.writes.end());
    }

    static bool overlap(const std::vector<Range> &a, const std::vector<Range> &b) {
        for (const Range &x : a) {
            for (const Range &y : b) {
                if (x.allocation == y.allocation && !(can_prove(x.elements.max < y.elements.min) ||
                                                      can_prove(y.elements.max < x.elements.min))) {
                    return true;
                }
            }
        }
        return false;
    }

    /// Must a barrier stand between these accesses and later ones?
    bool conflict(const SharedAccesses &later) const {
        return overlap(writes, later.writes) || overlap(writes, later.reads) ||
               overlap(reads, later.writes);
    }
};

/// Collects the shared memory accesses of a statement, element ranges over all threads.
class CollectSharedAccesses : public IRVisitor {
public:
    CollectSharedAccesses(const std::set<std::string> &shared, const Scope<Interval> &outer)
        : shared(shared) {
        bounds.set_containing_scope(&outer);
    }

    SharedAccesses accesses;

private:
    using IRVisitor::visit;

    Interval range(const Expr &index) {
        return bounds_of_expr_in_scope(index, bounds);
    }

    void visit(const Load *op) override {
        IRVisitor::visit(op);
        if (shared.count(op->name)) {
            accesses.reads.push_back({op->name, range(op->index)});
        }
    }

    void visit(const Store *op) override {
        IRVisitor::visit(op);
        if (shared.count(op->name)) {
            accesses.writes.push_back({op->name, range(op->index)});
        }
    }

    /// An instruction that takes an address reads everything from the first to the last element.
    void visit(const Call *op) override {
        IRVisitor::visit(op);
        if (op->name == "shared_address") {
            const Load *first = resolve(op->args[0]), *last = resolve(op->args[1]);
            Interval elements = range(first->index);
            elements.include(range(last->index));
            accesses.reads.push_back({first->name, elements});
        }
    }

    void visit(const LetStmt *op) override {
        visit_let(op);
    }

    void visit(const Let *op) override {
        visit_let(op);
    }

    template<typename LetOrLetStmt>
    void visit_let(const LetOrLetStmt *op) {
        op->value.accept(this);
        values[op->name] = op->value;
        ScopedBinding<Interval> bind(bounds, op->name, range(op->value));
        op->body.accept(this);
    }

    const Load *resolve(Expr e) const {
        for (const Variable *v; (v = e.as<Variable>()) && values.count(v->name);) {
            e = values.at(v->name);
        }
        const Load *load = e.as<Load>();
        require_lowering(load, "not an element of a tile: ", e);
        return load;
    }

    const std::set<std::string> &shared;
    Scope<Interval> bounds;
    std::map<std::string, Expr> values;
};

/// Drops the barriers that separate nothing, and adds proxy fences to those that publish tiles.
///
/// Why: Halide puts a barrier between any two stages with thread loops of their own, also when a
/// stage hands its values on in registers, and each costs the block a rendezvous. `wgmma` reads
/// shared memory through the async proxy, to which ordinary writes are visible only after a fence.
///
/// Valid: threads of a block meet in shared memory alone. A barrier is needed when what was
/// accessed since the last one that stays may overlap what is accessed before the next one, and one
/// of the two is a write; ranges are compared over all threads. A loop body can be judged by
/// itself: its last barrier always stays and orders an iteration before the next, and Halide's
/// barrier after the last stage ahead of the loop orders what came earlier. A product may read on
/// after its statement, until it is waited for; every step ends with a wait for all.
class PruneBarriers : public IRMutator {
    using IRMutator::visit;

    Stmt visit(const Allocate *op) override {
        if (op->memory_type == MemoryType::GPUShared) {
            shared.insert(op->name);
        }
        return IRMutator::visit(op);
    }

    Stmt visit(const LetStmt *op) override {
        ScopedBinding<Interval> bind(bounds, op->name, bounds_of_expr_in_scope(op->value, bounds));
        return IRMutator::visit(op);
    }

    Stmt visit(const For *op) override {
        Interval range(op->min, op->min + op->extent - 1);
        ScopedBinding<Interval> bind(bounds, op->name, range);
        Stmt body = mutate(op->body);
        if (op->for_type == ForType::Serial) {
            body = prune(body);
        }
        return For::make(op->name, op->min, op->extent, op->for_type, op->partition_policy,
                         op->device_api, body);
    }

    SharedAccesses accesses_of(const Stmt &s) const {
        CollectSharedAccesses collect(shared, bounds);
        s.accept(&collect);
        return collect.accesses;
    }

    Stmt prune(const Stmt &body) const {
        std::vector<Stmt> sequence, kept;
        flatten(body, sequence);

        SharedAccesses before;
        for (size_t i = 0; i < sequence.size(); i++) {
            if (!is_barrier(sequence[i])) {
                before.add(accesses_of(sequence[i]));
                kept.push_back(sequence[i]);
                continue;
            }
            SharedAccesses after;
            size_t next = i + 1;
            for (; next < sequence.size() && !is_barrier(sequence[next]); next++) {
                after.add(accesses_of(sequence[next]));
            }
            const bool last = next == sequence.size();
            if (last || before.conflict(after)) {
                if (!before.writes.empty()) {
                    kept.push_back(instruction("proxy_fence", {0}));
                }
                kept.push_back(sequence[i]);
                before = SharedAccesses();
            }
        }
        return Block::make(kept);
    }

    std::set<std::string> shared;
    Scope<Interval> bounds;
};

}  // namespace

LoweringPass prune_barriers() {
    return std::make_unique<PruneBarriers>();
}

}  // namespace pagegrad
