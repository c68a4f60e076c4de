#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

bool is_marker(const Call *op) {
    return op->name == "true_if";
}

class FindMarkers : public IRVisitor {
public:
    Expr condition;

private:
    using IRVisitor::visit;

    void visit(const Call *op) override {
        IRVisitor::visit(op);
        if (is_marker(op)) {
            require_lowering(!condition.defined() || equal(condition, op->args[0]),
                             "two conditions in one statement: ", condition, " and ", op->args[0]);
            condition = op->args[0];
        }
    }
};

/// Condition of the markers in a statement or expression; undefined if there are none.
template<typename StmtOrExpr>
Expr condition_in(const StmtOrExpr &s) {
    FindMarkers find;
    s.accept(&find);
    return find.condition;
}

/// Replaces `true_if(condition, value)` by true, or by the value.
class ReplaceMarkers : public IRMutator {
public:
    explicit ReplaceMarkers(bool known_true) : known_true(known_true) {
    }

private:
    using IRMutator::visit;

    Expr visit(const Call *op) override {
        if (!is_marker(op)) {
            return IRMutator::visit(op);
        }
        return known_true ? const_true() : mutate(op->args[1]);
    }

    const bool known_true;
};

/// Makes two versions of statements that contain `true_if`: with and without the test.
///
/// Why: masks cut through few tiles, and their tests cost a third of the element-wise work.
///
/// Valid anywhere: the condition is evaluated once, ahead of the smallest statement that contains
/// all markers of a sequence, and decides which version runs.
class Unswitch : public IRMutator {
public:
    using IRMutator::mutate;

    Stmt mutate(const Stmt &s) override {
        if (!condition_in(s).defined()) {
            return s;
        }
        const Block *block = s.as<Block>();
        const bool splits_further =
            block && !(condition_in(block->first).defined() && condition_in(block->rest).defined());
        const LetStmt *let = s.as<LetStmt>();
        const bool in_value = let && condition_in(let->value).defined();
        if (!splits_further && (block || in_value || s.as<Store>() || s.as<Evaluate>())) {
            return IfThenElse::make(condition_in(s), simplify(ReplaceMarkers(true).mutate(s)),
                                    ReplaceMarkers(false).mutate(s));
        }
        return IRMutator::mutate(s);
    }
};

}  // namespace

LoweringPass unswitch() {
    return std::make_unique<Unswitch>();
}

}  // namespace pagegrad
