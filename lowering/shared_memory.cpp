/// Where shared memory begins, and addresses in it.
#include "ir_tools.h"
#include "passes.h"

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Moves everything in shared memory up by 1 KiB.
///
/// Why: Halide addresses a thread block's shared memory from zero, where the driver keeps 1 KiB for
/// itself on compute capability 8.0 and later (CUDA programming guide, "shared memory capacity per
/// thread block").
///
/// Valid anywhere: the allocation grows by what it moves, so that all accesses stay within it
/// wherever the driver puts it.
class ShiftSharedMemory : public IRMutator {
    using IRMutator::visit;

    static constexpr int shift = 1024;

    static int elements(const Type &type) {
        return shift / type.element_of().bytes();
    }

    Stmt visit(const Allocate *op) override {
        if (op->memory_type != MemoryType::GPUShared) {
            return IRMutator::visit(op);
        }
        shared.insert(op->name);
        std::vector<Expr> extents = op->extents;
        require_lowering(extents.size() == 1, "shared memory has dimensions: ", op->name);
        extents[0] += elements(op->type);
        return Allocate::make(op->name, op->type, op->memory_type, extents, op->condition,
                              mutate(op->body));
    }

    Expr visit(const Load *op) override {
        if (!shared.count(op->name)) {
            return IRMutator::visit(op);
        }
        return Load::make(op->type, op->name, moved(op->index, op->type), op->image, op->param,
                          mutate(op->predicate), op->alignment);
    }

    Stmt visit(const Store *op) override {
        if (!shared.count(op->name)) {
            return IRMutator::visit(op);
        }
        return Store::make(op->name, mutate(op->value), moved(op->index, op->value.type()),
                           op->param, mutate(op->predicate), op->alignment);
    }

    Expr moved(const Expr &index, const Type &type) {
        return simplify(mutate(index) + make_const(index.type(), elements(type)));
    }

    std::set<std::string> shared;
};

/// Replaces `shared_address(first, last)` by the byte address of `first` and drops `keep_alive`.
///
/// Why: instructions on tiles take addresses, which Halide's language cannot express.
///
/// Valid: shared memory is one array that begins at address zero. Halide has placed the allocations
/// by now, and the loads in the markers have made it keep the elements alive.
class ResolveSharedAddresses : public LetAwareMutator {
    using LetAwareMutator::visit;

    Expr visit(const Call *op) override {
        if (op->name == "keep_alive") {
            return make_zero(op->type);
        }
        if (op->name != "shared_address") {
            return LetAwareMutator::visit(op);
        }
        const Load *load = find_load(op->args[0]);
        check_alignment(expand_lets(load->index * load->type.bytes()));
        return mutate(load->index) * load->type.bytes();
    }

    /// The first thread and step name the beginning of a tile, or of a part of it.
    static void check_alignment(const Expr &address) {
        class FirstThread : public IRMutator {
            using IRMutator::visit;
            Expr visit(const Variable *op) override {
                return make_zero(op->type);
            }
        };
        const int begin = constant_value(simplify(FirstThread().mutate(address)),
                                         "a tile begins anywhere: ", address);
        require_lowering(begin % swizzle_bytes == 0, "a tile does not begin at a multiple of ",
                         swizzle_bytes, " bytes: ", address);
    }

    static constexpr int swizzle_bytes = 1024;
};

}  // namespace

LoweringPass shift_shared_memory() {
    return std::make_unique<ShiftSharedMemory>();
}

LoweringPass resolve_shared_addresses() {
    return std::make_unique<ResolveSharedAddresses>();
}

}  // namespace pagegrad
