/// The problems that GPUs are tested with.
#pragma once

#include "gpu_fixture.h"

#include <iosfwd>
#include <string>
#include <utility>
#include <vector>

namespace pagegrad::test {

struct GpuCase {
    std::string name;
    Dtypes dtypes;
    Geometry geometry;
    bool ordered = true;
};

std::ostream &operator<<(std::ostream &stream, const GpuCase &test);
std::string name_of(const testing::TestParamInfo<GpuCase> &info);

using Geometries = std::vector<std::pair<std::string, Geometry>>;

/// The same with the next head_dim that GPUs have.
Geometries for_gpus(Geometries list);
/// Those of the CPU's tests, and some with several tiles.
Geometries gpu_geometries();

std::vector<GpuCase> with_dtypes(const Geometries &geometries);
/// 16-bit inputs, `out` and dq in float32.
std::vector<GpuCase> with_float32_results(const Geometries &geometries);
std::vector<GpuCase> with_both_orders(const Geometries &geometries);

/// The problem of a case, made once.
const Problem &problem_of(const GpuCase &test);

}  // namespace pagegrad::test
