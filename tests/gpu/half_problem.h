/// Problems whose inputs a 16-bit type holds exactly, with the errors that its arithmetic may make.
#pragma once

#include "tests/support/problem.h"

namespace pagegrad::test {

/// A problem with random data. The sizes of its expected results include the rounding of
/// probabilities and score gradients to the inputs' type, and of `out` and dq to theirs; sums are
/// in float32.
Problem make_half_problem(const Geometry &geometry, const Dtypes &dtypes);

}  // namespace pagegrad::test
