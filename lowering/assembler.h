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

/// Assembles PTX for `architecture` such as "sm_90a" with the program `ptxas`. `work_prefix` begins
/// the names of the files in between (.ptx, .cubin, .log).
AssembledKernel assemble(const std::string &ptx, const std::string &architecture,
                         const std::string &ptxas, const std::string &work_prefix);

}  // namespace pagegrad
