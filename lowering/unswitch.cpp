#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

bool is_marker(const Call *op) {
    return op->name == "true_if";
}

/// Finds the condition of the markers, in terms of what is known outside of the statement visited.
class FindMarkers : public IRVisitor {
public:
    Expr condition, other;  ///< undefined if there is no marker, or no second condition

private:
    using IRVisitor::visit;

    void visit(const Call *op) override {
        IRVisitor::visit(op);
        if (!is_marker(op)) {
            return;
        }
        Expr found = op->args[0];
        for (auto let = lets.rbegin(); let != lets.rend(); ++let) {
            found = substitute(let->first, let->second, found);
        }
        if (!condition.defined()) {
            condition = found;
        } else if (!equal(condition, found)) {
            other = found;
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
        lets.emplace_back(op->name, op->value);
        op->body.accept(this);
        lets.pop_back();
    }

    std::vector<std::pair<std::string, Expr>> lets;
};

template<typename StmtOrExpr>
FindMarkers find_markers(const StmtOrExpr &s) {
    FindMarkers find;
    s.accept(&find);
    return find;
}

template<typename StmtOrExpr>
bool has_markers(const StmtOrExpr &s) {
    return find_markers(s).condition.defined();
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
        const FindMarkers markers = find_markers(s);
        if (!markers.condition.defined()) {
            return s;
        }
        const Block *block = s.as<Block>();
        const bool splits_further =
            block && !(has_markers(block->first) && has_markers(block->rest));
        const LetStmt *let = s.as<LetStmt>();
        const bool in_value = let && has_markers(let->value);
        if (!splits_further && (block || in_value || s.as<Store>() || s.as<Evaluate>())) {
            if (block && markers.other.defined()) {
                return IRMutator::mutate(s);  // of two stages
            }
            require_lowering(!markers.other.defined(),
                             "two conditions in one statement: ", markers.condition, " and ",
                             markers.other);
            return IfThenElse::make(markers.condition, simplify(ReplaceMarkers(true).mutate(s)),
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
