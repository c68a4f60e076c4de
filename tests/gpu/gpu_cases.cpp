#include "gpu_cases.h"

#include "half_problem.h"
#include "tests/support/geometries.h"

#include <algorithm>
#include <map>
#include <ostream>

namespace pagegrad::test {

std::ostream &operator<<(std::ostream &stream, const GpuCase &test) {
    return stream << test.name << (test.ordered ? "" : ", unordered");
}

Geometries for_gpus(Geometries list) {
    for (auto &item : list) {
        item.second.head_dim = std::min((item.second.head_dim + 7) / 8 * 8, 256);
    }
    return list;
}

Geometries gpu_geometries() {
    Geometries list = for_gpus(geometries());
    list.emplace_back("block1056",
                      Geometry({65, 31}, {257, 127}).dim(128).heads(4, 1).block(1056).prefix(0));
    list.emplace_back(
        "several_tiles",
        Geometry({385, 129}, {385, 513}).dim(128).heads(4, 2).block(16).bottom_right());
    list.emplace_back("several_tiles_window",
                      Geometry({300, 257}, {500, 257}).dim(64).heads(2, 2).window(100, -1));
    list.emplace_back("several_tiles_dim160",
                      Geometry({193, 5}, {193, 260}).dim(160).heads(4, 2).block(16).bottom_right());
    list.emplace_back("several_tiles_dim256",
                      Geometry({130, 70}, {200, 70}).dim(256).heads(2, 1).window(100, 20));
    list.emplace_back("long_prefix", Geometry({33, 65, 17, 1, 40}, {433, 440, 417, 401, 440})
                                         .dim(64)
                                         .heads(8, 2)
                                         .bottom_right()
                                         .prefix(25));
    list.emplace_back("nested_prefixes",
                      Geometry({90, 90, 90}, {280, 280, 280})
                          .dim(128)
                          .heads(2, 1)
                          .block(64)
                          .bottom_right()
                          .table({{0, 1, 2, 3, 4}, {0, 1, 2, 5, 6}, {0, 7, 8, 9, 10}}));
    return list;
}

std::vector<GpuCase> with_dtypes(const Geometries &geometries) {
    std::vector<GpuCase> cases;
    for (const auto &[name, geometry] : geometries) {
        cases.push_back({name + "__bf16", PAGEGRAD_BFLOAT16, geometry});
        cases.push_back({name + "__f16", PAGEGRAD_FLOAT16, geometry});
    }
    return cases;
}

std::vector<GpuCase> with_float32_results(const Geometries &geometries) {
    std::vector<GpuCase> cases = with_dtypes(geometries);
    for (GpuCase &test : cases) {
        test.name += "_f32";
        test.dtypes.out = test.dtypes.dq = PAGEGRAD_FLOAT32;
    }
    return cases;
}

std::vector<GpuCase> with_both_orders(const Geometries &geometries) {
    std::vector<GpuCase> cases = with_dtypes(geometries), unordered = cases;
    for (GpuCase &test : unordered) {
        test.ordered = false;
        cases.push_back(test);
    }
    return cases;
}

const Problem &problem_of(const GpuCase &test) {
    static std::map<std::string, Problem> problems;
    auto found = problems.find(test.name);
    if (found == problems.end()) {
        found = problems.emplace(test.name, make_half_problem(test.geometry, test.dtypes)).first;
    }
    return found->second;
}

std::string name_of(const testing::TestParamInfo<GpuCase> &info) {
    return info.param.name + (info.param.ordered ? "" : "_unordered");
}

}  // namespace pagegrad::test
