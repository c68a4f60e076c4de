/// A batch with random data, and the library's operations on it.
#pragma once

#include "block_table.h"
#include "geometries.h"
#include "memory.h"
#include "pagegrad/pagegrad.hpp"

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace pagegrad::bench {

enum class Operation { backward, forward, gather, scatter_add };

/// Operations as they are called in options and names.
inline const std::map<std::string, Operation> operations = {
    {"backward", Operation::backward},
    {"forward", Operation::forward},
    {"gather", Operation::gather},
    {"scatter_add", Operation::scatter_add}};

/// A tensor and its memory.
class Array {
public:
    Array() = default;
    /// Zeros.
    Array(Dtype dtype, std::initializer_list<int64_t> shape);

    /// Normal numbers instead; a few thousand different ones are enough for timing.
    void fill_normal(unsigned seed);

    int64_t bytes() const;
    Tensor view;

private:
    int64_t size() const;

    std::shared_ptr<Memory> memory;
};

class Batch {
public:
    /// Places the blocks at random and runs the forward, whose results the backward reads.
    Batch(const Geometry &geometry, Dtype dtype);

    /// Bytes of workspace.
    size_t workspace(Operation operation, const Execution &execution) const;

    void run(Operation operation, const Execution &execution);

    /// The kernel that dispatch chooses for the forward or backward.
    pagegrad_kernel_info kernel(Operation operation, const Execution &execution) const;

    /// Operations over visible pairs: 5 products of 2 D in the backward, 2 in the forward.
    double flops(Operation operation) const;

    /// The least that must be read and written.
    double bytes(Operation operation) const;

private:
    pagegrad_forward_args forward_args() const;
    pagegrad_backward_args backward_args() const;
    /// Dense keys of all sequences, for gather and scatter_add.
    const Tensor &dense(Dtype dtype);

    Geometry geometry;
    Dtype dtype;
    BlockTable table;
    Array q, dout, out, dq, lse, k, v, dk, dv, dense_rows;
    std::unique_ptr<Plan> plan;
};

}  // namespace pagegrad::bench
