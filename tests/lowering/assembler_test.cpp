#include "lowering/assembler.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace pagegrad {
namespace {

const std::string used = "ptxas info    : Used 248 registers, used 1 barriers\n";
const std::string no_spills =
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";

TEST(RegisterLimit, FitsTheRegisterFile) {
    EXPECT_EQ(register_limit(384), 168);
    EXPECT_EQ(register_limit(256), 255);
    EXPECT_EQ(register_limit(1024), 64);
}

TEST(Assembler, FindsTheRegisters) {
    EXPECT_EQ(check_assembler_log("ptxas info    : 0 bytes gmem\n" + no_spills + used), 248);
}

TEST(Assembler, RefusesSpills) {
    const std::string spills =
        "    16 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads\n";
    EXPECT_THROW(check_assembler_log(spills + used), std::runtime_error);
}

TEST(Assembler, RefusesRemarks) {
    for (const char *remark :
         {"ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are "
          "serialized due to ill formed pipeline stage in the function 'f'\n",
          "ptxas f.ptx, line 9; warning : Instruction is deprecated\n"}) {
        EXPECT_THROW(check_assembler_log(remark + no_spills + used), std::runtime_error);
    }
}

TEST(Assembler, RefusesALogWithoutRegisters) {
    EXPECT_THROW(check_assembler_log(no_spills), std::runtime_error);
}

TEST(Assembler, Assembles) {
    const std::string prefix = testing::TempDir() + "assembler_test",
                      head =
                          ".version 8.1\n.target sm_90a\n.address_size 64\n.visible .entry f()\n";
    const AssembledKernel kernel =
        assemble(head + "{ ret; }\n", 384, "sm_90a", PAGEGRAD_PTXAS, prefix);
    EXPECT_EQ(kernel.cubin.substr(1, 3), "ELF");
    EXPECT_GT(kernel.registers, 0);
    EXPECT_THROW(assemble(head + "{ nonsense; }\n", 384, "sm_90a", PAGEGRAD_PTXAS, prefix),
                 std::runtime_error);
}

}  // namespace
}  // namespace pagegrad
