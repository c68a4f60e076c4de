#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Shortens loops to the count given by `loop_trip_count`.
///
/// Why: the extent of an RDom may depend neither on the thread block nor on a load (here: how many
/// queries see a tile of keys), and `RDom::where` leaves symbolic extents that push per-thread
/// arrays out of registers.
///
/// Valid when the iterations cut off have no effect: the algorithm's promise. The count itself may
/// not depend on the loop.
class TrimLoops : public LetAwareMutator {
    using LetAwareMutator::visit;

    Expr visit(const Call *op) override {
        if (op->name != "loop_trip_count") {
            return LetAwareMutator::visit(op);
        }
        const Variable *loop = op->args[0].as<Variable>();
        require_lowering(loop, "loop_trip_count wants a loop variable, not ", op->args[0]);
        require_lowering(first_inner_let.count(loop->name), "loop_trip_count stands outside of ",
                         loop->name);
        Expr count = simplify(expand_lets(op->args[1], first_inner_let[loop->name]));
        require_lowering(!expr_uses_var(count, loop->name), "count depends on its loop: ", count);
        counts[loop->name] = count;
        return make_zero(op->type);
    }

    Stmt visit(const For *op) override {
        first_inner_let[op->name] = number_of_lets();
        Stmt body = mutate(op->body);
        first_inner_let.erase(op->name);
        Expr extent = op->extent;
        if (const auto count = counts.find(op->name); count != counts.end()) {
            extent = max(min(extent, count->second), 0);
        }
        return For::make(op->name, op->min, extent, op->for_type, op->partition_policy,
                         op->device_api, body);
    }

    std::map<std::string, Expr> counts;
    std::map<std::string, size_t> first_inner_let;  ///< of the loops around the node visited
};

}  // namespace

LoweringPass trim_loops() {
    return std::make_unique<TrimLoops>();
}

}  // namespace pagegrad
