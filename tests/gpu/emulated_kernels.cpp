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
        : entry(entry), items(int64_t{blocks} * entry.kernel->items_per_block) {
        for (int i = 0; i < entry.kernel->num_parameters; i++) {
            const DeviceParameter &parameter = entry.kernel->parameters[i];
            std::memcpy(&arguments[parameter.name], values[i], parameter.bytes);
        }
    }

    void run() const {
        const std::string operation = entry.operation;
        if (operation == "backward" || operation == "forward") {
            for (int64_t task = 0; task < items; task++) {
                operation == "backward" ? backward(pointer<cuda::BackwardTask>("tasks")[task])
                                        : forward(pointer<cuda::ForwardTask>("tasks")[task]);
            }
            return;
        }
        for (int64_t row = 0; row < std::min<int64_t>(items, integer("num_rows")); row++) {
            operation == "row_statistics" ? row_statistics(row) : backward_finish(row);
        }
    }

private:
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

    /// Element (..., i2, i1) of a tensor whose strides count `unit` elements.
    template<typename T>
    T *element(const std::string &name, int unit, int64_t i1, int64_t i2, int64_t i3) const {
        return pointer<T>(name) +
               unit * (i1 * integer(name + ".stride.1") + i2 * integer(name + ".stride.2") +
                       i3 * integer(name + ".stride.3"));
    }
    float widen(uint16_t bits) const {
        return entry.dtype == PAGEGRAD_BFLOAT16 ? bfloat16_to_float(bits) : half_to_float(bits);
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

    void forward(const cuda::ForwardTask &task) const {
        const auto *queries = pointer<cuda::Query>("queries") + task.query_begin;
        const int64_t group = integer("group");
        for (int64_t row = task.row_begin; row < task.row_end; row++) {
            forward_row(task, queries[row / group], task.kv_head * group + row % group);
        }
    }

    void forward_row(const cuda::ForwardTask &task, const cuda::Query &query, int64_t head) const {
        const auto *q = element<uint16_t>("q", 8, head, query.token, query.batch);
        std::vector<float> sum(head_dim());
        float largest = -INFINITY, total = 0;
        for (int32_t key = std::max(query.key_begin, task.key_begin);
             key < std::min(query.key_end, task.key_end); key++) {
            const int64_t block_size = integer("block_size"), slot = key % block_size;
            const int64_t block = pointer<int32_t>("blocks")[task.block_begin + key / block_size];
            const auto *v = element<uint16_t>("v_pool", 8, task.kv_head, slot, block);
            const float score =
                number("scale_log2") *
                dot(q, element<uint16_t>("k_pool", 8, task.kv_head, slot, block), head_dim());
            const float top = std::max(largest, score), rescale = std::exp2(largest - top);
            const float p = std::exp2(score - top);
            largest = top;
            total = total * rescale + p;
            for (size_t d = 0; d < sum.size(); d++) {
                sum[d] = sum[d] * rescale + p * widen(v[d]);
            }
        }
        auto *out = element<uint16_t>("out", 2, head, query.token, query.batch);
        for (size_t d = 0; d < sum.size(); d++) {
            out[d] = narrow(total > 0 ? sum[d] / total : 0);
        }
        pointer<float>(
            "lse")[head * integer("lse.stride.0") + query.token * integer("lse.stride.1") +
                   query.batch * integer("lse.stride.2")] =
            total > 0 ? (largest + std::log2(total)) * static_cast<float>(M_LN2) : -INFINITY;
    }

    void backward(const cuda::BackwardTask &task) const {
        const auto *queries = pointer<cuda::Query>("queries");
        const int64_t group = integer("group");
        for (int32_t i = task.query_begin; i < task.query_end; i++) {
            for (int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; head++) {
                backward_row(task, queries[i], head);
            }
        }
    }

    void backward_row(const cuda::BackwardTask &task, const cuda::Query &query,
                      int64_t head) const {
        const int64_t head_dim = this->head_dim();
        const float scale = number("scale");
        const int64_t row =
            (query.batch * integer("num_tokens") + query.token) * integer("num_heads") + head;
        const auto *q = element<uint16_t>("q", 8, head, query.token, query.batch);
        const auto *dout = element<uint16_t>("dout", 8, head, query.token, query.batch);
        const float lse_log2 = pointer<float>("statistics")[2 * row];
        const float delta = pointer<float>("statistics")[2 * row + 1];
        float *dq = pointer<float>("dq") + row * entry.columns();
        const int32_t begin = std::max(query.key_begin, task.first_key);
        const int32_t end = std::min(query.key_end, task.first_key + task.num_keys);
        for (int32_t key = begin; key < end; key++) {
            const int64_t place = task.first_slot + (key - task.first_key);
            const int64_t block_size = integer("block_size"), slot = place % block_size;
            const int64_t block = pointer<int32_t>("blocks")[task.block_begin + place / block_size];
            const auto *k = element<uint16_t>("k_pool", 8, task.kv_head, slot, block);
            const auto *v = element<uint16_t>("v_pool", 8, task.kv_head, slot, block);
            float *dk = element<float>("dk_pool", 2, task.kv_head, slot, block);
            float *dv = element<float>("dv_pool", 2, task.kv_head, slot, block);
            const float score = scale * dot(q, k, head_dim) * static_cast<float>(M_LOG2E);
            const float p = std::exp2(score - lse_log2);
            const float ds = p * (dot(dout, v, head_dim) - delta);
            for (int64_t d = 0; d < head_dim; d++) {
                dq[d] += ds * widen(k[d]);
                dk[d] += scale * ds * widen(q[d]);
                dv[d] += p * widen(dout[d]);
            }
        }
    }

    struct RowPlace {
        int64_t head, token, batch;
    };
    RowPlace place_of(int64_t row) const {
        const int64_t heads = integer("num_heads"), tokens = integer("num_tokens");
        return {row % heads, row / heads % tokens, row / heads / tokens};
    }

    float row_value(const std::string &name, const RowPlace &at) const {
        return pointer<float>(
            name)[at.head * integer(name + ".stride.0") + at.token * integer(name + ".stride.1") +
                  at.batch * integer(name + ".stride.2")];
    }

    void row_statistics(int64_t row) const {
        const RowPlace at = place_of(row);
        const auto *dout = element<uint16_t>("dout", 2, at.head, at.token, at.batch);
        const auto *out = element<uint16_t>("out", 2, at.head, at.token, at.batch);
        float *statistics = pointer<float>("statistics") + 2 * row;
        statistics[0] = row_value("lse", at) * static_cast<float>(M_LOG2E);
        statistics[1] =
            dot(dout, out, integer("head_dim")) - (integer("has_dlse") ? row_value("dlse", at) : 0);
    }

    void backward_finish(int64_t row) const {
        const RowPlace at = place_of(row);
        const int64_t head_dim = integer("head_dim");
        auto *dq = element<uint16_t>("dq", 2, at.head, at.token, at.batch);
        for (int64_t d = 0; d < head_dim; d++) {
            const float value =
                number("scale") * pointer<float>("dq_sum")[row * integer("dq_sum.stride.1") + d];
            dq[d] = narrow(value);
        }
    }

    const KernelEntry &entry;
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
