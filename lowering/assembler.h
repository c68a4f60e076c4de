/// ptxas, the assembler of the CUDA toolkit.
#pragma once

#include <string>

namespace pagegrad {

/// What ptxas says of a kernel.
struct AssembledKernel {
    std::string cubin;
    int registers;  ///< per thread
};

/// Reads what `ptxas -v` printed: returns the registers per thread. Throws on spilled registers and
/// on warnings, which say that it has made something slow (serialised `wgmma`, C7514 and others).
int check_assembler_log(const std::string &log);

/// Registers per thread with which a thread block still fits a multiprocessor.
constexpr int register_limit(int threads) {
    constexpr int register_file = 65536, granularity = 8, most = 255;
    const int limit = register_file / threads / granularity * granularity;
    return limit < most ? limit : most;
}

/// Assembles PTX of a kernel with `threads` threads a block, for `architecture` such as "sm_90a",
/// with the program `ptxas`. `work_prefix` begins the names of the files in between (.ptx, .cubin,
/// .log).
AssembledKernel assemble(const std::string &ptx, int threads, const std::string &architecture,
                         const std::string &ptxas, const std::string &work_prefix);

}  // namespace pagegrad
