/// What the lowering passes share.
#pragma once

#include "Halide.h"

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pagegrad {

/// Throws a message made of `parts` unless `condition` holds.
template<typename... Parts>
void require_lowering(bool condition, const Parts &...parts) {
    if (!condition) {
        std::ostringstream message;
        message << "tile lowering: ";
        (message << ... << parts);
        throw std::runtime_error(message.str());
    }
}

/// The value of a constant. Throws a message made of `parts` if the expression is none.
template<typename... Parts>
int constant_value(const Halide::Expr &e, const Parts &...parts) {
    const auto value = Halide::Internal::as_const_int(e);
    require_lowering(value.has_value(), parts...);
    return static_cast<int>(value.value_or(0));
}

inline bool is_thread_loop(const Halide::Internal::For *op) {
    return op->for_type == Halide::Internal::ForType::GPUThread ||
           op->for_type == Halide::Internal::ForType::GPULane;
}

inline bool is_barrier(const Halide::Internal::Stmt &s) {
    const auto *evaluate = s.as<Halide::Internal::Evaluate>();
    const auto *call = evaluate ? evaluate->value.as<Halide::Internal::Call>() : nullptr;
    return call && call->is_intrinsic(Halide::Internal::Call::gpu_thread_barrier);
}

/// A statement that is one instruction of the PTX expander.
inline Halide::Internal::Stmt instruction(const std::string &name,
                                          const std::vector<Halide::Expr> &args) {
    return Halide::Internal::Evaluate::make(
        Halide::Internal::Call::make(Halide::Int(32), name, args, Halide::Internal::Call::Extern));
}

/// The statements of nested blocks, one after the other.
inline void flatten(const Halide::Internal::Stmt &s,
                    std::vector<Halide::Internal::Stmt> &sequence) {
    if (const auto *block = s.as<Halide::Internal::Block>()) {
        flatten(block->first, sequence);
        flatten(block->rest, sequence);
    } else {
        sequence.push_back(s);
    }
}

/// A mutator that knows the lets around the node it visits.
class LetAwareMutator : public Halide::Internal::IRMutator {
protected:
    using IRMutator::visit;

    /// The expression with enclosing lets substituted, all or those from number `outermost` on.
    Halide::Expr expand_lets(Halide::Expr e, size_t outermost = 0) const {
        for (size_t i = lets.size(); i > outermost; i--) {
            if (expr_uses_var(e, lets[i - 1].first)) {
                e = substitute(lets[i - 1].first, lets[i - 1].second, e);
            }
        }
        return e;
    }

    /// The load that a marker's argument is or, after common subexpressions were pulled out, names.
    const Halide::Internal::Load *find_load(Halide::Expr e) const {
        for (size_t i = lets.size(); i > 0; i--) {
            const auto *variable = e.as<Halide::Internal::Variable>();
            if (variable && variable->name == lets[i - 1].first) {
                e = lets[i - 1].second;
            }
        }
        const auto *load = e.as<Halide::Internal::Load>();
        require_lowering(load, "not an element of a tile: ", e);
        return load;
    }

    size_t number_of_lets() const {
        return lets.size();
    }

    Halide::Internal::Stmt visit(const Halide::Internal::LetStmt *op) override {
        return visit_let<Halide::Internal::Stmt>(op);
    }

    Halide::Expr visit(const Halide::Internal::Let *op) override {
        return visit_let<Halide::Expr>(op);
    }

private:
    template<typename Body, typename LetOrLetStmt>
    Body visit_let(const LetOrLetStmt *op) {
        Halide::Expr value = mutate(op->value);
        lets.emplace_back(op->name, op->value);
        Body body = mutate(op->body);
        lets.pop_back();
        return LetOrLetStmt::make(op->name, value, body);
    }

    std::vector<std::pair<std::string, Halide::Expr>> lets;
};

}  // namespace pagegrad
