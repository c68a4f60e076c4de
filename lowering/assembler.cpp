#include "assembler.h"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace pagegrad {
namespace {

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::string quoted(const std::string &path) {
    return "'" + path + "'";
}

}  // namespace

int check_assembler_log(const std::string &log) {
    static const std::regex used("Used ([0-9]+) registers"), spills("([0-9]+) bytes spill"),
        remark("warning|\\(C[0-9]+\\)|serialized");
    int registers = 0;
    std::istringstream lines(log);
    for (std::string line; std::getline(lines, line);) {
        std::smatch match;
        const bool spilled = std::regex_search(line, match, spills) && match[1] != "0";
        if (spilled || std::regex_search(line, remark)) {
            throw std::runtime_error("ptxas: " + line);
        }
        if (std::regex_search(line, match, used)) {
            registers = std::stoi(match[1]);
        }
    }
    if (registers == 0) {
        throw std::runtime_error("ptxas does not say how many registers it used:\n" + log);
    }
    return registers;
}

AssembledKernel assemble(const std::string &ptx, int threads, const std::string &architecture,
                         const std::string &ptxas, const std::string &work_prefix) {
    const std::string input = work_prefix + ".ptx", output = work_prefix + ".cubin",
                      log = work_prefix + ".log";
    std::ofstream(input) << ptx;
    const std::string command = quoted(ptxas) + " -v -arch=" + architecture +
                                " -maxrregcount=" + std::to_string(register_limit(threads)) + " " +
                                quoted(input) + " -o " + quoted(output) + " > " + quoted(log) +
                                " 2>&1";
    if (std::system(command.c_str()) != 0) {
        throw std::runtime_error("ptxas failed:\n" + read_file(log));
    }
    const int registers = check_assembler_log(read_file(log));
    return {read_file(output), registers};
}

}  // namespace pagegrad
