// The C++ interface. The program that the README shows, examples/quick_start.cpp, is a test too.
#include "pagegrad/pagegrad.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace pagegrad::test {
namespace {

/// One sequence of one query and two keys in one block.
struct Batch {
    int32_t query_length = 1, kv_length = 2, block = 0;
    float k[4] = {}, v[4] = {1, 2, 3, 4}, q[2] = {}, out[2] = {};
    AttentionConfig config{1, 1, 2};

    PagedKv kv() const {
        return {{k, {1, 2, 1, 2}}, {v, {1, 2, 1, 2}}, &block, 1, &kv_length};
    }
    Plan plan() const {
        return Plan(config, {&query_length, nullptr, 1}, kv());
    }
};

template<typename Call>
void expect_error(Call call, const std::string &part) {
    try {
        call();
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Error &error) {
        EXPECT_EQ(error.status(), PAGEGRAD_INVALID_ARGUMENT);
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
}

TEST(CppApi, forward_averages_values_of_equal_scores) {
    Batch batch;
    forward(batch.plan(), {batch.q, {1, 1, 2}}, batch.kv(), {batch.out, {1, 1, 2}});
    EXPECT_NEAR(batch.out[0], 2, 1e-6);
    EXPECT_NEAR(batch.out[1], 3, 1e-6);
}

TEST(CppApi, plans_are_shared_by_copies) {
    const Batch batch;
    const Plan plan = batch.plan(), copy = plan;
    EXPECT_EQ(plan.get(), copy.get());
    EXPECT_EQ(copy.info().kv_tokens, 2);
    EXPECT_EQ(copy.info().query_tokens, 1);
}

TEST(CppApi, default_scale_is_that_of_the_head_dim) {
    EXPECT_FLOAT_EQ(AttentionConfig(4, 2, 64).scale, 0.125f);
    EXPECT_FLOAT_EQ(AttentionConfig(4, 2, 100).scale, 0.1f);
}

TEST(CppApi, errors_are_thrown) {
    Batch batch;
    const Plan plan = batch.plan();
    expect_error([&] { forward(plan, {}, batch.kv(), {batch.out, {1, 1, 2}}); }, "q");
    expect_error([&] { Tensor(batch.q, {1, 1, 1, 1, 2}); }, "rank");
    batch.block = 1;
    expect_error([&] { batch.plan(); }, "block_table");
}

TEST(CppApi, versions_of_header_and_library_agree) {
    const std::string header = std::to_string(PAGEGRAD_VERSION_MAJOR) + "." +
                               std::to_string(PAGEGRAD_VERSION_MINOR) + "." +
                               std::to_string(PAGEGRAD_VERSION_PATCH);
    EXPECT_EQ(pagegrad_version(), header);
}

}  // namespace
}  // namespace pagegrad::test
