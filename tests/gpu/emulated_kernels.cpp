#include "emulated_kernels.h"

#include "runtime/src/cuda/device_kernels.h"
#include "runtime/src/cuda/work_lists.h"
#include "tools/npy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace pagegrad::test {

namespace {

using cuda::KernelEntry;

/// A launch with its arguments by name.
class Launch {
public:
    Launch(const KernelEntry &entry, unsigned blocks, void **values)
        : entry(entry), values(values_of(entry.dtype)),
          items(int64_t{blocks} * entry.kernel->items_per_block) {
        for (int i = 0; i < entry.kernel->num_parameters; i++) {
            const DeviceParameter &parameter = entry.kernel->parameters[i];
            std::memcpy(&arguments[parameter.name], values[i], parameter.bytes);
        }
    }

    void run() const {
        const std::string operation = entry.operation;
        if (operation == "backward" || operation == "backward_keys" ||
            operation == "backward_values") {
            for_each_task<cuda::KeyTask>([&](const auto &task) { key_task(task); });
            return;
        }
        if (operation == "backward_queries" || operation == "forward") {
            for_each_task<cuda::QueryTask>([&](const auto &task) { query_task(task); });
            return;
        }
        for (int64_t row = 0; row < std::min<int64_t>(items, integer("num_rows")); row++) {
            operation == "row_statistics" ? row_statistics(row) : backward_finish(row);
        }
    }

private:
    template<typename Task, typename Work>
    void for_each_task(const Work &work) const {
        std::for_each_n(pointer<Task>("tasks"), items, work);
    }

    bool lists(const std::string &name) const {
        return arguments.count(name) != 0;
    }
    uint64_t argument(const std::string &name) const {
        const auto found = arguments.find(name);
        if (found == arguments.end()) {
            throw std::logic_error(std::string(entry.kernel->name) + " does not list " + name);
        }
        return found->second;
    }
    template<typename T>
    T *pointer(const std::string &name) const {
        const uint64_t bits = argument(name);
        T *address;
        std::memcpy(&address, &bits, sizeof(address));
        return address;
    }
    int64_t integer(const std::string &name) const {
        return static_cast<int32_t>(argument(name));
    }
    float number(const std::string &name) const {
        const auto bits = static_cast<uint32_t>(argument(name));
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        return value;
    }

    /// A tensor whose strides count `unit` elements: (i1, i2, i3) is the first of the innermost.
    template<typename T>
    struct View {
        T *data;
        int64_t stride1, stride2, stride3;
        T *operator()(int64_t i1, int64_t i2, int64_t i3) const {
            return data + i1 * stride1 + i2 * stride2 + i3 * stride3;
        }
    };
    template<typename T>
    View<T> view(const std::string &name, int unit) const {
        const auto stride = [&](const char *dim) {
            return unit * integer(name + ".stride." + dim);
        };
        return {pointer<T>(name), stride("1"), stride("2"), stride("3")};
    }
    float widen(uint16_t bits) const {
        return values[bits];
    }
    uint16_t narrow(float value) const {
        return entry.dtype == PAGEGRAD_BFLOAT16 ? float_to_bfloat16(value) : float_to_half(value);
    }
    float dot(const uint16_t *a, const uint16_t *b, int64_t count) const {
        float sum = 0;
        for (int64_t d = 0; d < count; d++) {
            sum += widen(a[d]) * widen(b[d]);
        }
        return sum;
    }

    int64_t head_dim() const {
        return entry.head_dim == 0 ? integer("head_dim") : entry.head_dim;
    }

    struct RowPlace {
        int64_t head, token, batch;
    };
    /// A row of the pools.
    struct PoolRow {
        int64_t kv_head, slot, block;
    };
    /// That of the key `place` slots after the start of block number `first_block` of the list.
    PoolRow pool_row(int64_t kv_head, int64_t first_block, int64_t place) const {
        const int64_t block_size = integer("block_size");
        return {kv_head, place % block_size,
                pointer<int32_t>("blocks")[first_block + place / block_size]};
    }
    template<typename T>
    static T *at(const View<T> &pool, const PoolRow &row) {
        return pool(row.kv_head, row.slot, row.block);
    }

    int64_t row_of(const cuda::Query &query, int64_t head) const {
        return (query.batch * integer("num_tokens") + query.token) * integer("num_heads") + head;
    }

    /// What a query row of the backward makes of keys.
    class GradientRow {
    public:
        GradientRow(const Launch &launch, const cuda::Query &query, int64_t head)
            : q(launch.view<uint16_t>("q", 8)(head, query.token, query.batch)),
              dout(launch.view<uint16_t>("dout", 8)(head, query.token, query.batch)),
              launch(launch), head_dim(launch.head_dim()), scale_log2(launch.number("scale_log2")),
              statistics(launch.pointer<float>("statistics") + 2 * launch.row_of(query, head)) {
        }
        float probability(const uint16_t *k) const {
            return std::exp2(scale_log2 * launch.dot(q, k, head_dim) - statistics[0]);
        }
        float score_gradient(float p, const uint16_t *v) const {
            return p * (launch.dot(dout, v, head_dim) - statistics[1]);
        }
        const uint16_t *const q, *const dout;

    private:
        const Launch &launch;
        const int64_t head_dim;
        const float scale_log2;
        const float *const statistics;
    };

    void key_task(const cuda::KeyTask &task) const {
        const auto *queries = pointer<cuda::Query>("queries");
        const int64_t group = integer("group");
        for (int32_t i = task.query_begin; i < task.query_end; i++) {
            for (int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; head++) {
                add_key_gradients(task, queries[i], head);
            }
        }
    }

    void add_key_gradients(const cuda::KeyTask &task, const cuda::Query &query,
                           int64_t head) const {
        const GradientRow row(*this, query, head);
        const auto k_pool = view<uint16_t>("k_pool", 8);
        float *dq =
            lists("dq") ? pointer<float>("dq") + row_of(query, head) * entry.max_head_dim : nullptr;
        for (int32_t key = std::max(query.key_begin, task.first_key);
             key < std::min(query.key_end, task.first_key + task.num_keys); key++) {
            const PoolRow place =
                pool_row(task.kv_head, task.block_begin, task.first_slot + (key - task.first_key));
            const auto *k = at(k_pool, place);
            const float p = row.probability(k);
            if (lists("dv_pool")) {
                add(at(view<float>("dv_pool", 2), place), p, row.dout);
            }
            if (lists("dk_pool")) {
                const float ds = row.score_gradient(p, at(view<uint16_t>("v_pool", 8), place));
                add(at(view<float>("dk_pool", 2), place), number("scale") * ds, row.q);
                if (dq) {
                    add(dq, ds, k);
                }
            }
        }
    }

    void add(float *to, float factor, const uint16_t *row) const {
        for (int64_t d = 0; d < head_dim(); d++) {
            to[d] += factor * widen(row[d]);
        }
    }

    void query_task(const cuda::QueryTask &task) const {
        const bool is_forward = std::string(entry.operation) == "forward";
        const auto *queries = pointer<cuda::Query>("queries") + task.query_begin;
        const int64_t group = integer("group");
        for (int64_t row = task.row_begin; row < task.row_end; row++) {
            const int64_t head = task.kv_head * group + row % group;
            is_forward ? forward_row(task, queries[row / group], head)
                       : query_gradient(task, queries[row / group], head);
        }
    }

    /// Calls use(place in the pools) for the keys that a query sees of a task.
    template<typename Use>
    void for_each_key(const cuda::QueryTask &task, const cuda::Query &query, const Use &use) const {
        for (int32_t key = std::max(query.key_begin, task.key_begin);
             key < std::min(query.key_end, task.key_end); key++) {
            use(pool_row(task.kv_head, task.block_begin, key));
        }
    }

    void forward_row(const cuda::QueryTask &task, const cuda::Query &query, int64_t head) const {
        const auto *q = view<uint16_t>("q", 8)(head, query.token, query.batch);
        const auto k_pool = view<uint16_t>("k_pool", 8), v_pool = view<uint16_t>("v_pool", 8);
        std::vector<float> sum(head_dim());
        float largest = -INFINITY, total = 0;
        for_each_key(task, query, [&](const PoolRow &place) {
            const float score = number("scale_log2") * dot(q, at(k_pool, place), head_dim());
            const float top = std::max(largest, score), rescale = std::exp2(largest - top);
            const float p = std::exp2(score - top);
            largest = top;
            total = total * rescale + p;
            for (size_t d = 0; d < sum.size(); d++) {
                sum[d] = sum[d] * rescale + p * widen(at(v_pool, place)[d]);
            }
        });
        store("out", {head, query.token, query.batch}, sum, total > 0 ? 1 / total : 0);
        row_value("lse", {head, query.token, query.batch}) =
            total > 0 ? (largest + std::log2(total)) * static_cast<float>(M_LN2) : -INFINITY;
    }

    void query_gradient(const cuda::QueryTask &task, const cuda::Query &query, int64_t head) const {
        const GradientRow row(*this, query, head);
        const auto k_pool = view<uint16_t>("k_pool", 8), v_pool = view<uint16_t>("v_pool", 8);
        std::vector<float> sum(head_dim());
        for_each_key(task, query, [&](const PoolRow &place) {
            const auto *k = at(k_pool, place);
            const float p = row.probability(k);
            add(sum.data(), row.score_gradient(p, at(v_pool, place)), k);
        });
        store("dq", {head, query.token, query.batch}, sum, number("scale"));
    }

    /// Writes a row, times a factor, in the type of the tensor.
    void store(const std::string &name, const RowPlace &at, const std::vector<float> &row,
               float factor) const {
        const bool single = integer(name + "_is_f32") != 0;
        float *pairs = view<float>(name + "_f32", 2)(at.head, at.token, at.batch);
        uint16_t *words = view<uint16_t>(name, 2)(at.head, at.token, at.batch);
        for (size_t d = 0; d < row.size(); d++) {
            if (single) {
                pairs[d] = factor * row[d];
            } else {
                words[d] = narrow(factor * row[d]);
            }
        }
    }

    RowPlace place_of(int64_t row) const {
        const int64_t heads = integer("num_heads"), tokens = integer("num_tokens");
        return {row % heads, row / heads % tokens, row / heads / tokens};
    }

    float &row_value(const std::string &name, const RowPlace &at) const {
        return pointer<float>(
            name)[at.head * integer(name + ".stride.0") + at.token * integer(name + ".stride.1") +
                  at.batch * integer(name + ".stride.2")];
    }

    void row_statistics(int64_t row) const {
        const RowPlace at = place_of(row);
        const auto *dout = view<uint16_t>("dout", 2)(at.head, at.token, at.batch);
        const bool single = integer("out_is_f32") != 0;
        const auto *out = view<uint16_t>("out", 2)(at.head, at.token, at.batch);
        const auto *out_f32 = view<float>("out", 1)(at.head, at.token, at.batch);
        float delta = 0;
        for (int64_t d = 0; d < integer("head_dim"); d++) {
            delta += widen(dout[d]) * (single ? out_f32[d] : widen(out[d]));
        }
        float *statistics = pointer<float>("statistics") + 2 * row;
        statistics[0] = row_value("lse", at) * static_cast<float>(M_LOG2E);
        statistics[1] = delta - (integer("has_dlse") ? row_value("dlse", at) : 0);
    }

    void backward_finish(int64_t row) const {
        const RowPlace at = place_of(row);
        const int64_t head_dim = integer("head_dim");
        auto *dq = view<uint16_t>("dq", 2)(at.head, at.token, at.batch);
        for (int64_t d = 0; d < head_dim; d++) {
            const float value =
                number("scale") * pointer<float>("dq_sum")[row * integer("dq_sum.stride.1") + d];
            dq[d] = narrow(value);
        }
    }

    /// The numbers of a 16-bit type by their bits.
    static std::vector<float> all_values(pagegrad_dtype dtype) {
        std::vector<float> all;
        for (uint32_t bits = 0; bits < 0x10000; bits++) {
            const auto half = static_cast<uint16_t>(bits);
            all.push_back(dtype == PAGEGRAD_BFLOAT16 ? bfloat16_to_float(half)
                                                     : half_to_float(half));
        }
        return all;
    }
    static const std::vector<float> &values_of(pagegrad_dtype dtype) {
        static const std::vector<float> bf16 = all_values(PAGEGRAD_BFLOAT16),
                                        f16 = all_values(PAGEGRAD_FLOAT16);
        return dtype == PAGEGRAD_BFLOAT16 ? bf16 : f16;
    }

    const KernelEntry &entry;
    const std::vector<float> &values;
    const int64_t items;
    std::map<std::string, uint64_t> arguments;
};

}  // namespace

std::function<void()> emulate_launch(const void *image, const char *entry, unsigned blocks,
                                     void **arguments) {
    for (const KernelEntry &candidate : cuda::kernel_entries()) {
        if (candidate.kernel->image == image && !std::strcmp(candidate.kernel->entry, entry)) {
            return [launch = Launch(candidate, blocks, arguments)] { launch.run(); };
        }
    }
    throw std::logic_error(std::string("no kernel of this build: ") + entry);
}

}  // namespace pagegrad::test
