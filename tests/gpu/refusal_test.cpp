// What a GPU refuses, with a message that says why, and what a host without one says.
#include "gpu_fixture.h"
#include "half_problem.h"

#include <functional>
#include <ostream>
#include <thread>

namespace pagegrad::test {
namespace {

struct GpuRefusal {
    std::string name;
    std::function<void(DeviceCall &)> spoil;
    pagegrad_status status;
    std::vector<std::string> message;  ///< parts
};

std::ostream &operator<<(std::ostream &stream, const GpuRefusal &refusal) {
    return stream << refusal.name;
}

std::vector<GpuRefusal> host_pointers() {
    const std::pair<const char *, pagegrad_tensor pagegrad_backward_args::*> tensors[] = {
        {"q", &pagegrad_backward_args::q},
        {"dout", &pagegrad_backward_args::dout},
        {"k_pool", &pagegrad_backward_args::k_pool},
        {"v_pool", &pagegrad_backward_args::v_pool},
        {"out", &pagegrad_backward_args::out},
        {"lse", &pagegrad_backward_args::lse},
        {"dq", &pagegrad_backward_args::dq},
        {"dk_pool", &pagegrad_backward_args::dk_pool},
        {"dv_pool", &pagegrad_backward_args::dv_pool}};
    std::vector<GpuRefusal> list;
    for (const auto &[name, tensor] : tensors) {
        list.push_back({std::string(name) + "_on_host",
                        [tensor = tensor](DeviceCall &call) {
                            alignas(16) static char memory[16];
                            (call.args.*tensor).data = memory;
                        },
                        PAGEGRAD_INVALID_ARGUMENT,
                        {name, "host memory"}});
    }
    return list;
}

/// One for each head of small_problem().
pagegrad_tensor two_numbers() {
    static const float numbers[2] = {};
    return Tensor(numbers, {2});
}

std::vector<GpuRefusal> refusals() {
    std::vector<GpuRefusal> list = host_pointers();
    list.push_back({"no_workspace",
                    [](DeviceCall &call) { call.execution.workspace = nullptr; },
                    PAGEGRAD_INVALID_ARGUMENT,
                    {"execution.workspace", "null", "bytes"}});
    list.push_back({"small_workspace",
                    [](DeviceCall &call) { call.execution.workspace_size--; },
                    PAGEGRAD_WORKSPACE_TOO_SMALL,
                    {"workspace_size"}});
    list.push_back({"workspace_on_host",
                    [](DeviceCall &call) {
                        alignas(64) static char memory[64];
                        call.execution.workspace = memory;
                    },
                    PAGEGRAD_INVALID_ARGUMENT,
                    {"execution.workspace", "host memory"}});
    list.push_back(
        {"misaligned_q",
         [](DeviceCall &call) { call.args.q.data = static_cast<char *>(call.args.q.data) + 2; },
         PAGEGRAD_UNSUPPORTED,
         {"q.data", "16"}});
    list.push_back({"odd_stride",
                    [](DeviceCall &call) { call.args.k_pool.stride[1] += 4; },
                    PAGEGRAD_UNSUPPORTED,
                    {"k_pool.stride[1]", "multiple of 8"}});
    list.push_back({"softcap",
                    [](DeviceCall &call) { call.args.softcap = 30; },
                    PAGEGRAD_UNSUPPORTED,
                    {"softcap", "30", "GPUs"}});
    list.push_back({"alibi_slopes",
                    [](DeviceCall &call) { call.args.alibi_slopes = two_numbers(); },
                    PAGEGRAD_UNSUPPORTED,
                    {"alibi_slopes", "GPUs"}});
    list.push_back({"sinks",
                    [](DeviceCall &call) { call.args.sinks = two_numbers(); },
                    PAGEGRAD_UNSUPPORTED,
                    {"sinks", "GPUs"}});
    list.push_back({"kernel",
                    [](DeviceCall &call) { call.execution.kernel = "sm80"; },
                    PAGEGRAD_INVALID_ARGUMENT,
                    {"execution.kernel", "sm80"}});
    return list;
}

const Problem &small_problem() {
    static const Problem problem =
        make_half_problem(Geometry({17, 5}, {33, 5}).dim(64).heads(2, 1), PAGEGRAD_BFLOAT16);
    return problem;
}

void expect_parts(const std::string &message, const std::vector<std::string> &parts) {
    for (const std::string &part : parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
    }
}

class GpuRefused : public OnGpu<testing::TestWithParam<GpuRefusal>> {};

TEST_P(GpuRefused, with_message_and_outputs_untouched) {
    DeviceCall call(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    call.download();
    const auto outputs = [&call] {
        return std::vector{call.host.dq.bits(), call.host.dk_pool.bits(), call.host.dv_pool.bits()};
    };
    const auto before = outputs();
    const pagegrad_execution execution = call.execution;
    GetParam().spoil(call);
    EXPECT_EQ(call.backward(), GetParam().status) << call.message();
    expect_parts(call.message(), GetParam().message);
    call.execution = execution;
    call.download();
    EXPECT_EQ(outputs(), before);
}

INSTANTIATE_TEST_SUITE_P(, GpuRefused, testing::ValuesIn(refusals()),
                         [](const auto &info) { return info.param.name; });

class GpuRefusedCalls : public GpuTest {};

TEST_F(GpuRefusedCalls, dtypes_without_a_kernel) {
    const Problem problem = make_problem(Geometry({3}, {5}).dim(64));
    PagedCall call(problem);
    call.execution = gpu().execution();
    EXPECT_EQ(call.backward(), PAGEGRAD_UNSUPPORTED);
    expect_parts(call.message(), {"backward", "float32"});
}

TEST_F(GpuRefusedCalls, head_dims_without_a_kernel) {
    for (const int head_dim : {60, 260, 264}) {
        const Problem problem =
            make_problem(Geometry({3}, {5}).dim(head_dim).stored_as(PAGEGRAD_BFLOAT16));
        PagedCall call(problem);
        call.execution = gpu().execution();
        for (const int32_t unordered : {0, 1}) {
            call.execution.unordered = unordered;
            EXPECT_EQ(call.backward(), PAGEGRAD_UNSUPPORTED);
            expect_parts(call.message(), {"backward", "head_dim " + std::to_string(head_dim)});
        }
    }
}

TEST_F(GpuRefusedCalls, float32_dq_that_is_not_aligned_to_pairs) {
    const Dtypes dtypes(PAGEGRAD_BFLOAT16, PAGEGRAD_BFLOAT16, PAGEGRAD_FLOAT32);
    DeviceCall call(gpu(), small_problem(), dtypes);
    call.args.dq.data = static_cast<char *>(call.args.dq.data) + 4;
    EXPECT_EQ(call.backward(), PAGEGRAD_UNSUPPORTED);
    expect_parts(call.message(), {"dq.data", "8 bytes"});
}

TEST_F(GpuRefusedCalls, operations_without_a_kernel) {
    DeviceCall call(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    call.host.execution = call.execution;
    EXPECT_EQ(call.host.gather(call.host.k_pool, call.host.k_pool), PAGEGRAD_UNSUPPORTED);
    expect_parts(call.host.message(), {"CUDA", "gather"});
}

TEST_F(GpuRefusedCalls, threads_without_a_context) {
    DeviceCall call(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    std::thread([&call] {
        call.execution.stream = nullptr;
        EXPECT_EQ(call.start(), PAGEGRAD_NO_DEVICE);
        expect_parts(call.message(), {"context"});
    }).join();
}

/// The stream's context counts, whatever is current.
TEST_F(GpuRefusedCalls, not_threads_with_a_stream) {
    DeviceCall call(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    std::thread([&call] { EXPECT_EQ(call.start(), PAGEGRAD_OK) << call.message(); }).join();
    gpu().synchronize();
    call.expect_backward();
}

TEST_F(GpuRefusedCalls, memory_of_another_gpu) {
    int devices = 0;
    gpu().check(gpu().driver().device_count(&devices), "cuDeviceGetCount");
    if (devices < 2) {
        GTEST_SKIP() << "only one GPU";
    }
    DeviceCall call(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    std::thread([&call] {
        const Gpu other(1);
        const DeviceMemory memory(other, 1024);
        call.args.dq.data = memory.data();
        EXPECT_EQ(call.start(), PAGEGRAD_INVALID_ARGUMENT);
        expect_parts(call.message(), {"dq", "device 1", "device 0"});
    }).join();
}

/// After the first call nothing is allocated, loaded or waited for.
TEST_F(GpuRefusedCalls, never_allocates_or_waits_once_prepared) {
    if (!is_fake()) {
        GTEST_SKIP() << "only the fake driver counts calls";
    }
    DeviceCall call(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    ASSERT_EQ(pagegrad_plan_prepare(call.host.plan(), &call.execution, nullptr), PAGEGRAD_OK);
    const auto calls = [] {
        std::vector<int> counts;
        for (const char *name : {"cuMemAlloc", "cuMemFree", "cuModuleLoadData",
                                 "cuFuncSetAttribute", "cuStreamSynchronize"}) {
            counts.push_back(fake_calls(name));
        }
        return counts;
    };
    const auto before = calls();
    const int launches = fake_calls("cuLaunchKernel");
    ASSERT_EQ(call.start(), PAGEGRAD_OK) << call.message();
    EXPECT_EQ(pagegrad_plan_prepare(call.host.plan(), &call.execution, nullptr), PAGEGRAD_OK);
    EXPECT_EQ(calls(), before);
    EXPECT_EQ(fake_calls("cuLaunchKernel"), launches + 3);
}

TEST_F(GpuRefusedCalls, plans_work_on_every_device) {
    int devices = 0;
    gpu().check(gpu().driver().device_count(&devices), "cuDeviceGetCount");
    if (devices < 2) {
        GTEST_SKIP() << "only one GPU";
    }
    DeviceCall first(gpu(), small_problem(), PAGEGRAD_BFLOAT16);
    ASSERT_EQ(first.backward(), PAGEGRAD_OK) << first.message();
    first.expect_backward();
    std::thread([&first] {
        const Gpu other(1);
        DeviceCall second(other, small_problem(), PAGEGRAD_BFLOAT16);
        EXPECT_EQ(pagegrad_backward(first.host.plan(), &second.args, &second.execution, nullptr),
                  PAGEGRAD_OK);
        other.synchronize();
        second.expect_backward();
    }).join();
}

TEST(NoGpu, is_reported) {
    if (cuda::has_driver()) {
        GTEST_SKIP() << "there is a GPU";
    }
    PagedCall call(small_problem());
    call.execution.device = PAGEGRAD_CUDA;
    EXPECT_EQ(call.backward(), PAGEGRAD_NO_DEVICE);
    expect_parts(call.message(), {"CUDA", "driver"});
    EXPECT_EQ(pagegrad_plan_prepare(call.plan(), &call.execution, nullptr), PAGEGRAD_NO_DEVICE);
}

}  // namespace
}  // namespace pagegrad::test
