#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Makes register allocations of a thread block private arrays of each thread.
///
/// Why: a stage computed at block level (so that two later stages with thread loops of their own
/// can read it) gets an allocation indexed by thread, which Halide 21 would place in memory.
///
/// Valid when every index is the number of the thread times a stride plus a constant less than the
/// stride: each thread then meets only its own elements. Checked here.
class PrivatizeRegisters : public LetAwareMutator {
    using LetAwareMutator::visit;

    struct Array {
        int size = 0;
        int stride = 0;
    };

    Stmt visit(const For *op) override {
        if (!is_thread_loop(op)) {
            return LetAwareMutator::visit(op);
        }
        Interval ids(op->min, simplify(op->min + op->extent - 1));
        ScopedBinding<Interval> bind(thread_ids, op->name, ids);
        thread_loops.push_back(op);
        Stmt s = LetAwareMutator::visit(op);
        thread_loops.pop_back();
        return s;
    }

    Stmt visit(const Allocate *op) override {
        if (op->memory_type != MemoryType::Register || !thread_loops.empty()) {
            return LetAwareMutator::visit(op);
        }
        arrays[op->name] = Array();
        Stmt body = mutate(op->body);
        const Array array = arrays[op->name];
        require_lowering(array.size <= array.stride, "threads share elements of ", op->name);
        return Allocate::make(op->name, op->type, op->memory_type, {array.size}, op->condition,
                              body);
    }

    /// The expression for the first thread of the block, or for the one after it.
    Expr for_thread(int number, Expr e) const {
        for (const For *loop : thread_loops) {
            e = substitute(loop->name, loop == thread_loops.back() ? number : 0, e);
        }
        return simplify(e);
    }

    Expr thread_number() const {
        Expr number = 0;
        for (const For *loop : thread_loops) {
            number = number * loop->extent + Variable::make(Int(32), loop->name);
        }
        return number;
    }

    Expr private_index(const std::string &name, const Expr &index) {
        const Expr full = expand_lets(index), own = for_thread(0, full);
        const std::string problem = "index does not separate by threads: ";
        const int element = constant_value(own, problem, name, " at ", full);
        const int stride =
            constant_value(simplify(for_thread(1, full) - own), problem, name, " at ", full);
        require_lowering(can_prove(full == thread_number() * stride + own, thread_ids), problem,
                         name, " at ", full);
        Array &array = arrays[name];
        require_lowering(array.size == 0 || array.stride == stride, "strides of ", name, " differ");
        array.stride = stride;
        array.size = std::max(array.size, element + 1);
        return own;
    }

    Expr visit(const Load *op) override {
        if (!arrays.count(op->name)) {
            return LetAwareMutator::visit(op);
        }
        return Load::make(op->type, op->name, private_index(op->name, op->index), op->image,
                          op->param, op->predicate, ModulusRemainder());
    }

    Stmt visit(const Store *op) override {
        if (!arrays.count(op->name)) {
            return LetAwareMutator::visit(op);
        }
        return Store::make(op->name, mutate(op->value), private_index(op->name, op->index),
                           op->param, op->predicate, ModulusRemainder());
    }

    std::vector<const For *> thread_loops;  ///< around the node visited, outermost first
    Scope<Interval> thread_ids;
    std::map<std::string, Array> arrays;
};

}  // namespace

LoweringPass privatize_registers() {
    return std::make_unique<PrivatizeRegisters>();
}

}  // namespace pagegrad
