// Attention tensors of a trained model (examples/data/README.md), paged into a shuffled pool where
// sequences 1 and 3 share the blocks of their common prefix.
#include "tests/support/problem.h"
#include "tools/npy.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <ostream>

namespace pagegrad::test {
namespace {

constexpr int num_heads = 9, num_kv_heads = 3, head_dim = 64, block_size = 16;
constexpr int shared_tokens = 64;  ///< the first of sequences 1 and 3

template<typename T>
std::vector<T> load(const std::string &name) {
    const NpyArray array = read_npy(std::string(PAGEGRAD_DATA_DIR) + "/" + name + ".npy");
    std::vector<T> values(array.bytes.size() / sizeof(T));
    std::memcpy(values.data(), array.bytes.data(), array.bytes.size());
    return values;
}

std::vector<double> load_doubles(const std::string &name) {
    const std::vector<float> values = load<float>(name);
    return {values.begin(), values.end()};
}

/// Fills the block lists of the sequences, and the pools from the packed keys and values.
void page(AttentionInputs &inputs, const std::vector<int32_t> &starts, const std::vector<double> &k,
          const std::vector<double> &v) {
    constexpr std::size_t row = num_kv_heads * head_dim;
    int32_t num_blocks = 0;
    for (std::size_t b = 0; b + 1 < starts.size(); b++) {
        std::vector<int32_t> blocks;
        for (int32_t j = 0; j < starts[b + 1] - starts[b]; j += block_size) {
            const bool shared = b == 3 && j < shared_tokens;
            blocks.push_back(shared ? inputs.blocks[1][j / block_size] : num_blocks++);
        }
        inputs.blocks.push_back(blocks);
        inputs.k_pool.resize(num_blocks * block_size * row);
        inputs.v_pool.resize(num_blocks * block_size * row);
        for (int32_t j = 0; j < starts[b + 1] - starts[b]; j++) {
            const std::size_t from = (starts[b] + j) * row;
            const std::size_t slot = blocks[j / block_size] * block_size + j % block_size;
            std::copy_n(k.begin() + from, row, inputs.k_pool.begin() + slot * row);
            std::copy_n(v.begin() + from, row, inputs.v_pool.begin() + slot * row);
        }
    }
}

/// out and dq are in float32, which is what 16-bit training on such data needs: delta and small
/// gradients are lost in 16 bits.
Problem load_problem(const std::string &layer, pagegrad_dtype dtype) {
    AttentionInputs inputs;
    inputs.num_heads = num_heads;
    inputs.num_kv_heads = num_kv_heads;
    inputs.head_dim = head_dim;
    inputs.scale = 0.125;
    inputs.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    inputs.block_size = block_size;
    const std::vector<int32_t> starts = load<int32_t>("cu_seqlens");
    for (std::size_t b = 0; b + 1 < starts.size(); b++) {
        inputs.query_length.push_back(starts[b + 1] - starts[b]);
    }
    inputs.kv_length = inputs.query_length;
    inputs.q = load_doubles(layer + "/q");
    inputs.dout = load_doubles(layer + "/do");
    page(inputs, starts, load_doubles(layer + "/k"), load_doubles(layer + "/v"));
    return make_problem(std::move(inputs), Form::Packed, Layout::Contiguous,
                        {dtype, PAGEGRAD_FLOAT32, PAGEGRAD_FLOAT32});
}

const Problem &problem(const std::string &layer, pagegrad_dtype dtype = PAGEGRAD_FLOAT32) {
    static std::map<std::pair<std::string, pagegrad_dtype>, Problem> problems;
    const auto key = std::make_pair(layer, dtype);
    auto found = problems.find(key);
    if (found == problems.end()) {
        found = problems.emplace(key, load_problem(layer, dtype)).first;
    }
    return found->second;
}

struct Case {
    std::string layer;
    KernelChoice kernel;
};

std::ostream &operator<<(std::ostream &stream, const Case &test) {
    return stream << test.layer << " with " << test.kernel;
}

class RealData : public testing::TestWithParam<Case> {
protected:
    const Problem &data = problem(GetParam().layer, GetParam().kernel.dtype);
    Options options() const {
        Options options;
        options.kernel = GetParam().kernel.name;
        options.num_threads = 0;
        return options;
    }
};

std::vector<Case> cases(const std::vector<std::string> &operations) {
    std::vector<Case> result;
    for (const char *layer : {"layer01", "layer18"}) {
        for (const KernelChoice &kernel : kernels_and_dispatch(operations, head_dim)) {
            result.push_back({layer, kernel});
        }
    }
    return result;
}

std::string name_of(const testing::TestParamInfo<Case> &info) {
    return info.param.layer + "__" + label(info.param.kernel);
}

class RealForward : public RealData {};

TEST_P(RealForward, matches_reference) {
    PagedCall call(data, options());
    ASSERT_EQ(call.forward(), PAGEGRAD_OK) << call.message();
    call.expect_forward();
}

INSTANTIATE_TEST_SUITE_P(, RealForward, testing::ValuesIn(cases({"forward"})), name_of);

class RealBackward : public RealData {};

TEST_P(RealBackward, matches_reference) {
    PagedCall call(data, options());
    ASSERT_EQ(call.backward(), PAGEGRAD_OK) << call.message();
    call.expect_backward();
    call.expect_plain_bounds();
}

INSTANTIATE_TEST_SUITE_P(, RealBackward, testing::ValuesIn(cases({"backward", "backward_dense"})),
                         name_of);

/// The reference of the tests agrees with the results stored beside the data.
TEST(RealDataFiles, hold_the_reference) {
    for (const char *layer : {"layer01", "layer18"}) {
        const AttentionResult &expected = problem(layer).expected;
        const std::string directory = layer;
        EXPECT_LE(relative_error(load<float>(directory + "/lse"), expected.lse), 1e-6);
    }
}

}  // namespace
}  // namespace pagegrad::test
