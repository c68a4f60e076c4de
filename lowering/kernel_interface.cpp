/// Passes that leave a kernel with nothing but its own parameters.
#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Drops the stores to the output, but not the effects of the values stored.
///
/// Why: a Halide pipeline has an output. A tile kernel adds to its results by instructions.
class DiscardOutput : public IRMutator {
public:
    explicit DiscardOutput(const std::string &output) : output(output) {
    }

private:
    using IRMutator::visit;

    Stmt visit(const Store *op) override {
        return op->name == output ? Evaluate::make(mutate(op->value)) : IRMutator::visit(op);
    }

    const std::string output;
};

class UsesHandle : public IRVisitor {
public:
    bool found = false;

private:
    using IRVisitor::visit;

    void visit(const Variable *op) override {
        found |= op->type.is_handle();
    }
};

/// Computes what Halide has lifted out of a kernel inside of it again.
///
/// Why: the runtime launches kernels itself and knows their arguments by name; it knows nothing of
/// values that Halide would compute ahead of the launch.
///
/// Valid: the values depend on scalars alone. Those that are read from a buffer's description are
/// the parameters and stay outside.
class SinkHostValues : public IRMutator {
    using IRMutator::visit;

    Stmt visit(const LetStmt *op) override {
        lets.emplace_back(op->name, op->value);
        Stmt s = IRMutator::visit(op);
        lets.pop_back();
        return s;
    }

    Stmt visit(const For *op) override {
        if (op->for_type != ForType::GPUBlock) {
            return IRMutator::visit(op);
        }
        Stmt body = op->body;
        for (auto let = lets.rbegin(); let != lets.rend(); ++let) {
            UsesHandle handle;
            let->second.accept(&handle);
            if (!handle.found && stmt_uses_var(body, let->first)) {
                body = LetStmt::make(let->first, let->second, body);
            }
        }
        return For::make(op->name, op->min, op->extent, op->for_type, op->partition_policy,
                         op->device_api, body);
    }

    std::vector<std::pair<std::string, Expr>> lets;
};

}  // namespace

LoweringPass discard_output(const std::string &output) {
    return std::make_unique<DiscardOutput>(output);
}

LoweringPass sink_host_values() {
    return std::make_unique<SinkHostValues>();
}

}  // namespace pagegrad
