/// Ways to make a valid call invalid: one for each thing that a descriptor can say wrong.
#pragma once

#include "random_case.h"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace pagegrad::test {

/// A valid call of every function, to be spoilt.
struct Attempt {
    explicit Attempt(const Problem &problem, const Options &options);

    PagedCall call;
    /// Copies of what `desc` points to.
    std::vector<int32_t> query_length, query_start, kv_length, table;
    pagegrad_plan_desc desc;
    GuardedTensor rows;  ///< of all sequences, gathered
    pagegrad_tensor pool, dense;

    pagegrad_status create_plan(pagegrad_error *error);
    pagegrad_status forward(pagegrad_error *error);
    pagegrad_status forward_workspace(pagegrad_error *error);
    pagegrad_status backward(pagegrad_error *error);
    pagegrad_status backward_workspace(pagegrad_error *error);
    pagegrad_status gather(pagegrad_error *error);
    pagegrad_status scatter_add(pagegrad_error *error);

    /// All memory that a call could write to.
    std::vector<std::vector<uint16_t>> bits() const;
};

using Function = pagegrad_status (Attempt::*)(pagegrad_error *error);

/// What a spoilt call is refused with.
struct Expected {
    std::string argument;  ///< the message begins with its name
    pagegrad_status status = PAGEGRAD_INVALID_ARGUMENT;
};

struct Breakage {
    std::string name;
    std::vector<Function> functions;  ///< that must refuse
    /// Nothing where the problem has nothing to spoil in this way.
    std::function<std::optional<Expected>(Attempt &, Random &)> spoil;
};

const std::vector<Breakage> &breakages();

/// Breaks a random problem in one way, both from the seed, and expects what Expected says. Calls
/// run on the CPU or, as far as they concern it, on a GPU.
void expect_refusals(uint64_t seed, const pagegrad_execution *gpu = nullptr);

}  // namespace pagegrad::test
