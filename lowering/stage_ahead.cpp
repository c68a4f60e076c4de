#include "ir_tools.h"
#include "passes.h"

#include <algorithm>
#include <functional>

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Runs the stages of each step some steps ahead of their use.
///
/// Why: the copies of the next tiles then overlap with the products of the current ones. The slots
/// come from `ring_buffer`; the pass moves only the time of the copies. With stages A, three steps
/// ahead, and B, one step ahead, where B may read what A staged:
///
///     A(0); A(1); A(2); commit; wait for all; barrier; B(0); commit
///     for step: { if (step + 3 < steps) A(step + 3); if (step + 1 < steps) B(step + 1); commit;
///                 wait for all but the last commit; barrier; rest }
///
/// Valid when the stages read nothing that the rest writes, and the body ends with a barrier, after
/// which nobody reads the slots that the next iteration fills: a ring has a slot more than the
/// number of steps ahead. What a stage B reads of A must have been waited for in an iteration
/// before: A is at least two steps further ahead than B.
class StageAhead : public IRMutator {
public:
    explicit StageAhead(const StagingPlan &plan) : plan(plan) {
    }

private:
    using IRMutator::visit;
    using Stages = std::vector<Stmt>;

    /// Name of the Func that a statement stages; empty if it stages none.
    std::string staged_func(const Stmt &s) const {
        if (const IfThenElse *guard = s.as<IfThenElse>()) {
            return guard->else_case.defined() ? "" : staged_func(guard->then_case);
        }
        const ProducerConsumer *producer = s.as<ProducerConsumer>();
        const bool staged =
            producer && producer->is_producer && plan.staged.count(producer->name) != 0;
        return staged ? producer->name : "";
    }

    Stmt visit(const For *op) override {
        if (op->name != plan.loop) {
            return IRMutator::visit(op);
        }
        std::vector<Stmt> body;
        flatten(op->body, body);
        require_lowering(is_barrier(body.back()), "loop ", op->name, " ends without a barrier");
        const Stmt barrier = body.back();

        // Stages by their distance, farthest first, and the barriers between them, which go.
        std::map<int, Stages, std::greater<>> stages;
        size_t rest = 0, found = 0;
        for (; rest < body.size(); rest++) {
            if (const std::string func = staged_func(body[rest]); !func.empty()) {
                stages[plan.staged.at(func)].push_back(body[rest]);
                found++;
            } else if (!is_barrier(body[rest])) {
                break;
            }
        }
        require_lowering(found == plan.staged.size(), "loop ", op->name, " begins with ", found,
                         " stages instead of ", plan.staged.size());
        require_lowering(is_barrier(body[rest - 1]), "nothing orders the staging of ", op->name);
        check_distances(stages);

        const Expr end = op->min + op->extent;
        std::vector<Stmt> before, inside;
        for (auto &[ahead, group] : stages) {
            // Guarded stages last: LLVM then finds the addresses that they share with the others.
            std::stable_partition(group.begin(), group.end(),
                                  [](const Stmt &s) { return s.as<IfThenElse>() == nullptr; });
            const Stmt stage = Block::make(group);
            const auto stage_of = [&, name = op->name](const Expr &step) {
                return IfThenElse::make(step < end, substitute(name, step, stage));
            };
            if (!before.empty()) {
                before.push_back(instruction("copy_async_wait", {0}));
                before.push_back(barrier);
            }
            for (int step = 0; step < ahead; step++) {
                before.push_back(stage_of(op->min + step));
            }
            before.push_back(instruction("copy_async_commit", {0}));
            inside.push_back(stage_of(Variable::make(Int(32), op->name) + ahead));
        }
        inside.push_back(instruction("copy_async_commit", {0}));
        inside.push_back(instruction("copy_async_wait", {1}));
        inside.insert(inside.end(), body.begin() + rest - 1, body.end());
        before.push_back(For::make(op->name, op->min, op->extent, op->for_type,
                                   op->partition_policy, op->device_api, Block::make(inside)));
        return Block::make(before);
    }

    void check_distances(const std::map<int, Stages, std::greater<>> &stages) const {
        int farther = 0;
        for (const auto &group : stages) {
            require_lowering(farther == 0 || farther >= group.first + 2, "stages ", farther,
                             " and ", group.first, " steps ahead are too close");
            farther = group.first;
        }
    }

    const StagingPlan plan;
};

}  // namespace

LoweringPass stage_ahead(const StagingPlan &plan) {
    return std::make_unique<StageAhead>(plan);
}

}  // namespace pagegrad
