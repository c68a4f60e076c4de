/// Builds a GPU kernel ahead of time: the driver of the CUDA generators in place of Halide's own.
///
///     emit_kernel <ptxas> <generator> <name> <architecture> <output.cpp> [parameter=value...]
#include "assembler.h"
#include "device_module.h"
#include "ptx_expander.h"

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace Halide;

struct Request {
    std::string ptxas, generator, name, architecture, output;
    std::vector<std::string> parameters;
};

void emit(const Request &request) {
    // LLVM sees plain code and calls: capability 8.0 is enough. The architecture proper comes with
    // ptxas.
    const Target target("x86-64-linux-cuda-cuda_capability_80-no_asserts-no_bounds_query-"
                        "no_runtime");
    const auto instance =
        Internal::GeneratorRegistry::create(request.generator, GeneratorContext(target));
    for (const std::string &parameter : request.parameters) {
        const size_t equals = parameter.find('=');
        instance->set_generatorparam_value(parameter.substr(0, equals),
                                           parameter.substr(equals + 1));
    }
    const pagegrad::LoweredKernel kernel =
        pagegrad::find_kernel(instance->build_module(request.name));
    const pagegrad::AssembledKernel assembled =
        pagegrad::assemble(pagegrad::expand_ptx(kernel.ptx, request.architecture),
                           kernel.threads[0] * kernel.threads[1] * kernel.threads[2],
                           request.architecture, request.ptxas, request.output);
    std::ofstream(request.output) << pagegrad::device_kernel_source(request.name, kernel,
                                                                    assembled.cubin);
    std::cout << request.name << ": " << assembled.registers << " registers, 0 spills, "
              << kernel.shared_bytes << " bytes of shared memory\n";
}

}  // namespace

int main(int argc, char **argv) {
    const std::vector<std::string> args(argv + 1, argv + argc);
    if (args.size() < 5) {
        std::cerr << "usage: emit_kernel <ptxas> <generator> <name> <architecture> <output.cpp> "
                     "[parameter=value...]\n";
        return 1;
    }
    try {
        emit({args[0], args[1], args[2], args[3], args[4], {args.begin() + 5, args.end()}});
    } catch (const Halide::Error &e) {
        std::cerr << args[2] << ": " << e.what() << "\n";
        return 1;
    } catch (const std::exception &e) {
        std::cerr << args[2] << ": " << e.what() << "\n";
        return 1;
    }
    return 0;
}
