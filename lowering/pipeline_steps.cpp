#include "ir_tools.h"
#include "passes.h"

#include <algorithm>
#include <functional>

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Overlaps the steps of a loop: stages run some steps ahead of their use, additions to memory one
/// step behind.
///
/// Why: copies then overlap with the products of earlier steps, and the products of a step with the
/// scores of the next one; one rendezvous of the thread block serves a whole step. From
///
///     for step: { far; near; barrier; issue; first; barrier; second; add; barrier }
///
/// with stages "far", two steps ahead, and "near", one step ahead, which may read what "far"
/// staged, and products issued asynchronously in "issue" and "second", the pass makes
///
///     far(0); far(1); wait; barrier; near(0); wait; barrier
///     for step: { if (step + 2 < steps) far(step + 2); if (step + 1 < steps) near(step + 1);
///                 wait for all products; issue; if (step > 0) add(step - 1); first;
///                 wait for the copies; barrier; second }
///     wait for all products; add(last step)
///
/// Valid when
///  - stages read nothing that the rest writes; what "near" reads of "far" has arrived, since it is
///    staged at least one step further ahead;
///  - rings have two slots more than a stage runs ahead: when a thread stages a step, others may
///    still have the products of the step before the current one under way, but no earlier ones,
///    since all have waited for those ahead of the barrier. The same holds for what "first" writes,
///    in a ring of two. Where all products of a step are waited for ahead of the barrier that ends
///    it ("drained", of loops without additions), the rings of tiles need only one slot more.
/// A loop without additions has no "issue", "second" and barrier before it: its products are under
/// way at the barrier that ends a step. ptxas allows no finer waits: it serialises products whose
/// sums are read in the next iteration after a wait for some of them only (C7514).
class PipelineSteps : public IRMutator {
public:
    explicit PipelineSteps(const StagingPlan &plan) : plan(plan) {
    }

private:
    using IRMutator::visit;
    using Stmts = std::vector<Stmt>;
    using Stages = std::map<int, Stmts, std::greater<>>;  ///< by steps ahead, farthest first

    /// Name of the Func that a statement produces; empty if it produces none.
    static std::string produced_func(const Stmt &s) {
        if (const IfThenElse *guard = s.as<IfThenElse>()) {
            return guard->else_case.defined() ? "" : produced_func(guard->then_case);
        }
        const ProducerConsumer *producer = s.as<ProducerConsumer>();
        return producer && producer->is_producer ? producer->name : "";
    }

    static bool is_fence(const Stmt &s) {
        const Evaluate *evaluate = s.as<Evaluate>();
        const Call *call = evaluate ? evaluate->value.as<Call>() : nullptr;
        return call && call->name == "proxy_fence";
    }

    /// What a loop body consists of.
    struct Parts {
        Stages stages;
        Stmt addition, barrier;
        Stmts issue, first, fence, second;
    };

    Parts take_apart(const For *op) const {
        Stmts body;
        flatten(op->body, body);
        Parts parts;
        size_t staged = 0;
        int barriers = 0;
        const size_t last = body.size() - 1;
        for (size_t i = 0; i <= last; i++) {
            const std::string func = produced_func(body[i]);
            if (plan.staged.count(func)) {
                require_lowering(barriers <= 1 && parts.issue.empty(), func, " is staged too late");
                parts.stages[plan.staged.at(func)].push_back(body[i]);
                staged++;
                barriers = 0;
            } else if (!func.empty() && func == plan.addition) {
                parts.addition = body[i];
            } else if (is_barrier(body[i])) {
                parts.barrier = body[i];
                barriers++;
            } else if (is_fence(body[i])) {
                parts.fence = {body[i]};
            } else if (!func.empty() && func == plan.issue) {
                parts.issue.push_back(body[i]);
            } else {
                (barriers <= 1 ? parts.first : parts.second).push_back(body[i]);
            }
        }
        require_lowering(staged == plan.staged.size(), "loop ", op->name, " has ", staged,
                         " stages instead of ", plan.staged.size());
        require_lowering(is_barrier(body[last]) && barriers == (plan.addition.empty() ? 2 : 3),
                         "loop ", op->name, " does not have its barriers: ", barriers);
        require_lowering(plan.addition.empty() || !plan.drained,
                         "sums are added while products of the next step run");
        require_lowering(plan.addition.empty() ||
                             (parts.issue.size() == 1 && parts.addition.defined()),
                         "loop ", op->name, " lacks the issue of products or the additions");
        return parts;
    }

    Stmt visit(const For *op) override {
        if (op->name != plan.loop) {
            return IRMutator::visit(op);
        }
        Parts parts = take_apart(op);
        const Expr step = Variable::make(Int(32), op->name), end = op->min + op->extent;
        Stmts before, inside,
            rendezvous{instruction("copy_async_commit", {0}), instruction("copy_async_wait", {0})};
        rendezvous.insert(rendezvous.end(), parts.fence.begin(), parts.fence.end());
        rendezvous.push_back(parts.barrier);
        const auto append = [](Stmts &to, const Stmts &from) {
            to.insert(to.end(), from.begin(), from.end());
        };
        for (auto &[ahead, group] : parts.stages) {
            // Guarded stages last: LLVM then finds the addresses that they share with the others.
            std::stable_partition(group.begin(), group.end(),
                                  [](const Stmt &s) { return s.as<IfThenElse>() == nullptr; });
            const Stmt stage = Block::make(group);
            const auto stage_of = [&](const Expr &number) {
                return IfThenElse::make(number < end, substitute(op->name, number, stage));
            };
            for (int number = 0; number < ahead; number++) {
                before.push_back(stage_of(op->min + number));
            }
            append(before, rendezvous);
            inside.push_back(stage_of(step + ahead));
        }
        const Stmt products_done = instruction("wgmma_wait", {0, 0});
        inside.push_back(products_done);
        append(inside, parts.issue);
        if (!plan.addition.empty()) {
            inside.push_back(
                IfThenElse::make(step > op->min, substitute(op->name, step - 1, parts.addition)));
        }
        append(inside, parts.first);
        if (plan.drained) {
            inside.push_back(products_done);
        }
        append(inside, rendezvous);
        append(inside, parts.second);
        before.push_back(For::make(op->name, op->min, op->extent, op->for_type,
                                   op->partition_policy, op->device_api, Block::make(inside)));
        before.push_back(products_done);
        if (!plan.addition.empty()) {
            before.push_back(
                IfThenElse::make(op->extent > 0, substitute(op->name, end - 1, parts.addition)));
        }
        return Block::make(before);
    }

    const StagingPlan plan;
};

}  // namespace

LoweringPass pipeline_steps(const StagingPlan &plan) {
    return std::make_unique<PipelineSteps>(plan);
}

}  // namespace pagegrad
