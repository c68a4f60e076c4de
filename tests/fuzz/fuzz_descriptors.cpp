// Calls of the C interface whose descriptors come from libFuzzer.
//
// Every pointer is valid or NULL, and arrays are as long as their counts say: nothing else can be
// checked by a library. All the rest may be anything. What must hold: a status, a message with a
// failure and only then, nothing written by a call that fails, and nothing but outputs by one that
// does not. Calls that are valid run if their tensors lie in the memory they are given.
#include "pagegrad/pagegrad.h"

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr int max_sequences = 6, max_columns = 6;
constexpr int64_t region_bytes = 32 << 10;  ///< of a tensor
constexpr int num_regions = 16;
constexpr char pattern = 0x3c;  ///< a number near 1 in 16 bits, and twice in 32

alignas(64) char memory[region_bytes * num_regions];
alignas(64) char workspace[4 << 20];

void expect(bool holds, const char *what, const pagegrad_error &error) {
    if (!holds) {
        std::fprintf(stderr, "%s; message: %s\n", what, error.message);
        std::abort();
    }
}

/// Checks what every call reports, and forgets it.
bool succeeded(pagegrad_status status, pagegrad_error &error) {
    expect(status >= PAGEGRAD_OK && status <= PAGEGRAD_DRIVER_ERROR, "no status", error);
    expect(status != PAGEGRAD_INTERNAL, "internal error", error);
    expect(memchr(error.message, 0, sizeof(error.message)) != nullptr, "endless message", error);
    expect((status == PAGEGRAD_OK) == (error.message[0] == '\0'), "message without failure, or not",
           error);
    error = {};
    return status == PAGEGRAD_OK;
}

/// A number that is small, at an edge, or anything.
template<typename T>
T number(FuzzedDataProvider &data, T largest) {
    switch (data.ConsumeIntegralInRange(0, 9)) {
    case 0:
        return data.ConsumeIntegral<T>();
    case 1:
        return data.PickValueInArray<T>({0, static_cast<T>(-1), 1, std::numeric_limits<T>::min(),
                                         std::numeric_limits<T>::max(), static_cast<T>(INT_MAX)});
    default:
        return data.ConsumeIntegralInRange<T>(0, largest);
    }
}

struct Batch {
    std::array<int32_t, max_sequences> query_length, query_start, kv_length;
    std::array<int32_t, max_sequences * max_columns> table;
    pagegrad_plan_desc desc{};

    explicit Batch(FuzzedDataProvider &data) {
        desc.struct_size = data.ConsumeIntegralInRange(0, 30) == 0
                               ? data.ConsumeIntegral<uint32_t>()
                               : sizeof(desc);
        desc.num_kv_heads = number<int32_t>(data, 2);
        desc.num_heads = data.ConsumeBool() ? desc.num_kv_heads : number<int32_t>(data, 6);
        desc.head_dim = number<int32_t>(data, 40);
        desc.value_head_dim = data.ConsumeBool() ? 0 : number<int32_t>(data, 40);
        desc.mask = number<int32_t>(data, 2);
        desc.window_left = data.ConsumeBool() ? -1 : number<int64_t>(data, 20);
        desc.window_right = data.ConsumeBool() ? -1 : number<int64_t>(data, 20);
        desc.num_sequences = std::min(number<int32_t>(data, 3), max_sequences);
        desc.block_size = number<int32_t>(data, 8);
        desc.num_blocks = number<int64_t>(data, 10);
        desc.max_blocks = std::min(number<int32_t>(data, max_columns), max_columns);
        desc.block_table_stride = number<int64_t>(data, max_columns);
        if (desc.block_table_stride > max_columns &&
            desc.block_table_stride <= (int64_t{1} << 54) / std::max(1, desc.num_sequences)) {
            desc.block_table_stride = max_columns;  // the table has no more
        }
        for (auto *lengths : {&query_length, &query_start, &kv_length}) {
            for (int32_t &length : *lengths) {
                length = number<int32_t>(data, 20);
            }
        }
        for (int32_t &block : table) {
            block = number<int32_t>(data, 5);
        }
        const auto given = [&data](std::array<int32_t, max_sequences> &array) {
            return data.ConsumeIntegralInRange(0, 20) == 0 ? nullptr : array.data();
        };
        desc.query_length = given(query_length);
        desc.query_start = data.ConsumeBool() ? nullptr : query_start.data();
        desc.kv_length = given(kv_length);
        desc.block_table = data.ConsumeIntegralInRange(0, 20) == 0 ? nullptr : table.data();
    }
};

/// A tensor as the plan wants it, in a region of its own.
pagegrad_tensor tensor(int region, int32_t dtype, std::vector<int64_t> shape) {
    pagegrad_tensor view{};
    view.data = memory + region * region_bytes;
    view.dtype = dtype;
    view.rank = static_cast<int32_t>(shape.size());
    int64_t step = 1;
    for (int dim = view.rank - 1; dim >= 0; dim--) {
        view.shape[dim] = shape[dim];
        view.stride[dim] = step;
        if (__builtin_mul_overflow(step, shape[dim], &step)) {
            step = INT64_MAX;
        }
    }
    return view;
}

/// Puts something else into one field.
void spoil(FuzzedDataProvider &data, pagegrad_tensor &view) {
    const int dim = data.ConsumeIntegralInRange(0, PAGEGRAD_MAX_RANK - 1);
    switch (data.ConsumeIntegralInRange(0, 4)) {
    case 0:
        view.data = data.ConsumeBool()
                        ? nullptr
                        : memory + data.ConsumeIntegralInRange<int64_t>(0, sizeof(memory) - 1);
        break;
    case 1:
        view.dtype = number<int32_t>(data, 3);
        break;
    case 2:
        view.rank = number<int32_t>(data, 4);
        break;
    case 3:
        view.shape[dim] = number<int64_t>(data, 30);
        break;
    default:
        view.stride[dim] = number<int64_t>(data, 300);
    }
}

/// Whether a tensor, as it is described, lies in the memory.
bool fits(const pagegrad_tensor &view) {
    if (view.data == nullptr || view.rank < 0 || view.rank > PAGEGRAD_MAX_RANK) {
        return true;  // to be refused
    }
    const int64_t element = view.dtype == PAGEGRAD_FLOAT32 ? 4 : 2;
    __int128 elements = 1;
    for (int dim = 0; dim < view.rank; dim++) {
        if (view.shape[dim] == 0) {
            return true;
        }
        elements += (static_cast<__int128>(view.shape[dim]) - 1) * view.stride[dim];
    }
    return static_cast<char *>(view.data) - memory + elements * element <=
           static_cast<__int128>(sizeof(memory));
}

/// Range of a tensor in the memory.
bool contains(const pagegrad_tensor &view, const char *byte) {
    int64_t elements = 1;
    for (int dim = 0; dim < view.rank; dim++) {
        if (view.shape[dim] == 0) {
            return false;
        }
        elements += (view.shape[dim] - 1) * view.stride[dim];
    }
    const char *begin = static_cast<const char *>(view.data);
    return begin != nullptr && byte >= begin &&
           byte < begin + elements * (view.dtype == PAGEGRAD_FLOAT32 ? 4 : 2);
}

void expect_untouched_but(const std::vector<pagegrad_tensor> &outputs, pagegrad_error &error) {
    for (const char &byte : memory) {
        if (byte != pattern) {
            expect(std::any_of(outputs.begin(), outputs.end(),
                               [&](const pagegrad_tensor &view) { return contains(view, &byte); }),
                   "memory of no output was written", error);
        }
    }
}

pagegrad_execution make_execution(FuzzedDataProvider &data) {
    static const char *const kernels[] = {nullptr, nullptr,        nullptr, "any",   "avx2",
                                          "x86",   "materialised", "",      "abacus"};
    pagegrad_execution execution{};
    execution.struct_size = data.ConsumeIntegralInRange(0, 30) == 0
                                ? data.ConsumeIntegral<uint32_t>()
                                : sizeof(execution);
    execution.num_threads = data.ConsumeBool() ? 1 : number<int32_t>(data, 3);
    execution.device = data.ConsumeIntegralInRange(0, 30) == 0 ? number<int32_t>(data, 1) : 0;
    execution.unordered = data.ConsumeIntegralInRange(0, 30) == 0 ? number<int32_t>(data, 2) : 0;
    execution.kernel = data.PickValueInArray(kernels);
    if (data.ConsumeBool()) {
        execution.workspace = workspace + (data.ConsumeIntegralInRange(0, 20) == 0 ? 8 : 0);
        execution.workspace_size =
            std::min<size_t>(number<int64_t>(data, sizeof(workspace)), sizeof(workspace) - 8);
    }
    return execution;
}

/// Calls a function if the query of its workspace succeeds and all memory is there; else calls it
/// only if it must fail.
template<typename Args, typename Query, typename Call>
void run(const pagegrad_plan *plan, const Args &args, const pagegrad_execution &execution,
         const std::vector<pagegrad_tensor> &all, const std::vector<pagegrad_tensor> &outputs,
         const Query &query, const Call &call) {
    if (!fits(args.alibi_slopes) || !fits(args.sinks)) {
        return;  // they are read by the checks
    }
    pagegrad_error error{};
    size_t bytes = 0;
    const bool valid = succeeded(query(plan, &args, &execution, &bytes, &error), error);
    if (valid && (bytes > sizeof(workspace) || !std::all_of(all.begin(), all.end(), fits))) {
        return;  // too large to run
    }
    const bool done = succeeded(call(plan, &args, &execution, &error), error);
    expect(valid || !done, "a call succeeds whose workspace query fails", error);
    expect_untouched_but(done ? outputs : std::vector<pagegrad_tensor>(), error);
}

class Calls {
public:
    Calls(FuzzedDataProvider &data, const pagegrad_plan *plan, const pagegrad_plan_desc &desc)
        : data(data), plan(plan), execution(make_execution(data)) {
        const int32_t dtype = data.ConsumeIntegralInRange(0, 2);
        int64_t tokens = 0, longest = 0;
        for (int b = 0; b < desc.num_sequences; b++) {
            const int64_t start = desc.query_start ? desc.query_start[b] : tokens;
            tokens = std::max(tokens, start + desc.query_length[b]);
            longest = std::max<int64_t>(longest, desc.query_length[b]);
        }
        std::vector<int64_t> rows = {tokens, desc.num_heads};
        if (data.ConsumeBool()) {
            rows = {desc.num_sequences, longest, desc.num_heads};
        }
        const int64_t value_dim = desc.value_head_dim > 0 ? desc.value_head_dim : desc.head_dim;
        const auto queries = [&rows](int64_t width) {
            std::vector<int64_t> shape = rows;
            shape.push_back(width);
            return shape;
        };
        const auto pool = [&desc](int64_t width) {
            return std::vector<int64_t>{desc.num_blocks, desc.block_size, desc.num_kv_heads, width};
        };
        int region = 0;
        q = tensor(region++, dtype, queries(desc.head_dim));
        dq = tensor(region++, dtype, queries(desc.head_dim));
        dout = tensor(region++, dtype, queries(value_dim));
        out = tensor(region++, dtype, queries(value_dim));
        k_pool = tensor(region++, dtype, pool(desc.head_dim));
        v_pool = tensor(region++, dtype, pool(value_dim));
        dk_pool = tensor(region++, PAGEGRAD_FLOAT32, pool(desc.head_dim));
        dv_pool = tensor(region++, PAGEGRAD_FLOAT32, pool(value_dim));
        softcap = data.ConsumeBool() ? 0 : data.ConsumeFloatingPoint<float>();
        for (pagegrad_tensor *view : {&alibi_slopes, &sinks, &dalibi_slopes, &dsinks}) {
            *view = data.ConsumeBool() ? tensor(region++, PAGEGRAD_FLOAT32, {desc.num_heads})
                                       : pagegrad_tensor{};
        }
        for (pagegrad_tensor *view : {&lse, &dlse}) {
            *view =
                data.ConsumeBool() ? tensor(region++, PAGEGRAD_FLOAT32, rows) : pagegrad_tensor{};
        }
        pagegrad_tensor *const all[] = {&q,      &dout,    &out,          &dq,           &k_pool,
                                        &v_pool, &dk_pool, &dv_pool,      &lse,          &dlse,
                                        &dsinks, &sinks,   &alibi_slopes, &dalibi_slopes};
        for (int changes = data.ConsumeIntegralInRange(0, 3); changes > 0; changes--) {
            spoil(data, *data.PickValueInArray(all));
        }
    }

    void forward() {
        pagegrad_forward_args args{};
        args.struct_size = struct_size(sizeof(args));
        args.scale = scale();
        args.q = q;
        args.k_pool = k_pool;
        args.v_pool = v_pool;
        args.out = out;
        args.lse = lse;
        args.softcap = softcap;
        args.alibi_slopes = alibi_slopes;
        args.sinks = sinks;
        run(plan, args, execution, {q, k_pool, v_pool, out, lse, alibi_slopes, sinks}, {out, lse},
            pagegrad_forward_workspace, pagegrad_forward);
    }

    void backward() {
        pagegrad_backward_args args{};
        args.struct_size = struct_size(sizeof(args));
        args.scale = scale();
        args.dout = dout;
        args.q = q;
        args.k_pool = k_pool;
        args.v_pool = v_pool;
        args.out = out;
        args.lse = lse;
        args.dlse = dlse;
        args.dq = dq;
        args.dk_pool = dk_pool;
        args.dv_pool = dv_pool;
        args.pool_mode = number<int32_t>(data, 1);
        args.softcap = softcap;
        args.alibi_slopes = alibi_slopes;
        args.sinks = sinks;
        args.dalibi_slopes = dalibi_slopes;
        args.dsinks = dsinks;
        run(plan, args, execution,
            {dout, q, k_pool, v_pool, out, lse, dlse, dq, dk_pool, dv_pool, alibi_slopes, sinks,
             dalibi_slopes, dsinks},
            {dq, dk_pool, dv_pool, dalibi_slopes, dsinks}, pagegrad_backward_workspace,
            pagegrad_backward);
    }

    void rest() {
        pagegrad_error error{};
        const char *name = nullptr;
        const char *const operations[] = {"forward", "backward", "gather", "", nullptr};
        const bool chosen =
            succeeded(pagegrad_choose_kernel(plan, data.PickValueInArray(operations),
                                             number<int32_t>(data, 2), &execution, &name, &error),
                      error);
        expect(chosen == (name != nullptr), "no name of a kernel, or one without kernel", error);
        pagegrad_kernel_info kernel{};
        kernel.struct_size = struct_size(sizeof(kernel));
        succeeded(pagegrad_get_kernel_info(number<int32_t>(data, 100), &kernel, &error), error);
        pagegrad_plan_info info{};
        info.struct_size = struct_size(sizeof(info));
        succeeded(pagegrad_plan_get_info(plan, &info, &error), error);
        if (fits(k_pool) && fits(dk_pool) && fits(dq)) {
            // Dense rows of another plan: their number is hardly ever right.
            succeeded(pagegrad_gather(plan, &k_pool, &dq, &execution, &error), error);
            succeeded(pagegrad_scatter_add(plan, &dq, &dk_pool, &execution, &error), error);
        }
    }

private:
    uint32_t struct_size(size_t right) {
        return data.ConsumeIntegralInRange(0, 30) == 0 ? data.ConsumeIntegral<uint32_t>()
                                                       : static_cast<uint32_t>(right);
    }
    float scale() {
        return data.ConsumeBool() ? 0.5f : data.ConsumeFloatingPoint<float>();
    }

    FuzzedDataProvider &data;
    const pagegrad_plan *plan;
    const pagegrad_execution execution;
    float softcap;
    pagegrad_tensor q, dout, out, dq, k_pool, v_pool, dk_pool, dv_pool, lse, dlse;
    pagegrad_tensor alibi_slopes, sinks, dalibi_slopes, dsinks;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    FuzzedDataProvider data(bytes, size);
    const Batch batch(data);
    pagegrad_error error{};
    pagegrad_plan *plan = nullptr;
    const bool made = succeeded(pagegrad_plan_create(&batch.desc, &plan, &error), error);
    expect(made == (plan != nullptr), "a plan after failure, or none after success", error);
    if (!made) {
        return 0;
    }
    Calls calls(data, plan, batch.desc);
    std::memset(memory, pattern, sizeof(memory));
    calls.forward();
    std::memset(memory, pattern, sizeof(memory));
    calls.backward();
    calls.rest();
    pagegrad_plan_destroy(plan);
    return 0;
}
