#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Turns the stores of a staged Func into asynchronous copies from global to shared memory.
///
/// Why: a copy holds no registers while it is under way.
///
/// Valid for a store of an unmodified global value of 4, 8 or 16 contiguous bytes, which
/// `value_or_zero` may make conditional, and when a commit and a wait precede the use, which
/// `stage_ahead` provides for tiles of the loop and of the block alike.
class CopyAsynchronously : public IRMutator {
public:
    explicit CopyAsynchronously(const StagingPlan &plan) : plan(plan) {
    }

private:
    using IRMutator::visit;

    Stmt visit(const ProducerConsumer *op) override {
        if (!op->is_producer) {
            return IRMutator::visit(op);
        }
        bool copied = plan.copied.count(op->name) != 0;
        std::swap(copying, copied);
        Stmt s = IRMutator::visit(op);
        std::swap(copying, copied);
        return s;
    }

    Stmt visit(const Store *op) override {
        if (!copying) {
            return IRMutator::visit(op);
        }
        Expr value = op->value, condition;
        if (const Call *call = value.as<Call>(); call && call->name == "value_or_zero") {
            value = call->args[0];
            condition = scalar_of(call->args[1]);
        }
        const Load *load = value.as<Load>();
        require_lowering(load, "not a plain copy: ", op->value);
        const int bytes = load->type.bytes() * load->type.lanes();
        require_lowering(bytes == 4 || bytes == 8 || bytes == 16,
                         "copies have 4, 8 or 16 bytes, not ", bytes, ": ", op->value);
        Expr to = first_of(op->index) * load->type.element_of().bytes();
        std::vector<Expr> args{to, scalar_load(load)};
        std::string name = "copy_async_" + std::to_string(bytes);
        if (condition.defined()) {
            name += "_or_zero";
            args.push_back(cast<int>(condition));
        }
        return instruction(name, args);
    }

    static Expr scalar_of(const Expr &e) {
        const Broadcast *broadcast = e.as<Broadcast>();
        return broadcast ? broadcast->value : e;
    }

    static Expr first_of(const Expr &index) {
        const Ramp *ramp = index.as<Ramp>();
        require_lowering(index.type().is_scalar() || (ramp && is_const_one(ramp->stride)),
                         "a copy is not contiguous: ", index);
        return ramp ? ramp->base : index;
    }

    /// Extern calls take no vectors: a vector is one number, and aligned.
    static Expr scalar_load(const Load *load) {
        if (load->type.is_scalar()) {
            return load;
        }
        return Load::make(UInt(load->type.bits() * load->type.lanes()), load->name,
                          simplify(first_of(load->index) / load->type.lanes()), load->image,
                          load->param, const_true(), ModulusRemainder());
    }

    const StagingPlan plan;
    bool copying = false;
};

}  // namespace

LoweringPass copy_asynchronously(const StagingPlan &plan) {
    return std::make_unique<CopyAsynchronously>(plan);
}

}  // namespace pagegrad
