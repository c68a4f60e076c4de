/// The PTX expander on call sequences as LLVM writes them.
#include "lowering/ptx_expander.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace pagegrad {
namespace {

/// A call with scalar arguments and a result %r99.
std::string call(const std::string &function, const std::vector<std::string> &arguments) {
    std::string text = "\t{ // callseq 1, 0\n", names;
    for (size_t i = 0; i < arguments.size(); i++) {
        const std::string name = "param" + std::to_string(i);
        text += "\t.param .b32 \t" + name + ";\n\tst.param.b32 \t[" + name + "], " + arguments[i] +
                ";\n";
        names += (i ? ", " : "") + name;
    }
    return text + "\t.param .b32 \tretval0;\n\tcall.uni (retval0), " + function + ", (" + names +
           ");\n\tld.param.b32 \t%r99, [retval0];\n\t} // callseq 1\n";
}

std::string expand(const std::string &body) {
    return expand_ptx(".version 7.0\n.target sm_80\n.visible .entry f()\n{\n" + body + "}\n",
                      "sm_90a");
}

testing::AssertionResult contains(const std::string &text, const std::string &part) {
    if (text.find(part) != std::string::npos) {
        return testing::AssertionSuccess();
    }
    return testing::AssertionFailure() << "no \"" << part << "\" in:\n" << text;
}

void expect_refused(const std::string &body, const std::string &message) {
    try {
        expand(body);
        ADD_FAILURE() << "accepted:\n" << body;
    } catch (const std::runtime_error &e) {
        EXPECT_TRUE(contains(e.what(), message));
    }
}

const std::string load = "\tld.global.nc.b32 \t%r2, [%rd1+64];\n";
const std::string copy = call("copy_async_4", {"%r1", "%r2"});

TEST(PtxExpander, SetsTargetAndVersion) {
    EXPECT_TRUE(contains(expand(""), ".target sm_90a\n"));
    EXPECT_TRUE(contains(expand(""), ".version 8.1\n"));
}

TEST(PtxExpander, LeavesOtherCodeAlone) {
    const std::string code = "\tadd.s32 \t%r3, %r2, 1;\n$L__BB0_1:\n\t@%p1 bra \t$L__BB0_1;\n";
    EXPECT_TRUE(contains(expand(code), code));
}

TEST(PtxExpander, ReturnsValues) {
    EXPECT_TRUE(contains(expand(call("fast_exp2", {"%r1"})), "ex2.approx.ftz.f32 %r99, %r1;"));
    EXPECT_TRUE(
        contains(expand(call("pack_bf16x2", {"%r1", "%r2"})), "cvt.rn.bf16x2.f32 %r99, %r2, %r1;"));
    EXPECT_TRUE(
        contains(expand(call("pack_f16x2", {"%r1", "%r2"})), "cvt.rn.f16x2.f32 %r99, %r2, %r1;"));
    EXPECT_TRUE(contains(expand(call("all_lanes", {"%r1"})), "vote.sync.all.pred"));
    EXPECT_TRUE(contains(expand(call("fast_log2", {"%r1"})), "lg2.approx.ftz.f32 %r99, %r1;"));
    EXPECT_TRUE(contains(expand(call("fast_max", {"%r1", "%r2"})), "max.f32 %r99, %r1, %r2;"));
}

TEST(PtxExpander, CombinesLanes) {
    const std::string sum = expand(call("half_warp_sum", {"%r1"}));
    for (const char *distance : {"8", "4", "2", "1"}) {
        EXPECT_TRUE(contains(sum, std::string("%r99, ") + distance + ", 31"));
    }
    EXPECT_FALSE(contains(sum, "%r99, 16, 31"));
    EXPECT_TRUE(contains(expand(call("quad_max", {"%r1"})), "max.f32 %r99, %r99, %other;"));
    EXPECT_TRUE(contains(expand(call("quad_sum", {"%r1"})), "%r99, 2, 31"));
    EXPECT_FALSE(contains(expand(call("quad_sum", {"%r1"})), "%r99, 4, 31"));
}

TEST(PtxExpander, ReturnsTokens) {
    EXPECT_TRUE(contains(expand(call("wgmma_wait", {"%r1", "2"})),
                         "wgmma.wait_group.sync.aligned 2;\n\tmov.b32 %r99, 0;"));
}

TEST(PtxExpander, DeclaresAccumulators) {
    EXPECT_TRUE(
        contains(expand(call("accumulator_read", {"7", "%r1"})), "{\n\t.reg .f32 %acc<8>;"));
    EXPECT_TRUE(contains(expand(call("accumulator_zero", {"%r1", "4", "2"})),
                         "mov.f32 %acc4, 0f00000000;\n\tmov.f32 %acc5, 0f00000000;"));
}

TEST(PtxExpander, ChangesAccumulators) {
    EXPECT_TRUE(
        contains(expand(call("accumulator_write", {"%r1", "3", "%r2"})), "mov.b32 %acc3, %r2;"));
    const std::string scaled = expand(call("accumulator_scale", {"%r1", "8", "4", "%r2", "%r3"}));
    for (const char *part : {"%acc8, %acc8, %r2;", "%acc9, %acc9, %r2;", "%acc10, %acc10, %r3;",
                             "%acc11, %acc11, %r3;"}) {
        EXPECT_TRUE(contains(scaled, part));
    }
}

TEST(PtxExpander, StoresToMemory) {
    const std::string load_word = "\tld.global.b32 \t%r2, [%rd1+64];\n";
    const std::string rounded =
        expand(load_word + call("accumulator_store_bf16x2", {"%r1", "6", "%r3", "%r4", "%r2"}));
    EXPECT_TRUE(contains(rounded, "mul.f32 %low, %acc6, %r3;"));
    EXPECT_TRUE(contains(rounded, "cvt.rn.bf16x2.f32 %pair, %high, %low;"));
    EXPECT_TRUE(contains(rounded, "setp.ne.b32 %p, %r4, 0; @%p st.global.b32 [%rd1+64], %pair;"));
    const std::string load_pair = "\tld.global.b64 \t%r2, [%rd1+64];\n";
    EXPECT_TRUE(contains(
        expand(load_pair + call("accumulator_store_f32x2", {"%r1", "6", "%r3", "%r4", "%r2"})),
        "@%p st.global.v2.f32 [%rd1+64], {%low, %high};"));
    EXPECT_TRUE(contains(expand(load_word + call("store_f32", {"%r1", "%r3", "%r4", "%r2"})),
                         "@%p st.global.b32 [%rd1+64], %r3;"));
}

TEST(PtxExpander, MultipliesTiles) {
    // 64 x 32, over 128: two panels of 64 columns, eight steps of 16.
    const std::string text = expand(call("wgmma_shared_f16", {"%r1", "8", "32", "128", "0", "%r2",
                                                              "8192", "0", "%r3", "4096", "0"}));
    size_t products = 0;
    for (size_t at = 0; (at = text.find("wgmma.mma_async", at)) != std::string::npos; at++) {
        products++;
    }
    EXPECT_EQ(products, 8u);
    EXPECT_TRUE(contains(text, "m64n32k16.f32.f16.f16 {%acc8, %acc9, "));
    EXPECT_TRUE(contains(text, "%acc23}, %a, %b, 0, 1, 1, 0, 0;"));  // the first sets the sums
    EXPECT_TRUE(contains(text, "%acc23}, %a, %b, 1, 1, 1, 0, 0;"));
    EXPECT_TRUE(contains(text, "add.s64 %b, %b, 256;"));  // second panel of b: 4096 / 16
    EXPECT_TRUE(contains(text, "wgmma.commit_group.sync.aligned;"));
}

TEST(PtxExpander, MultipliesRegisters) {
    const std::string text =
        expand(call("wgmma_registers_bf16",
                    {"%r1", "0", "64", "16", "1", "%r2", "8192", "1", "%r3", "%r4", "%r5", "%r6"}));
    EXPECT_TRUE(contains(text, "m64n64k16.f32.bf16.bf16 {%acc0, "));
    EXPECT_TRUE(contains(text, "{%r3, %r4, %r5, %r6}, %b, 1, 1, 1, 1;"));
    expect_refused(call("wgmma_registers_bf16", {"%r1", "0", "64", "16", "1", "%r2", "8192", "1"}),
                   "lacks argument");
}

TEST(PtxExpander, TakesOverAddresses) {
    const std::string copied = expand(load + copy);
    EXPECT_TRUE(contains(copied, "cp.async.ca.shared.global [%r1], [%rd1+64], 4;"));
    EXPECT_FALSE(contains(copied, "ld.global"));
    EXPECT_TRUE(contains(expand(load + call("copy_async_4_or_zero", {"%r1", "%r2", "%r3"})),
                         "cp.async.ca.shared.global [%r1], [%rd1+64], 4, %n;"));
}

TEST(PtxExpander, AddsToMemory) {
    const std::string plain =
        expand(load + call("accumulator_add_x2", {"%r1", "6", "0f3F800000", "1", "%r2"}));
    EXPECT_TRUE(contains(plain, "\tred.global.add.v2.f32 [%rd1+64], {%acc6, %acc7};"));
    EXPECT_FALSE(contains(plain, "mul.f32"));
    const std::string scaled =
        expand(load + call("accumulator_add_x2", {"%r1", "6", "%r3", "%r4", "%r2"}));
    EXPECT_TRUE(contains(scaled, "mul.f32 %high, %acc7, %r3;"));
    EXPECT_TRUE(contains(scaled, "@%p red.global.add.v2.f32 [%rd1+64], {%low, %high};"));
}

TEST(PtxExpander, RefusesWhatItDoesNotKnow) {
    expect_refused(call("unknown", {"%r1"}), "no instruction for the device function 'unknown'");
    expect_refused(call("accumulator_read", {"%r1", "%r1"}), "is not constant: %r1");
    expect_refused(call("fast_exp2", {}), "lacks argument 0");
}

TEST(PtxExpander, RefusesAddressesItCannotTakeOver) {
    expect_refused(copy, "not loaded from global memory");
    expect_refused(load + "$L__BB0_2:\n" + copy, "not loaded from global memory");
    expect_refused(load + copy + "\tadd.s32 \t%r3, %r2, 1;\n", "value of a removed load is used");
}

}  // namespace
}  // namespace pagegrad
