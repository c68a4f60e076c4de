// Finite differences of the double-precision reference, which all other tests rely on.
#include "tests/reference/attention_reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <random>
#include <string>

namespace pagegrad::test {
namespace {

struct Case {
    std::string name;
    AttentionInputs inputs;
};

std::vector<double> random_values(std::size_t count, std::mt19937 &random) {
    std::normal_distribution<double> normal;
    std::vector<double> values(count);
    for (double &value : values) {
        value = normal(random);
    }
    return values;
}

/// Three sequences, one longer in queries than in keys; block 1 has three users and stands twice in
/// the last sequence.
Case make_case(const std::string &name, pagegrad_mask mask, int64_t window_left,
               int64_t window_right, int num_heads, int num_kv_heads, bool with_dlse) {
    AttentionInputs in;
    in.num_heads = num_heads;
    in.num_kv_heads = num_kv_heads;
    in.head_dim = 3;
    in.scale = 0.7;
    in.mask = mask;
    in.window_left = window_left;
    in.window_right = window_right;
    in.query_length = {2, 4, 3};
    in.kv_length = {4, 3, 5};
    in.block_size = 2;
    in.blocks = {{0, 1}, {1, 2}, {1, 3, 1}};
    std::mt19937 random(7);
    const std::size_t query_rows = 9 * num_heads;
    const std::size_t pool_size = 4 * in.block_size * num_kv_heads * in.head_dim;
    in.q = random_values(query_rows * in.head_dim, random);
    in.dout = random_values(query_rows * in.head_dim, random);
    in.k_pool = random_values(pool_size, random);
    in.v_pool = random_values(pool_size, random);
    if (with_dlse) {
        in.dlse = random_values(query_rows, random);
    }
    return {name, in};
}

/// A case with options: values of another width than keys, a softcap that bends the scores, slopes
/// of both signs, sinks of which one is none.
Case with_options(Case test, int value_head_dim, double softcap, bool slopes, bool sinks) {
    AttentionInputs &in = test.inputs;
    std::mt19937 random(8);
    if (value_head_dim > 0) {
        in.value_head_dim = value_head_dim;
        in.dout = random_values(in.q.size() / in.head_dim * value_head_dim, random);
        in.v_pool = random_values(in.k_pool.size() / in.head_dim * value_head_dim, random);
    }
    in.softcap = softcap;
    if (slopes) {
        in.alibi_slopes = random_values(in.num_heads, random);
    }
    if (sinks) {
        in.sinks = random_values(in.num_heads, random);
        in.sinks.back() = -HUGE_VAL;
    }
    return test;
}

/// The scalar whose gradient the backward computes.
double loss(const AttentionInputs &inputs) {
    const AttentionResult result = attention_reference(inputs);
    double sum = 0;
    for (std::size_t at = 0; at < inputs.dout.size(); at++) {
        sum += inputs.dout[at] * result.out.value[at];
    }
    for (std::size_t row = 0; row < inputs.dlse.size(); row++) {
        if (std::isfinite(result.lse.value[row])) {
            sum += inputs.dlse[row] * result.lse.value[row];
        }
    }
    return sum;
}

void expect_gradient(AttentionInputs inputs, std::vector<double> AttentionInputs::*input,
                     const std::vector<double> &gradient) {
    constexpr double step = 1e-5;
    for (std::size_t at = 0; at < gradient.size(); at++) {
        double &entry = (inputs.*input)[at];
        const double value = entry;
        entry = value + step;
        const double above = loss(inputs);
        entry = value - step;
        const double below = loss(inputs);
        entry = value;
        EXPECT_NEAR((above - below) / (2 * step), gradient[at], 1e-8) << "entry " << at;
    }
}

std::ostream &operator<<(std::ostream &stream, const Case &test) {
    return stream << test.name;
}

class Reference : public testing::TestWithParam<Case> {};

TEST_P(Reference, gradients_match_finite_differences) {
    const AttentionInputs &inputs = GetParam().inputs;
    const AttentionResult result = attention_reference(inputs);
    expect_gradient(inputs, &AttentionInputs::q, result.dq.value);
    expect_gradient(inputs, &AttentionInputs::k_pool, result.dk_pool.value);
    expect_gradient(inputs, &AttentionInputs::v_pool, result.dv_pool.value);
    expect_gradient(inputs, &AttentionInputs::alibi_slopes, result.dalibi_slopes.value);
    expect_gradient(inputs, &AttentionInputs::sinks, result.dsinks.value);
}

INSTANTIATE_TEST_SUITE_P(
    , Reference,
    testing::Values(
        make_case("full", PAGEGRAD_MASK_NONE, -1, -1, 2, 2, false),
        make_case("full_dlse_gqa", PAGEGRAD_MASK_NONE, -1, -1, 4, 2, true),
        make_case("top_left_mqa", PAGEGRAD_MASK_CAUSAL_TOP_LEFT, -1, -1, 3, 1, true),
        make_case("bottom_right", PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT, -1, -1, 2, 1, false),
        make_case("window", PAGEGRAD_MASK_NONE, 1, 1, 2, 1, true),
        make_case("causal_window", PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT, 1, -1, 1, 1, true),
        with_options(make_case("values", PAGEGRAD_MASK_NONE, -1, -1, 2, 1, true), 5, 0, false,
                     false),
        with_options(make_case("softcap", PAGEGRAD_MASK_CAUSAL_TOP_LEFT, -1, -1, 2, 1, false), 0,
                     0.8, false, false),
        with_options(make_case("slopes", PAGEGRAD_MASK_NONE, -1, -1, 4, 2, false), 0, 0, true,
                     false),
        with_options(make_case("slopes_top_left", PAGEGRAD_MASK_CAUSAL_TOP_LEFT, -1, -1, 2, 1,
                               true),
                     0, 0, true, false),
        with_options(make_case("sinks", PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT, -1, -1, 3, 1, true), 0,
                     0, false, true),
        with_options(make_case("all_options", PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT, 2, -1, 4, 2, true),
                     2, 1.5, true, true)),
    [](const auto &info) { return info.param.name; });

/// Keys seen by hand: 3 queries, 5 keys.
TEST(ReferenceMask, matches_rows_written_by_hand) {
    AttentionInputs in;
    in.query_length = {3};
    in.kv_length = {5};
    const auto row = [&in](int64_t i) {
        std::string seen;
        for (int64_t j = 0; j < 5; j++) {
            seen += sees(in, 0, i, j) ? 'x' : '.';
        }
        return seen;
    };
    EXPECT_EQ(row(0), "xxxxx");
    in.mask = PAGEGRAD_MASK_CAUSAL_TOP_LEFT;
    EXPECT_EQ(row(1), "xx...");
    in.mask = PAGEGRAD_MASK_CAUSAL_BOTTOM_RIGHT;
    EXPECT_EQ(row(1), "xxxx.");
    in.window_left = 1;
    EXPECT_EQ(row(1), "..xx.");
    in.window_left = 0;
    EXPECT_EQ(row(0), "..x..");
    in.mask = PAGEGRAD_MASK_NONE;
    in.window_right = 1;
    EXPECT_EQ(row(0), "..xx.");
    in.mask = PAGEGRAD_MASK_CAUSAL_TOP_LEFT;
    EXPECT_EQ(row(0), "x....");
}

}  // namespace
}  // namespace pagegrad::test
