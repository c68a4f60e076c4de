/// Calls of the library on a GPU, with the problems and checks of the CPU's tests.
#pragma once

#include "tests/support/problem.h"
#include "tools/gpu.h"

#include <memory>
#include <vector>

namespace pagegrad::test {

/// A tensor in GPU memory between guard bands, aligned to 16 bytes.
class DeviceTensor {
public:
    DeviceTensor() = default;
    /// A copy of a tensor of the host, rounded to `dtype`.
    DeviceTensor(const Gpu &gpu, const GuardedTensor &host, pagegrad_dtype dtype, Layout layout);

    operator pagegrad_tensor() const {
        return view;
    }
    /// Copies the entries back, and checks the memory between them.
    void download(GuardedTensor &host, const char *name);

private:
    std::size_t element_bytes() const {
        return view.dtype == PAGEGRAD_FLOAT32 ? 4 : 2;
    }
    void store(int64_t at, float value);
    float load(int64_t at) const;

    pagegrad_tensor view{};
    std::vector<int64_t> offset;  ///< element of each entry
    std::vector<unsigned char> bytes;
    DeviceMemory memory;
};

/// A forward and a backward on a GPU. Their arguments may be changed before they run.
class DeviceCall {
public:
    DeviceCall(const Gpu &gpu, const Problem &problem, const Dtypes &dtypes,
               const Options &options = {}, bool ordered = true);

    /// Run and wait.
    pagegrad_status forward();
    pagegrad_status backward();
    /// Put a call on the stream only.
    pagegrad_status start_forward();
    pagegrad_status start();
    /// Copies the results to `host`, whose checks then apply.
    void download();
    void expect_forward();
    void expect_backward();
    const char *message() const {
        return error.message;
    }

    PagedCall host;
    DeviceTensor dq, dk_pool, dv_pool, out, lse;
    pagegrad_backward_args args;
    pagegrad_forward_args forward_args;
    pagegrad_execution execution;

private:
    /// Gives a call a workspace of exactly `size` bytes.
    void make_workspace(std::size_t size);
    void expect_workspace_respected();
    DeviceTensor query_tensor(const GuardedTensor &tensor, pagegrad_dtype type) const;
    DeviceTensor row_tensor(const GuardedTensor &tensor) const;
    DeviceTensor pool_tensor(const GuardedTensor &tensor, pagegrad_dtype dtype) const;

    const Gpu &gpu;
    const Dtypes dtypes;
    const Layout layout;
    DeviceTensor q, dout, k_pool, v_pool, saved_out, saved_lse, dlse;
    DeviceMemory workspace;
    std::vector<unsigned char> guarded_workspace;
    pagegrad_error error{};
};

}  // namespace pagegrad::test
