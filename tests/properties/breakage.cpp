#include "breakage.h"

#include "tests/support/rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace pagegrad::test {

namespace {

constexpr int32_t min_int32 = std::numeric_limits<int32_t>::min();
constexpr int32_t max_int32 = std::numeric_limits<int32_t>::max();
constexpr int64_t max_int64 = std::numeric_limits<int64_t>::max();

const std::vector<Function> plans = {&Attempt::create_plan};
const std::vector<Function> forwards = {&Attempt::forward, &Attempt::forward_workspace};
const std::vector<Function> backwards = {&Attempt::backward, &Attempt::backward_workspace};
const std::vector<Function> calls = {&Attempt::forward, &Attempt::forward_workspace,
                                     &Attempt::backward, &Attempt::backward_workspace};
const std::vector<Function> every_call = {
    &Attempt::forward,  &Attempt::forward_workspace,  &Attempt::gather,
    &Attempt::backward, &Attempt::backward_workspace, &Attempt::scatter_add};

bool is_empty(const pagegrad_tensor &tensor) {
    return std::find(tensor.shape, tensor.shape + tensor.rank, 0) != tensor.shape + tensor.rank;
}

bool is_present(const pagegrad_tensor &tensor) {
    return tensor.data != nullptr;
}

/// A tensor argument of some functions.
struct Slot {
    std::string name;
    std::vector<Function> functions;
    std::function<pagegrad_tensor &(Attempt &)> of;
    bool is_output = false;
};

std::vector<Slot> slots() {
    using Forward = pagegrad_forward_args;
    using Backward = pagegrad_backward_args;
    std::vector<Slot> all;
    const auto forward = [&all](const char *name, pagegrad_tensor Forward::*tensor,
                                bool is_output = false) {
        all.push_back(
            {name, forwards,
             [tensor](Attempt &a) -> pagegrad_tensor & { return a.call.forward_args.*tensor; },
             is_output});
    };
    const auto backward = [&all](const char *name, pagegrad_tensor Backward::*tensor,
                                 bool is_output = false) {
        all.push_back(
            {name, backwards,
             [tensor](Attempt &a) -> pagegrad_tensor & { return a.call.backward_args.*tensor; },
             is_output});
    };
    forward("q", &Forward::q);
    forward("k_pool", &Forward::k_pool);
    forward("v_pool", &Forward::v_pool);
    forward("out", &Forward::out, true);
    forward("lse", &Forward::lse, true);
    forward("alibi_slopes", &Forward::alibi_slopes);
    forward("sinks", &Forward::sinks);
    backward("dout", &Backward::dout);
    backward("q", &Backward::q);
    backward("k_pool", &Backward::k_pool);
    backward("v_pool", &Backward::v_pool);
    backward("out", &Backward::out);
    backward("lse", &Backward::lse);
    backward("dlse", &Backward::dlse);
    backward("dq", &Backward::dq, true);
    backward("dk_pool", &Backward::dk_pool, true);
    backward("dv_pool", &Backward::dv_pool, true);
    backward("alibi_slopes", &Backward::alibi_slopes);
    backward("sinks", &Backward::sinks);
    backward("dalibi_slopes", &Backward::dalibi_slopes, true);
    backward("dsinks", &Backward::dsinks, true);
    const auto pool = [](Attempt &a) -> pagegrad_tensor & { return a.pool; };
    const auto dense = [](Attempt &a) -> pagegrad_tensor & { return a.dense; };
    all.push_back({"pool", {&Attempt::gather}, pool});
    all.push_back({"dense", {&Attempt::gather}, dense, true});
    all.push_back({"dense", {&Attempt::scatter_add}, dense});
    all.push_back({"pool", {&Attempt::scatter_add}, pool, true});
    return all;
}

using Spoil = std::function<std::optional<Expected>(pagegrad_tensor &, Attempt &, Random &)>;

/// Breaks a tensor that is there; `spoil` says which of its fields is to blame.
Breakage breakage(const Slot &slot, const std::string &what, const Spoil &spoil) {
    return {slot.name + " " + what, slot.functions,
            [slot, spoil](Attempt &attempt, Random &random) -> std::optional<Expected> {
                pagegrad_tensor &tensor = slot.of(attempt);
                if (!is_present(tensor)) {
                    return {};
                }
                std::optional<Expected> expected = spoil(tensor, attempt, random);
                if (expected) {
                    expected->argument = slot.name + expected->argument;
                }
                return expected;
            }};
}

std::optional<Expected> spoil_rank(pagegrad_tensor &tensor, Attempt & /*attempt*/, Random &random) {
    const int32_t right = tensor.rank;
    tensor.rank = random.one_of<int32_t>({-1, 0, 1, 5, max_int32, min_int32});
    return tensor.rank == right ? std::nullopt : std::optional(Expected{".rank"});
}

std::optional<Expected> spoil_dtype(pagegrad_tensor &tensor, Attempt & /*attempt*/,
                                    Random &random) {
    tensor.dtype = random.one_of<int32_t>({-1, 3, 99, max_int32, min_int32});
    return Expected{".dtype"};
}

std::optional<Expected> spoil_data(pagegrad_tensor &tensor, Attempt & /*attempt*/, Random &random) {
    if (is_empty(tensor)) {
        return {};
    }
    tensor.data = random.chance(50) ? nullptr : static_cast<char *>(tensor.data) + 1;
    return Expected{".data"};
}

/// A size that the plan fixes, or that must be that of q.
std::optional<Expected> spoil_size(pagegrad_tensor &tensor, Attempt & /*attempt*/, Random &random) {
    int64_t &size = tensor.shape[random.below(tensor.rank)];
    const int64_t wrong = random.one_of<int64_t>(
        {size - 1, size + 1, 2 * size + 1, 0, -1, int64_t{max_int32} + 1, max_int64});
    if (wrong == size) {
        return {};
    }
    size = wrong;
    return Expected{".", wrong > max_int32 ? PAGEGRAD_UNSUPPORTED : PAGEGRAD_INVALID_ARGUMENT};
}

/// Of q, whose tokens may be more than the plan needs.
std::optional<Expected> spoil_query_size(pagegrad_tensor &tensor, Attempt &attempt,
                                         Random &random) {
    const bool batched = tensor.rank == 4;
    const int token_dim = batched ? 1 : 0;
    const std::vector<int32_t> &lengths = attempt.query_length;
    const bool any = std::any_of(lengths.begin(), lengths.end(), [](int32_t l) { return l > 0; });
    if (any && random.chance(30)) {
        // One short of the last token that a sequence has.
        int64_t need = 0;
        for (std::size_t b = 0; b < lengths.size(); b++) {
            if (lengths[b] > 0) {
                need = std::max<int64_t>(need, lengths[b] + (batched ? 0 : attempt.query_start[b]));
            }
        }
        tensor.shape[token_dim] = need - 1;
        return Expected{".shape[" + std::to_string(token_dim) + "]"};
    }
    int dim = random.below(tensor.rank);
    if (dim == token_dim) {
        dim = tensor.rank - 1;
    }
    const int64_t wrong = tensor.shape[dim] + random.one_of<int64_t>({-1, 1, 64});
    tensor.shape[dim] = wrong;
    return Expected{"."};
}

std::optional<Expected> spoil_stride(pagegrad_tensor &tensor, Attempt & /*attempt*/,
                                     Random &random) {
    if (is_empty(tensor)) {
        return {};
    }
    const int dim = random.below(tensor.rank);
    const int64_t wrong = random.one_of<int64_t>(
        {-1, -tensor.stride[dim], -max_int64, max_int64, int64_t{max_int32} + 1});
    if (wrong >= 0 && tensor.shape[dim] == 1) {
        return {};  // the stride counts for nothing
    }
    tensor.stride[dim] = wrong;
    return Expected{".stride[" + std::to_string(dim) + "]",
                    wrong < 0 ? PAGEGRAD_INVALID_ARGUMENT : PAGEGRAD_UNSUPPORTED};
}

std::optional<Expected> spoil_last_stride(pagegrad_tensor &tensor, Attempt & /*attempt*/,
                                          Random &random) {
    const int last = tensor.rank - 1;
    if (is_empty(tensor) || tensor.shape[last] == 1) {
        return {};
    }
    tensor.stride[last] = random.one_of<int64_t>({0, 2, 1000});
    return Expected{".stride[" + std::to_string(last) + "]"};
}

/// Two indices of an output that name one element.
std::optional<Expected> spoil_overlap(pagegrad_tensor &tensor, Attempt & /*attempt*/,
                                      Random &random) {
    const int dim = random.below(std::max(1, tensor.rank - 1));
    if (is_empty(tensor) || tensor.shape[dim] == 1) {
        return {};
    }
    tensor.stride[dim] = 0;
    return Expected{".stride["};
}

std::optional<Expected> spoil_forward_alias(pagegrad_tensor &tensor, Attempt &attempt,
                                            Random &random) {
    const pagegrad_forward_args &args = attempt.call.forward_args;
    const pagegrad_tensor other =
        random.one_of<pagegrad_tensor>({args.q, args.k_pool, args.v_pool});
    if (is_empty(tensor) || is_empty(other)) {
        return {};
    }
    tensor.data = other.data;
    return Expected{".data"};
}

std::optional<Expected> spoil_backward_alias(pagegrad_tensor &tensor, Attempt &attempt,
                                             Random &random) {
    const pagegrad_backward_args &args = attempt.call.backward_args;
    const pagegrad_tensor other =
        random.one_of<pagegrad_tensor>({args.dout, args.q, args.k_pool, args.v_pool, args.out});
    if (is_empty(tensor) || is_empty(other)) {
        return {};
    }
    tensor.data = other.data;
    return Expected{".data"};
}

void add_tensors(std::vector<Breakage> &all) {
    for (const Slot &slot : slots()) {
        all.push_back(breakage(slot, "rank", spoil_rank));
        all.push_back(breakage(slot, "dtype", spoil_dtype));
        all.push_back(breakage(slot, "data", spoil_data));
        all.push_back(breakage(slot, "size", slot.name == "q" ? spoil_query_size : spoil_size));
        all.push_back(breakage(slot, "stride", spoil_stride));
        all.push_back(breakage(slot, "last stride", spoil_last_stride));
        if (slot.is_output) {
            all.push_back(breakage(slot, "overlap", spoil_overlap));
            if (slot.functions.front() == &Attempt::forward) {
                all.push_back(breakage(slot, "alias", spoil_forward_alias));
            } else if (slot.functions.front() == &Attempt::backward) {
                all.push_back(breakage(slot, "alias", spoil_backward_alias));
            }
        }
    }
}

/// Breaks a number of a struct, whatever the problem.
template<typename Of, typename T>
Breakage number(const std::string &argument, const std::vector<Function> &functions, Of of,
                const std::vector<T> &wrong, pagegrad_status status = PAGEGRAD_INVALID_ARGUMENT) {
    return {argument, functions, [=](Attempt &attempt, Random &random) -> std::optional<Expected> {
                of(attempt) = random.one_of(wrong);
                return Expected{argument, status};
            }};
}

#define PAGEGRAD_FIELD(field) [](Attempt &a) -> auto & { return a.field; }

void add_arguments(std::vector<Breakage> &all) {
    const std::vector<uint32_t> sizes = {0, 1, 8, 100'000, UINT32_MAX};
    const std::vector<float> not_finite = {NAN, INFINITY, -INFINITY};
    all.push_back(
        number("args.struct_size", forwards, PAGEGRAD_FIELD(call.forward_args.struct_size), sizes));
    all.push_back(number("args.struct_size", backwards,
                         PAGEGRAD_FIELD(call.backward_args.struct_size), sizes));
    all.push_back(number("scale", forwards, PAGEGRAD_FIELD(call.forward_args.scale), not_finite));
    all.push_back(number("scale", backwards, PAGEGRAD_FIELD(call.backward_args.scale), not_finite));
    const std::vector<float> no_cap = {NAN, INFINITY, -INFINITY, -1, -1e-30f};
    all.push_back(number("softcap", forwards, PAGEGRAD_FIELD(call.forward_args.softcap), no_cap));
    all.push_back(number("softcap", backwards, PAGEGRAD_FIELD(call.backward_args.softcap), no_cap));
    all.push_back(number("pool_mode", backwards, PAGEGRAD_FIELD(call.backward_args.pool_mode),
                         std::vector<int32_t>{-1, 2, max_int32, min_int32}));
}

void add_execution(std::vector<Breakage> &all) {
    const auto add = [&all](const char *field, auto of, const auto &wrong) {
        all.push_back(number(std::string("execution.") + field, every_call, of, wrong));
    };
    const std::vector<int32_t> not_flags = {-1, 2, max_int32, min_int32};
    add("struct_size", PAGEGRAD_FIELD(call.execution.struct_size),
        std::vector<uint32_t>{0, 1, 100'000, UINT32_MAX});
    add("device", PAGEGRAD_FIELD(call.execution.device), not_flags);
    add("unordered", PAGEGRAD_FIELD(call.execution.unordered), not_flags);
    add("num_threads", PAGEGRAD_FIELD(call.execution.num_threads),
        std::vector<int32_t>{-1, 4097, 100'000, max_int32, min_int32});
    add("kernel", PAGEGRAD_FIELD(call.execution.kernel),
        std::vector<const char *>{"", "_", "abacus", "sm90", "backward_f32_d63_avx2", "%s%n"});
    static char memory[256];
    add("workspace", PAGEGRAD_FIELD(call.execution.workspace),
        std::vector<void *>{memory + (reinterpret_cast<std::uintptr_t>(memory) % 64 == 0 ? 8 : 0),
                            reinterpret_cast<void *>(1)});
    all.push_back({"execution.workspace_size",
                   {&Attempt::forward, &Attempt::backward},
                   [](Attempt &attempt, Random &random) -> std::optional<Expected> {
                       alignas(64) static char too_small[64];
                       if (attempt.desc.num_sequences == 0) {
                           return {};  // nothing may be enough
                       }
                       attempt.call.execution.workspace = too_small;
                       attempt.call.execution.workspace_size = random.below(64);
                       return Expected{"execution.workspace_size", PAGEGRAD_WORKSPACE_TOO_SMALL};
                   }});
}

void add_geometry(std::vector<Breakage> &all) {
    const auto add = [&all](const char *field, auto of, const auto &wrong,
                            pagegrad_status status = PAGEGRAD_INVALID_ARGUMENT) {
        all.push_back(number(field, plans, of, wrong, status));
    };
    add("struct_size", PAGEGRAD_FIELD(desc.struct_size),
        std::vector<uint32_t>{0, 1, sizeof(pagegrad_plan_desc) - 8, UINT32_MAX});
    add("num_kv_heads", PAGEGRAD_FIELD(desc.num_kv_heads), std::vector<int32_t>{0, -1, min_int32});
    add("num_heads", PAGEGRAD_FIELD(desc.num_heads), std::vector<int32_t>{0, -1, min_int32});
    all.push_back(
        {"num_heads", plans, [](Attempt &attempt, Random & /*random*/) -> std::optional<Expected> {
             if (attempt.desc.num_kv_heads == 1) {
                 attempt.desc.num_heads = 1 << 20;
                 return Expected{"num_heads", PAGEGRAD_UNSUPPORTED};
             }
             attempt.desc.num_heads++;
             return Expected{"num_heads"};
         }});
    add("head_dim", PAGEGRAD_FIELD(desc.head_dim),
        std::vector<int32_t>{0, -1, 513, max_int32, min_int32});
    add("value_head_dim", PAGEGRAD_FIELD(desc.value_head_dim),
        std::vector<int32_t>{-1, 513, max_int32, min_int32});
    add("mask", PAGEGRAD_FIELD(desc.mask), std::vector<int32_t>{-1, 3, max_int32, min_int32});
    add("window_left", PAGEGRAD_FIELD(desc.window_left), std::vector<int64_t>{-2, -max_int64});
    add("window_right", PAGEGRAD_FIELD(desc.window_right), std::vector<int64_t>{-2, -max_int64});
    add("num_sequences", PAGEGRAD_FIELD(desc.num_sequences), std::vector<int32_t>{-1, min_int32});
    add("block_size", PAGEGRAD_FIELD(desc.block_size), std::vector<int32_t>{0, -1, min_int32});
    add("num_blocks", PAGEGRAD_FIELD(desc.num_blocks), std::vector<int64_t>{-1, -max_int64});
    add("max_blocks", PAGEGRAD_FIELD(desc.max_blocks), std::vector<int32_t>{-1, min_int32});
    add("block_table_stride", PAGEGRAD_FIELD(desc.block_table_stride),
        std::vector<int64_t>{-1, -max_int64});
}

#undef PAGEGRAD_FIELD

using SpoilSequence = std::function<std::optional<Expected>(Attempt &, int32_t b, Random &)>;

/// Breaks something of one sequence.
Breakage of_sequence(const std::string &name, const SpoilSequence &spoil) {
    return {name, plans, [spoil](Attempt &attempt, Random &random) -> std::optional<Expected> {
                const int32_t count = attempt.desc.num_sequences;
                return count == 0 ? std::nullopt : spoil(attempt, random.below(count), random);
            }};
}

std::string entry(const std::string &array, int32_t b) {
    return array + "[" + std::to_string(b) + "]";
}

int32_t blocks_of(const Attempt &attempt, int32_t b) {
    const int32_t size = attempt.desc.block_size;
    return (attempt.kv_length[b] + size - 1) / size;
}

void add_sequences(std::vector<Breakage> &all) {
    all.push_back(of_sequence("query_length", [](Attempt &a, int32_t b, Random &random) {
        a.query_length[b] = random.one_of<int32_t>({-1, min_int32});
        return Expected{entry("query_length", b)};
    }));
    all.push_back(of_sequence("kv_length", [](Attempt &a, int32_t b, Random &random) {
        const int64_t capacity = int64_t{a.desc.max_blocks} * a.desc.block_size;
        a.kv_length[b] =
            random.one_of<int32_t>({-1, min_int32, max_int32, static_cast<int32_t>(capacity + 1)});
        return Expected{entry("kv_length", b)};
    }));
    all.push_back(
        of_sequence("max_blocks of a length",
                    [](Attempt &a, int32_t b, Random & /*random*/) -> std::optional<Expected> {
                        if (blocks_of(a, b) == 0) {
                            return {};
                        }
                        a.desc.max_blocks = blocks_of(a, b) - 1;
                        return Expected{"kv_length["};  // of the first that is too long
                    }));
    all.push_back(of_sequence("query_start", [](Attempt &a, int32_t b, Random &random) {
        a.desc.query_start = a.query_start.data();
        a.query_start[b] = random.one_of<int32_t>({-1, min_int32});
        return Expected{entry("query_start", b)};
    }));
    all.push_back(of_sequence(
        "query_start overlap",
        [](Attempt &a, int32_t b, Random &random) -> std::optional<Expected> {
            const int32_t other = random.below(a.desc.num_sequences);
            if (other == b || a.query_length[b] == 0 || a.query_length[other] == 0) {
                return {};
            }
            a.desc.query_start = a.query_start.data();
            a.query_start[b] = a.query_start[other] + random.below(a.query_length[other]);
            return Expected{"query_start["};
        }));
    all.push_back(of_sequence(
        "block id", [](Attempt &a, int32_t b, Random &random) -> std::optional<Expected> {
            if (blocks_of(a, b) == 0) {
                return {};
            }
            const int32_t column = random.below(blocks_of(a, b));
            a.table[b * a.desc.block_table_stride + column] = random.one_of<int32_t>(
                {-1, static_cast<int32_t>(a.desc.num_blocks), max_int32, max_int32 - 1, min_int32});
            return Expected{entry("block_table", b) + "[" + std::to_string(column) + "]"};
        }));
    all.push_back(
        of_sequence("num_blocks of a table",
                    [](Attempt &a, int32_t b, Random & /*random*/) -> std::optional<Expected> {
                        if (blocks_of(a, b) == 0) {
                            return {};
                        }
                        a.desc.num_blocks = a.table[b * a.desc.block_table_stride];
                        return Expected{"block_table["};
                    }));
    all.push_back(of_sequence("stride of a table", [](Attempt &a, int32_t, Random &random) {
        a.desc.block_table_stride = random.one_of<int64_t>({a.desc.max_blocks - 1, max_int64});
        return Expected{"block_table_stride"};
    }));
}

void add_pointers(std::vector<Breakage> &all) {
    all.push_back(of_sequence("no query_length", [](Attempt &a, int32_t, Random &) {
        a.desc.query_length = nullptr;
        return Expected{"query_length is NULL"};
    }));
    all.push_back(of_sequence("no kv_length", [](Attempt &a, int32_t, Random &) {
        a.desc.kv_length = nullptr;
        return Expected{"kv_length is NULL"};
    }));
    all.push_back(of_sequence("no block_table",
                              [](Attempt &a, int32_t b, Random &) -> std::optional<Expected> {
                                  if (blocks_of(a, b) == 0) {
                                      return {};
                                  }
                                  a.desc.block_table = nullptr;
                                  return Expected{"block_table is NULL"};
                              }));
}

std::vector<Breakage> all_breakages() {
    std::vector<Breakage> all;
    add_tensors(all);
    add_arguments(all);
    add_execution(all);
    add_geometry(all);
    add_sequences(all);
    add_pointers(all);
    return all;
}

GuardedTensor make_rows(const Problem &problem) {
    const AttentionInputs &in = problem.inputs;
    const int64_t keys = std::accumulate(in.kv_length.begin(), in.kv_length.end(), int64_t{0});
    return GuardedTensor({keys, in.num_kv_heads, in.head_dim}, Layout::Padded);
}

/// The kernels of the case, unless the name of the kernel is what is wrong.
void use_kernels(Attempt &attempt, const RandomCase &test, Function function) {
    const bool backward =
        function == &Attempt::backward || function == &Attempt::backward_workspace;
    const bool forward = function == &Attempt::forward || function == &Attempt::forward_workspace;
    const std::string &name = backward ? test.backward_kernel : test.forward_kernel;
    if (attempt.call.execution.kernel == nullptr && (backward || forward) && !name.empty()) {
        attempt.call.execution.kernel = name.c_str();
    }
}

void expect_refused(Attempt &attempt, Function function, const Expected &expected) {
    pagegrad_error error{};
    EXPECT_EQ((attempt.*function)(&error), expected.status) << error.message;
    EXPECT_EQ(std::string(error.message).substr(0, expected.argument.size()), expected.argument)
        << error.message;
    EXPECT_EQ((attempt.*function)(nullptr), expected.status);
}

/// Whether a call on a GPU refuses it for the same reason.
bool concerns_gpus(const Breakage &breakage) {
    return (breakage.functions == forwards || breakage.functions == backwards ||
            breakage.functions == every_call) &&
           breakage.name != "execution.kernel";
}

}  // namespace

Attempt::Attempt(const Problem &problem, const Options &options)
    : call(problem, options), query_length(problem.inputs.query_length),
      query_start(call.query_start()), kv_length(problem.inputs.kv_length),
      table(call.desc.block_table,
            call.desc.block_table + kv_length.size() * call.desc.block_table_stride),
      desc(call.desc), rows(make_rows(problem)), pool(call.dk_pool), dense(rows) {
    desc.query_length = query_length.data();
    desc.kv_length = kv_length.data();
    desc.block_table = table.data();
    if (desc.query_start != nullptr) {
        desc.query_start = query_start.data();
    }
}

pagegrad_status Attempt::create_plan(pagegrad_error *error) {
    pagegrad_plan *plan = call.plan();  // must become NULL
    const pagegrad_status status = pagegrad_plan_create(&desc, &plan, error);
    EXPECT_EQ(plan, nullptr);
    return status;
}

pagegrad_status Attempt::forward(pagegrad_error *error) {
    return pagegrad_forward(call.plan(), &call.forward_args, &call.execution, error);
}

pagegrad_status Attempt::backward(pagegrad_error *error) {
    return pagegrad_backward(call.plan(), &call.backward_args, &call.execution, error);
}

pagegrad_status Attempt::forward_workspace(pagegrad_error *error) {
    std::size_t bytes = 77;
    const pagegrad_status status =
        pagegrad_forward_workspace(call.plan(), &call.forward_args, &call.execution, &bytes, error);
    EXPECT_EQ(bytes, 77U);
    return status;
}

pagegrad_status Attempt::backward_workspace(pagegrad_error *error) {
    std::size_t bytes = 77;
    const pagegrad_status status = pagegrad_backward_workspace(call.plan(), &call.backward_args,
                                                               &call.execution, &bytes, error);
    EXPECT_EQ(bytes, 77U);
    return status;
}

pagegrad_status Attempt::gather(pagegrad_error *error) {
    return pagegrad_gather(call.plan(), &pool, &dense, &call.execution, error);
}

pagegrad_status Attempt::scatter_add(pagegrad_error *error) {
    return pagegrad_scatter_add(call.plan(), &dense, &pool, &call.execution, error);
}

std::vector<std::vector<uint16_t>> Attempt::bits() const {
    std::vector<std::vector<uint16_t>> all;
    for (const GuardedTensor *tensor :
         {&call.q, &call.dout, &call.k_pool, &call.v_pool, &call.saved_out, &call.saved_lse,
          &call.dlse, &call.alibi_slopes, &call.sinks, &call.out, &call.lse, &call.dq,
          &call.dk_pool, &call.dv_pool, &call.dalibi_slopes, &call.dsinks, &rows}) {
        all.push_back(tensor->bits());
    }
    return all;
}

const std::vector<Breakage> &breakages() {
    static const std::vector<Breakage> all = all_breakages();
    return all;
}

void expect_refusals(uint64_t seed, const pagegrad_execution *gpu) {
    const Breakage &breakage = breakages()[seed % breakages().size()];
    if (gpu != nullptr && !concerns_gpus(breakage)) {
        return;
    }
    for (uint64_t offset = 0; offset < 100; offset++) {
        const RandomCase test = random_case(seed + offset * 1'000'000);
        const Problem problem = make_problem(test.geometry);
        Attempt attempt(problem, test.options);
        if (gpu != nullptr) {
            attempt.call.execution = *gpu;
        }
        Random random(seed + offset);
        const std::optional<Expected> expected = breakage.spoil(attempt, random);
        if (!expected) {
            continue;
        }
        SCOPED_TRACE(testing::Message()
                     << "seed " << seed << ", broken " << breakage.name << " of " << test);
        const auto before = attempt.bits();
        for (const Function function : breakage.functions) {
            const char *kernel = attempt.call.execution.kernel;
            if (gpu == nullptr) {
                use_kernels(attempt, test, function);
            }
            expect_refused(attempt, function, *expected);
            attempt.call.execution.kernel = kernel;
        }
        EXPECT_TRUE(before == attempt.bits()) << "something was written";
        return;
    }
    ADD_FAILURE() << "no problem to break " << breakage.name << " of";
}

}  // namespace pagegrad::test
