#include "device_call.h"

#include "half_problem.h"
#include "tests/support/rounding.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace pagegrad::test {

namespace {

/// A NaN as float32, bfloat16 and float16 alike.
constexpr unsigned char guard[] = {0xe5, 0x7f};
constexpr int64_t guard_elements = 64;  ///< keeps the alignment
constexpr std::size_t workspace_guard = 256;

void fill_with_guards(std::vector<unsigned char> &bytes) {
    for (std::size_t at = 0; at < bytes.size(); at++) {
        bytes[at] = guard[at % 2];
    }
}

}  // namespace

DeviceTensor::DeviceTensor(const Gpu &gpu, const GuardedTensor &host, pagegrad_dtype dtype,
                           Layout layout)
    : view(host) {
    std::vector<int> outward(view.rank);  // dimensions from the innermost to the outermost
    std::iota(outward.rbegin(), outward.rend(), 0);
    if (layout == Layout::HeadMajor && view.rank > 2) {
        std::swap(outward[1], outward[2]);
    }
    view.dtype = dtype;
    int64_t step = 1, padding = 0;
    for (const int dim : outward) {
        view.stride[dim] = step;
        padding = layout == Layout::Contiguous ? 0 : padding + 8;
        step = step * std::max<int64_t>(view.shape[dim], 1) + padding;
    }
    bytes.resize((step + 2 * guard_elements) * element_bytes());
    fill_with_guards(bytes);
    for (int64_t index = 0; index < host.size(); index++) {
        int64_t rest = index, at = guard_elements;
        for (int dim = view.rank - 1; dim >= 0; dim--) {
            at += rest % view.shape[dim] * view.stride[dim];
            rest /= view.shape[dim];
        }
        offset.push_back(at);
        store(at, host[index]);
    }
    memory = DeviceMemory(gpu, bytes.data(), bytes.size());
    view.data = static_cast<unsigned char *>(memory.data()) + guard_elements * element_bytes();
}

void DeviceTensor::store(int64_t at, float value) {
    if (view.dtype == PAGEGRAD_FLOAT32) {
        std::memcpy(&bytes[at * 4], &value, 4);
        return;
    }
    const auto bits =
        static_cast<uint16_t>(encoded(value, static_cast<pagegrad_dtype>(view.dtype)));
    std::memcpy(&bytes[at * 2], &bits, 2);
}

float DeviceTensor::load(int64_t at) const {
    if (view.dtype == PAGEGRAD_FLOAT32) {
        float value;
        std::memcpy(&value, &bytes[at * 4], 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, &bytes[at * 2], 2);
    return decoded(bits, static_cast<pagegrad_dtype>(view.dtype));
}

void DeviceTensor::download(GuardedTensor &host, const char *name) {
    memory.download(bytes.data(), bytes.size());
    std::vector<bool> is_guard(bytes.size(), true);
    for (int64_t index = 0; index < host.size(); index++) {
        host.set(index, load(offset[index]));
        const auto begin = is_guard.begin() + offset[index] * static_cast<int64_t>(element_bytes());
        std::fill(begin, begin + static_cast<int64_t>(element_bytes()), false);
    }
    for (std::size_t at = 0; at < bytes.size(); at++) {
        ASSERT_TRUE(!is_guard[at] || bytes[at] == guard[at % 2])
            << name << " was written outside of its entries, at byte " << at;
    }
}

DeviceCall::DeviceCall(const Gpu &gpu, const Problem &problem, const Dtypes &dtypes,
                       const Options &options, bool ordered)
    : host(problem, options), args(host.backward_args), forward_args(host.forward_args),
      execution(gpu.execution()), gpu(gpu), dtypes(dtypes), layout(problem.layout),
      q(query_tensor(host.q, dtypes.inputs)), dout(query_tensor(host.dout, dtypes.inputs)),
      k_pool(pool_tensor(host.k_pool, dtypes.inputs)),
      v_pool(pool_tensor(host.v_pool, dtypes.inputs)),
      saved_out(query_tensor(host.saved_out, dtypes.out)), saved_lse(row_tensor(host.saved_lse)),
      dlse(row_tensor(host.dlse)) {
    dq = query_tensor(host.dq, dtypes.dq);
    dk_pool = pool_tensor(host.dk_pool, PAGEGRAD_FLOAT32);
    dv_pool = pool_tensor(host.dv_pool, PAGEGRAD_FLOAT32);
    out = query_tensor(host.out, dtypes.out);
    lse = row_tensor(host.lse);
    forward_args.q = args.q = q;
    forward_args.k_pool = args.k_pool = k_pool;
    forward_args.v_pool = args.v_pool = v_pool;
    forward_args.out = out;
    args.dout = dout;
    args.out = saved_out;
    args.dq = dq;
    args.dk_pool = dk_pool;
    args.dv_pool = dv_pool;
    if (options.with_lse) {
        forward_args.lse = lse;
        args.lse = saved_lse;
    }
    if (!problem.inputs.dlse.empty()) {
        args.dlse = dlse;
    }
    execution.kernel = host.execution.kernel;
    execution.unordered = !ordered;
    std::size_t size = 0;
    EXPECT_EQ(pagegrad_backward_workspace(host.plan(), &args, &execution, &size, &error),
              PAGEGRAD_OK)
        << error.message;
    make_workspace(size);
}

DeviceTensor DeviceCall::query_tensor(const GuardedTensor &tensor, pagegrad_dtype type) const {
    return {gpu, tensor, type, layout};
}

DeviceTensor DeviceCall::row_tensor(const GuardedTensor &tensor) const {
    return {gpu, tensor, PAGEGRAD_FLOAT32,
            layout == Layout::Contiguous ? Layout::Contiguous : Layout::Padded};
}

DeviceTensor DeviceCall::pool_tensor(const GuardedTensor &tensor, pagegrad_dtype type) const {
    return {gpu, tensor, type, layout};
}

void DeviceCall::make_workspace(std::size_t size) {
    guarded_workspace.resize(size + 2 * workspace_guard);
    fill_with_guards(guarded_workspace);
    workspace = DeviceMemory(gpu, guarded_workspace.data(), guarded_workspace.size());
    execution.workspace = static_cast<unsigned char *>(workspace.data()) + workspace_guard;
    execution.workspace_size = size;
}

pagegrad_status DeviceCall::start_forward() {
    std::size_t size = 0;
    EXPECT_EQ(pagegrad_forward_workspace(host.plan(), &forward_args, &execution, &size, &error),
              PAGEGRAD_OK)
        << error.message;
    make_workspace(size);
    return pagegrad_forward(host.plan(), &forward_args, &execution, &error);
}

pagegrad_status DeviceCall::start() {
    return pagegrad_backward(host.plan(), &args, &execution, &error);
}

pagegrad_status DeviceCall::forward() {
    const pagegrad_status status = start_forward();
    gpu.synchronize();
    return status;
}

pagegrad_status DeviceCall::backward() {
    const pagegrad_status status = start();
    gpu.synchronize();
    return status;
}

void DeviceCall::download() {
    dq.download(host.dq, "dq");
    dk_pool.download(host.dk_pool, "dk_pool");
    dv_pool.download(host.dv_pool, "dv_pool");
    out.download(host.out, "out");
    lse.download(host.lse, "lse");
    expect_workspace_respected();
}

void DeviceCall::expect_workspace_respected() {
    workspace.download(guarded_workspace.data(), guarded_workspace.size());
    for (std::size_t at = 0; at < workspace_guard; at++) {
        const std::size_t behind = workspace_guard + execution.workspace_size + at;
        ASSERT_TRUE(guarded_workspace[at] == guard[at % 2] &&
                    guarded_workspace[behind] == guard[behind % 2])
            << "memory around the workspace was written";
    }
}

void DeviceCall::expect_forward() {
    download();
    host.expect_forward();
}

void DeviceCall::expect_backward() {
    download();
    host.expect_backward();
}

}  // namespace pagegrad::test
