/// CPU schedule of the materialised backward.
#pragma once

#include "generators/backward_dense_funcs.h"

namespace pagegrad {

void schedule_backward_dense_cpu(BackwardDenseFuncs &f, int vector);

}  // namespace pagegrad
