// Bad input of every call: the status, a message that names argument and value, outputs untouched.
// What a plan refuses is in plan_test.cpp.
#include "pagegrad/pagegrad.hpp"
#include "tests/support/invariance.h"
#include "tests/support/problem.h"
#include "tests/support/rounding.h"

#include <cmath>
#include <functional>
#include <memory>
#include <ostream>

namespace pagegrad::test {
namespace {

struct Refusal {
    std::string name;
    std::vector<Pass> passes;
    std::function<void(PagedCall &)> spoil;
    std::vector<std::string> message;  ///< parts
    pagegrad_dtype dtype = PAGEGRAD_FLOAT32;
};

std::ostream &operator<<(std::ostream &stream, const Refusal &refusal) {
    return stream << refusal.name;
}

const std::vector<Pass> both = {&PagedCall::forward, &PagedCall::backward};
const std::vector<Pass> forward = {&PagedCall::forward};
const std::vector<Pass> backward = {&PagedCall::backward};

/// Spoils arguments that forward and backward have in common.
template<typename Spoil>
std::function<void(PagedCall &)> arguments(Spoil spoil) {
    return [spoil](PagedCall &call) {
        spoil(call.forward_args);
        spoil(call.backward_args);
    };
}

template<typename Spoil>
std::function<void(PagedCall &)> execution(Spoil spoil) {
    return [spoil](PagedCall &call) { spoil(call.execution); };
}

void misalign(pagegrad_tensor &tensor) {
    tensor.data = static_cast<char *>(tensor.data) + 1;
}

std::vector<Refusal> common_refusals() {
    return {
        {"args_size",
         both,
         arguments([](auto &args) { args.struct_size = 0; }),
         {"struct_size", "0"}},
        {"scale_nan", both, arguments([](auto &args) { args.scale = NAN; }), {"scale", "nan"}},
        {"scale_infinite",
         both,
         arguments([](auto &args) { args.scale = INFINITY; }),
         {"scale", "inf"}},
        {"q_null", both, arguments([](auto &args) { args.q.data = nullptr; }), {"q"}},
        {"q_absent", both, arguments([](auto &args) { args.q = {}; }), {"q"}},
        {"q_rank", both, arguments([](auto &args) { args.q.rank = 2; }), {"q", "rank", "2"}},
        {"q_rank_wild", both, arguments([](auto &args) { args.q.rank = 77; }), {"q", "rank", "77"}},
        {"q_dtype", both, arguments([](auto &args) { args.q.dtype = 99; }), {"q", "dtype", "99"}},
        {"q_heads", both, arguments([](auto &args) { args.q.shape[1] = 11; }), {"q", "11"}},
        {"q_head_dim", both, arguments([](auto &args) { args.q.shape[2] = 63; }), {"q", "63"}},
        {"q_too_few_tokens",
         both,
         arguments([](auto &args) { args.q.shape[0] = 21; }),
         {"q", "21"}},
        {"q_negative_shape",
         both,
         arguments([](auto &args) { args.q.shape[0] = -5; }),
         {"q", "-5"}},
        {"q_last_stride",
         both,
         arguments([](auto &args) { args.q.stride[2] = 2; }),
         {"q", "stride", "2"}},
        {"q_negative_stride",
         both,
         arguments([](auto &args) { args.q.stride[0] = -128; }),
         {"q", "stride", "-128"}},
        {"q_too_many_tokens",
         both,
         arguments([](auto &args) { args.q.shape[0] = int64_t{1} << 31; }),
         {"q.shape[0] is 2147483648, expected at most 2147483647"}},
        {"q_beyond_all_memory",
         both,
         arguments([](auto &args) { args.q.shape[0] = args.q.stride[0] = INT32_MAX; }),
         {"q spans", "2^56 bytes"}},
        {"q_misaligned", both, arguments([](auto &args) { misalign(args.q); }), {"q", "align"}},
        {"k_pool_null",
         both,
         arguments([](auto &args) { args.k_pool.data = nullptr; }),
         {"k_pool"}},
        {"k_pool_rank",
         both,
         arguments([](auto &args) { args.k_pool.rank = 3; }),
         {"k_pool", "rank", "3"}},
        {"k_pool_dtype",
         both,
         arguments([](auto &args) { args.k_pool.dtype = -1; }),
         {"k_pool", "dtype", "-1"}},
        {"k_pool_blocks",
         both,
         arguments([](auto &args) { args.k_pool.shape[0] = 3; }),
         {"k_pool", "3"}},
        {"k_pool_block_size",
         both,
         arguments([](auto &args) { args.k_pool.shape[1] = 15; }),
         {"k_pool", "15"}},
        {"k_pool_heads",
         both,
         arguments([](auto &args) { args.k_pool.shape[2] = 13; }),
         {"k_pool", "13"}},
        {"k_pool_misaligned",
         both,
         arguments([](auto &args) { misalign(args.k_pool); }),
         {"k_pool", "align"}},
        {"v_pool_null",
         both,
         arguments([](auto &args) { args.v_pool.data = nullptr; }),
         {"v_pool"}},
        {"v_pool_head_dim",
         both,
         arguments([](auto &args) { args.v_pool.shape[3] = 65; }),
         {"v_pool", "65"}},
        {"v_pool_last_stride",
         both,
         arguments([](auto &args) { args.v_pool.stride[3] = 0; }),
         {"v_pool", "stride", "0"}},
        {"out_null", both, arguments([](auto &args) { args.out.data = nullptr; }), {"out"}},
        {"out_tokens", both, arguments([](auto &args) { args.out.shape[0] += 100; }), {"out"}},
        {"out_rank", both, arguments([](auto &args) { args.out.rank = 4; }), {"out", "4"}},
        {"lse_dtype",
         both,
         arguments([](auto &args) { args.lse.dtype = PAGEGRAD_BFLOAT16; }),
         {"lse", "dtype"}},
        {"lse_rank", both, arguments([](auto &args) { args.lse.rank = 3; }), {"lse", "rank", "3"}},
        {"lse_heads", both, arguments([](auto &args) { args.lse.shape[1] = 19; }), {"lse", "19"}},
        {"lse_null", both, arguments([](auto &args) { args.lse.data = nullptr; }), {"lse"}},
    };
}

/// A number for each head of small_problem().
pagegrad_tensor per_head(float first, float second) {
    static std::vector<std::unique_ptr<float[]>> memory;
    memory.emplace_back(new float[2]{first, second});
    return Tensor(memory.back().get(), {2});
}

std::vector<Refusal> option_refusals() {
    return {
        {"softcap_negative",
         both,
         arguments([](auto &args) { args.softcap = -1; }),
         {"softcap is -1", "positive"}},
        {"softcap_nan",
         both,
         arguments([](auto &args) { args.softcap = NAN; }),
         {"softcap is nan"}},
        {"softcap_infinite",
         both,
         arguments([](auto &args) { args.softcap = INFINITY; }),
         {"softcap is inf", "finite"}},
        {"alibi_slopes_heads",
         both,
         arguments([](auto &args) {
             args.alibi_slopes = per_head(1, 1);
             args.alibi_slopes.shape[0] = 1;
         }),
         {"alibi_slopes.shape[0] is 1", "2", "num_heads"}},
        {"alibi_slopes_rank",
         both,
         arguments([](auto &args) {
             args.alibi_slopes = per_head(1, 1);
             args.alibi_slopes.rank = 2;
         }),
         {"alibi_slopes.rank is 2"}},
        {"alibi_slopes_infinite",
         both,
         arguments([](auto &args) { args.alibi_slopes = per_head(1, -INFINITY); }),
         {"alibi_slopes[1] is -inf"}},
        {"sinks_dtype",
         both,
         arguments([](auto &args) {
             args.sinks = per_head(1, 1);
             args.sinks.dtype = PAGEGRAD_FLOAT16;
         }),
         {"sinks.dtype is 2"}},
        {"sinks_null",
         both,
         arguments([](auto &args) {
             args.sinks = per_head(1, 1);
             args.sinks.data = nullptr;
         }),
         {"sinks.data is null"}},
        {"sinks_nan",
         both,
         arguments([](auto &args) { args.sinks = per_head(NAN, 1); }),
         {"sinks[0] is nan", "-inf"}},
        {"sinks_infinite",
         both,
         arguments([](auto &args) { args.sinks = per_head(1, INFINITY); }),
         {"sinks[1] is inf"}},
        {"dsinks_without_sinks",
         backward,
         [](PagedCall &call) { call.backward_args.dsinks = per_head(1, 1); },
         {"dsinks", "without sinks"}},
        {"dalibi_slopes_heads",
         backward,
         [](PagedCall &call) {
             call.backward_args.alibi_slopes = per_head(1, 1);
             call.backward_args.dalibi_slopes = per_head(1, 1);
             call.backward_args.dalibi_slopes.shape[0] = 3;
         },
         {"dalibi_slopes.shape[0] is 3"}},
        {"dsinks_in_place",
         backward,
         [](PagedCall &call) {
             call.backward_args.sinks = call.backward_args.dsinks = per_head(1, 1);
         },
         {"dsinks.data", "sinks"}},
    };
}

std::vector<Refusal> output_refusals() {
    return {
        {"out_overlaps",
         forward,
         [](PagedCall &call) { call.forward_args.out.stride[0] = 0; },
         {"out", "stride"}},
        {"lse_overlaps",
         forward,
         [](PagedCall &call) { call.forward_args.lse.stride[0] = 1; },
         {"lse", "stride"}},
        {"dout_null",
         backward,
         [](PagedCall &call) { call.backward_args.dout.data = nullptr; },
         {"dout"}},
        {"dout_heads",
         backward,
         [](PagedCall &call) { call.backward_args.dout.shape[1] = 1; },
         {"dout", "1"}},
        {"dlse_tokens",
         backward,
         [](PagedCall &call) {
             call.backward_args.dlse = call.dlse;
             call.backward_args.dlse.shape[0] = 23;
         },
         {"dlse", "23"}},
        {"dq_null",
         backward,
         [](PagedCall &call) { call.backward_args.dq.data = nullptr; },
         {"dq"}},
        {"dq_overlaps",
         backward,
         [](PagedCall &call) { call.backward_args.dq.stride[1] = 32; },
         {"dq", "stride"}},
        {"dq_rank",
         backward,
         [](PagedCall &call) { call.backward_args.dq.rank = 1; },
         {"dq", "rank", "1"}},
        {"dk_pool_null",
         backward,
         [](PagedCall &call) { call.backward_args.dk_pool.data = nullptr; },
         {"dk_pool"}},
        {"dk_pool_dtype",
         backward,
         [](PagedCall &call) { call.backward_args.dk_pool.dtype = PAGEGRAD_FLOAT16; },
         {"dk_pool", "dtype"}},
        {"dk_pool_blocks",
         backward,
         [](PagedCall &call) { call.backward_args.dk_pool.shape[0] = 99; },
         {"dk_pool", "99"}},
        {"dk_pool_overlaps",
         backward,
         [](PagedCall &call) { call.backward_args.dk_pool.stride[1] = 0; },
         {"dk_pool", "stride"}},
        {"dv_pool_head_dim",
         backward,
         [](PagedCall &call) { call.backward_args.dv_pool.shape[3] = 63; },
         {"dv_pool", "63"}},
        {"dv_pool_misaligned",
         backward,
         [](PagedCall &call) { misalign(call.backward_args.dv_pool); },
         {"dv_pool", "align"}},
        {"pool_mode",
         backward,
         [](PagedCall &call) { call.backward_args.pool_mode = 9; },
         {"pool_mode", "9"}},
    };
}

std::vector<Refusal> execution_refusals() {
    return {
        {"execution_size",
         both,
         execution([](auto &how) { how.struct_size = 0; }),
         {"struct_size", "0"}},
        {"device", both, execution([](auto &how) { how.device = 42; }), {"device", "42"}},
        {"unordered", both, execution([](auto &how) { how.unordered = 2; }), {"unordered", "2"}},
        {"num_threads",
         both,
         execution([](auto &how) { how.num_threads = -3; }),
         {"num_threads", "-3"}},
        {"kernel",
         both,
         execution([](auto &how) { how.kernel = "no_such_kernel"; }),
         {"kernel", "no_such_kernel"}},
        {"workspace_misaligned",
         both,
         execution([](auto &how) {
             static char memory[256];
             how.workspace = memory + 1 + (64 - reinterpret_cast<std::uintptr_t>(memory) % 64);
             how.workspace_size = 1;
         }),
         {"workspace"}},
    };
}

/// A tensor of a call with q in `dtype` that has another dtype than it must have.
template<typename Args>
Refusal wrong_dtype(pagegrad_dtype dtype, const std::string &argument, Pass pass,
                    Args PagedCall::*args, pagegrad_tensor Args::*tensor, pagegrad_dtype wrong) {
    return {std::string(dtype_name(dtype)) + "_with_" + argument + "_" + dtype_name(wrong) +
                (pass == &PagedCall::forward ? "_forward" : "_backward"),
            {pass},
            [args, tensor, wrong](PagedCall &call) { (call.*args.*tensor).dtype = wrong; },
            {argument + ".dtype is " + std::to_string(wrong)},
            dtype};
}

std::vector<Refusal> wrong_dtypes(pagegrad_dtype dtype) {
    using Forward = pagegrad_forward_args;
    using Backward = pagegrad_backward_args;
    std::vector<Refusal> all;
    for (const pagegrad_dtype wrong : all_dtypes) {
        const auto refuse_forward = [&](const char *argument, pagegrad_tensor Forward::*tensor) {
            all.push_back(wrong_dtype(dtype, argument, &PagedCall::forward,
                                      &PagedCall::forward_args, tensor, wrong));
        };
        const auto refuse_backward = [&](const char *argument, pagegrad_tensor Backward::*tensor) {
            all.push_back(wrong_dtype(dtype, argument, &PagedCall::backward,
                                      &PagedCall::backward_args, tensor, wrong));
        };
        if (wrong != dtype) {
            refuse_forward("k_pool", &Forward::k_pool);
            refuse_forward("v_pool", &Forward::v_pool);
            refuse_backward("dout", &Backward::dout);
            refuse_backward("k_pool", &Backward::k_pool);
            refuse_backward("v_pool", &Backward::v_pool);
        }
        if (wrong != dtype && wrong != PAGEGRAD_FLOAT32) {
            refuse_forward("out", &Forward::out);
            refuse_backward("out", &Backward::out);
            refuse_backward("dq", &Backward::dq);
        }
        if (wrong != PAGEGRAD_FLOAT32) {
            refuse_forward("lse", &Forward::lse);
            refuse_backward("lse", &Backward::lse);
            refuse_backward("dk_pool", &Backward::dk_pool);
            refuse_backward("dv_pool", &Backward::dv_pool);
        }
    }
    return all;
}

std::vector<Refusal> refusals() {
    std::vector<Refusal> all = common_refusals();
    const auto add = [&all](const std::vector<Refusal> &more) {
        all.insert(all.end(), more.begin(), more.end());
    };
    add(option_refusals());
    add(output_refusals());
    add(execution_refusals());
    for (const KernelChoice &kernel : kernels_and_dispatch({"backward"}, 64)) {
        if (kernel.name.empty()) {  // once for every dtype
            add(wrong_dtypes(kernel.dtype));
        }
    }
    return all;
}

Problem small_problem(pagegrad_dtype dtype = PAGEGRAD_FLOAT32) {
    return make_problem(Geometry({17, 5}, {33, 5}).dim(64).heads(2, 1).stored_as(dtype));
}

void expect_parts(const std::string &message, const std::vector<std::string> &parts) {
    for (const std::string &part : parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
    }
}

class Refused : public testing::TestWithParam<Refusal> {};

TEST_P(Refused, with_message_and_outputs_untouched) {
    const Problem problem = small_problem(GetParam().dtype);
    for (const Pass pass : GetParam().passes) {
        PagedCall call(problem);
        const auto outputs = [&call] {
            return std::vector{call.out.bits(), call.lse.bits(), call.dq.bits(),
                               call.dk_pool.bits(), call.dv_pool.bits()};
        };
        const auto before = outputs();
        GetParam().spoil(call);
        const pagegrad_status status = (call.*pass)();
        EXPECT_TRUE(status == PAGEGRAD_INVALID_ARGUMENT || status == PAGEGRAD_UNSUPPORTED)
            << pagegrad_status_name(status);
        expect_parts(call.message(), GetParam().message);
        EXPECT_EQ(outputs(), before);
    }
}

INSTANTIATE_TEST_SUITE_P(, Refused, testing::ValuesIn(refusals()),
                         [](const auto &info) { return info.param.name; });

TEST(RefusedCalls, null_pointers) {
    const Problem problem = small_problem();
    PagedCall call(problem);
    pagegrad_error error{};
    std::size_t bytes = 0;
    const pagegrad_tensor tensor = call.k_pool;
    const auto refused = [&error](pagegrad_status status, const char *argument) {
        EXPECT_EQ(status, PAGEGRAD_INVALID_ARGUMENT);
        expect_parts(error.message, {argument});
        error = {};
    };
    refused(pagegrad_forward(nullptr, &call.forward_args, nullptr, &error), "plan");
    refused(pagegrad_forward(call.plan(), nullptr, nullptr, &error), "args");
    refused(pagegrad_backward(nullptr, &call.backward_args, nullptr, &error), "plan");
    refused(pagegrad_backward(call.plan(), nullptr, nullptr, &error), "args");
    refused(pagegrad_forward_workspace(call.plan(), &call.forward_args, nullptr, nullptr, &error),
            "bytes");
    refused(pagegrad_forward_workspace(nullptr, &call.forward_args, nullptr, &bytes, &error),
            "plan");
    refused(pagegrad_forward_workspace(call.plan(), nullptr, nullptr, &bytes, &error), "args");
    refused(pagegrad_backward_workspace(nullptr, &call.backward_args, nullptr, &bytes, &error),
            "plan");
    refused(pagegrad_backward_workspace(call.plan(), nullptr, nullptr, &bytes, &error), "args");
    refused(pagegrad_backward_workspace(call.plan(), &call.backward_args, nullptr, nullptr, &error),
            "bytes");
    refused(pagegrad_gather(call.plan(), nullptr, &tensor, nullptr, &error), "pool");
    refused(pagegrad_gather(call.plan(), &tensor, nullptr, nullptr, &error), "dense");
    refused(pagegrad_scatter_add(nullptr, &tensor, &tensor, nullptr, &error), "plan");
    refused(pagegrad_gather(nullptr, &tensor, &tensor, nullptr, &error), "plan");
    refused(pagegrad_scatter_add(call.plan(), nullptr, &tensor, nullptr, &error), "dense");
    refused(pagegrad_scatter_add(call.plan(), &tensor, nullptr, nullptr, &error), "pool");
    refused(pagegrad_get_kernel_info(0, nullptr, &error), "info");
    pagegrad_plan_info info{};
    refused(pagegrad_plan_get_info(nullptr, &info, &error), "plan");
    refused(pagegrad_plan_get_info(call.plan(), nullptr, &error), "info");
    refused(pagegrad_plan_get_info(call.plan(), &info, &error), "info.struct_size");
    refused(pagegrad_plan_prepare(nullptr, nullptr, &error), "plan");
    pagegrad_plan *plan = nullptr;
    refused(pagegrad_plan_create(nullptr, &plan, &error), "desc");
    refused(pagegrad_plan_create(&call.desc, nullptr, &error), "plan");
    pagegrad_plan_destroy(nullptr);
    const char *name = nullptr;
    refused(pagegrad_choose_kernel(nullptr, "backward", 0, nullptr, &name, &error), "plan");
    refused(pagegrad_choose_kernel(call.plan(), nullptr, 0, nullptr, &name, &error), "operation");
    refused(pagegrad_choose_kernel(call.plan(), "forward", 7, nullptr, &name, &error), "dtype");
    refused(
        pagegrad_choose_kernel(call.plan(), "backward", PAGEGRAD_FLOAT32, nullptr, nullptr, &error),
        "name");
    EXPECT_EQ(pagegrad_forward(nullptr, nullptr, nullptr, nullptr), PAGEGRAD_INVALID_ARGUMENT);
}

TEST(RefusedCalls, pieces_with_other_dtypes) {
    const Problem problem = small_problem();
    PagedCall call(problem);
    for (const pagegrad_dtype dtype : {PAGEGRAD_BFLOAT16, PAGEGRAD_FLOAT16}) {
        GuardedTensor dense({38, 1, 64}, Layout::Contiguous);
        const auto before = dense.bits(), pool_before = call.dk_pool.bits();
        pagegrad_tensor narrow_dense = dense, narrow_pool = call.dk_pool;
        narrow_dense.dtype = narrow_pool.dtype = dtype;
        EXPECT_EQ(call.gather(call.k_pool, narrow_dense), PAGEGRAD_INVALID_ARGUMENT);
        expect_parts(call.message(), {"dense.dtype is " + std::to_string(dtype)});
        EXPECT_EQ(call.scatter_add(narrow_dense, call.dk_pool), PAGEGRAD_INVALID_ARGUMENT);
        expect_parts(call.message(), {"dense.dtype is " + std::to_string(dtype)});
        EXPECT_EQ(call.scatter_add(dense, narrow_pool), PAGEGRAD_INVALID_ARGUMENT);
        expect_parts(call.message(), {"pool.dtype is " + std::to_string(dtype)});
        EXPECT_EQ(dense.bits(), before);
        EXPECT_EQ(call.dk_pool.bits(), pool_before);
    }
}

TEST(RefusedCalls, pieces_with_other_shapes) {
    const Problem problem = small_problem();
    PagedCall call(problem);
    GuardedTensor dense({38, 1, 64}, Layout::Contiguous), few({37, 1, 64}, Layout::Contiguous);
    const auto before = few.bits();
    EXPECT_EQ(call.gather(call.k_pool, few), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(call.message(), {"dense", "37", "38"});
    EXPECT_EQ(few.bits(), before);

    const auto pool_before = call.dk_pool.bits();
    EXPECT_EQ(call.scatter_add(few, call.dk_pool), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(call.message(), {"dense", "37", "38"});
    pagegrad_tensor pool = call.dk_pool;
    pool.shape[1] = 15;
    EXPECT_EQ(call.scatter_add(dense, pool), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(call.message(), {"pool", "15"});
    EXPECT_EQ(call.dk_pool.bits(), pool_before);
}

TEST(RefusedCalls, batched_tensors_shorter_than_a_sequence) {
    const Problem problem = make_problem(Geometry({17, 5}, {33, 5}).dim(64).batched());
    PagedCall call(problem);
    call.forward_args.q.shape[1] = 16;
    EXPECT_EQ(call.forward(), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(call.message(), {"q", "16"});
}

/// Sums in float32 for such a batch would have strides beyond 32 bits.
TEST(RefusedCalls, batch_entries_of_more_than_32_bits) {
    const Problem problem = make_problem(Geometry({17, 5}, {33, 5}).dim(64).batched());
    PagedCall call(problem);
    call.forward_args.q.shape[1] = (int64_t{1} << 25) - 1;  // times 64
    EXPECT_EQ(call.forward(), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(call.message(), {"out.shape[1]"});
    call.forward_args.q.shape[1]++;
    EXPECT_EQ(call.forward(), PAGEGRAD_UNSUPPORTED);
    expect_parts(call.message(), {"q.shape[1] is 33554432, expected at most 33554431"});
}

TEST(RefusedCalls, unknown_kernels_and_operations) {
    const Problem problem = small_problem();
    PagedCall call(problem);
    pagegrad_error error{};
    pagegrad_kernel_info info{};
    EXPECT_EQ(pagegrad_get_kernel_info(0, &info, &error), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(error.message, {"struct_size", "0"});
    info.struct_size = sizeof(info);
    EXPECT_EQ(pagegrad_get_kernel_info(-1, &info, &error), PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(error.message, {"index", "-1"});
    EXPECT_EQ(pagegrad_get_kernel_info(pagegrad_kernel_count(), &info, &error),
              PAGEGRAD_INVALID_ARGUMENT);
    const char *name = nullptr;
    EXPECT_EQ(
        pagegrad_choose_kernel(call.plan(), "sideways", PAGEGRAD_FLOAT32, nullptr, &name, &error),
        PAGEGRAD_INVALID_ARGUMENT);
    expect_parts(error.message, {"operation", "sideways"});
    EXPECT_EQ(name, nullptr);
}

}  // namespace
}  // namespace pagegrad::test
