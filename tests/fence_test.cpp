// No kernel touches a byte outside its tensors: each begins or ends at a page that is not there.
#include "tests/support/fenced_memory.h"
#include "tests/support/problem.h"
#include "tests/support/rounding.h"

#include <cstring>
#include <deque>
#include <tuple>

namespace pagegrad::test {
namespace {

using Edge = FencedMemory::Edge;

std::size_t bytes_of(const pagegrad_tensor &tensor) {
    std::size_t bytes = element_size(static_cast<pagegrad_dtype>(tensor.dtype));
    for (int dim = 0; dim < tensor.rank; dim++) {
        bytes *= tensor.shape[dim];
    }
    return bytes;
}

/// Contiguous tensors of a call, moved to fences.
class Fences {
public:
    explicit Fences(Edge edge) : edge_(edge) {
    }
    void move(pagegrad_tensor &tensor) {
        if (tensor.data == nullptr) {
            return;
        }
        FencedMemory &memory = memory_.emplace_back(bytes_of(tensor), edge_);
        std::memcpy(memory.data(), tensor.data, bytes_of(tensor));
        tensor.data = memory.data();
    }
    template<typename... Tensors>
    void move_all(Tensors &...tensors) {
        (move(tensors), ...);
    }

private:
    Edge edge_;
    std::deque<FencedMemory> memory_;
};

void copy_back(const pagegrad_tensor &from, const pagegrad_tensor &to) {
    std::memcpy(to.data, from.data, bytes_of(from));
}

class Fenced : public testing::TestWithParam<std::tuple<KernelCase, Edge>> {
protected:
    const KernelCase &test = std::get<0>(GetParam());
    Fences fences{std::get<1>(GetParam())};
    PagedCall call{problem_of(test), options()};

private:
    Options options() const {
        Options options;
        options.kernel = test.kernel.name;
        return options;
    }
};

class FencedForward : public Fenced {};

TEST_P(FencedForward, stays_inside) {
    pagegrad_forward_args &args = call.forward_args;
    fences.move_all(args.q, args.k_pool, args.v_pool, args.out, args.lse);
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    copy_back(args.out, call.out);
    copy_back(args.lse, call.lse);
    call.expect_forward();
}

class FencedBackward : public Fenced {};

TEST_P(FencedBackward, stays_inside) {
    pagegrad_backward_args &args = call.backward_args;
    fences.move_all(args.dout, args.q, args.k_pool, args.v_pool, args.out, args.lse, args.dlse,
                    args.dq, args.dk_pool, args.dv_pool);
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    copy_back(args.dq, call.dq);
    copy_back(args.dk_pool, call.dk_pool);
    copy_back(args.dv_pool, call.dv_pool);
    call.expect_backward();
}

/// Head dims that fill no vector, and those with kernels of their own.
std::vector<std::pair<std::string, Geometry>> fenced_geometries() {
    std::vector<std::pair<std::string, Geometry>> list;
    for (const int dim : {1, 7, 46, 63, 64, 100, 128, 129}) {
        list.emplace_back("dim" + std::to_string(dim), Geometry({17, 1, 9}, {33, 5, 20})
                                                           .dim(dim)
                                                           .heads(6, 2)
                                                           .block(5)
                                                           .bottom_right()
                                                           .dlse()
                                                           .half());
    }
    return list;
}

std::string fenced_name(const testing::TestParamInfo<std::tuple<KernelCase, Edge>> &info) {
    const KernelCase &test = std::get<0>(info.param);
    return test.name + "__" + label(test.kernel) +
           (std::get<1>(info.param) == Edge::end ? "__end" : "__begin");
}

INSTANTIATE_TEST_SUITE_P(, FencedForward,
                         testing::Combine(testing::ValuesIn(with_kernels(fenced_geometries(),
                                                                         {"forward"})),
                                          testing::Values(Edge::begin, Edge::end)),
                         fenced_name);

INSTANTIATE_TEST_SUITE_P(, FencedBackward,
                         testing::Combine(testing::ValuesIn(with_kernels(
                                              fenced_geometries(), {"backward", "backward_dense"})),
                                          testing::Values(Edge::begin, Edge::end)),
                         fenced_name);

/// max_blocks exactly what the longest sequence needs, the last entry at the edge.
TEST(FencedTable, may_end_with_its_last_used_entry) {
    const Problem problem = make_problem(Geometry({3, 2}, {17, 33}).dim(8));
    PagedCall call(problem);
    pagegrad_plan_desc desc = call.desc;
    const std::vector<int32_t> exact = {0, 1, -1, 2, 3, 4};
    FencedMemory table(exact.size() * sizeof(int32_t), Edge::end);
    std::memcpy(table.data(), exact.data(), exact.size() * sizeof(int32_t));
    desc.block_table = static_cast<const int32_t *>(table.data());
    desc.block_table_stride = desc.max_blocks = 3;
    pagegrad_plan *plan = nullptr;
    EXPECT_EQ(pagegrad_plan_create(&desc, &plan, nullptr), PAGEGRAD_OK);
    pagegrad_plan_destroy(plan);
    desc.block_table_stride = 100;  // the rest of the last row is not there
    desc.num_sequences = 1;
    desc.block_table = static_cast<const int32_t *>(table.data()) + 4;
    EXPECT_EQ(pagegrad_plan_create(&desc, &plan, nullptr), PAGEGRAD_OK);
    pagegrad_plan_destroy(plan);
}

}  // namespace
}  // namespace pagegrad::test
