#include "device_module.h"

#include "ir_tools.h"

#include <iomanip>
#include <map>

namespace pagegrad {
namespace {

using namespace Halide;
using namespace Halide::Internal;

/// Finds the calls that launch kernels. Lets are kept for what their arguments name.
class FindLaunches : public IRVisitor {
public:
    std::vector<const Call *> launches;
    std::map<std::string, Expr> lets;

private:
    using IRVisitor::visit;

    void visit(const Call *op) override {
        if (op->name == "halide_cuda_run") {
            launches.push_back(op);
        }
        IRVisitor::visit(op);
    }

    void visit(const LetStmt *op) override {
        lets[op->name] = op->value;
        IRVisitor::visit(op);
    }
};

/// Arguments of halide_cuda_run after the user context, the module and the entry.
enum LaunchArgument {
    launch_entry = 1,
    launch_blocks = 2,
    launch_threads = 5,
    launch_shared = 8,
    launch_sizes = 9,
    launch_arguments = 10,
    launch_is_buffer = 11,
};

class Launch {
public:
    Launch(const Call *call, const std::map<std::string, Expr> &lets) : call(call), lets(lets) {
    }

    Expr argument(int i) const {
        return call->args.at(i);
    }

    /// An argument without lets.
    Expr expanded(Expr e) const {
        for (bool changed = true; changed;) {
            changed = false;
            for (const auto &[name, value] : lets) {
                if (!value.type().is_handle() && !is_description(name) && expr_uses_var(e, name)) {
                    e = substitute(name, value, e);
                    changed = true;
                }
            }
        }
        return simplify(e);
    }

    int constant(int i) const {
        const Expr value = expanded(argument(i));
        return constant_value(value, "launch argument ", i, " is not constant: ", value);
    }

    const std::vector<Expr> &array(int i) const {
        const Call *array = argument(i).as<Call>();
        require_lowering(array && array->is_intrinsic(Call::make_struct), "launch argument ", i,
                         " is not an array: ", argument(i));
        return array->args;
    }

private:
    /// Values read from a buffer's description: <buffer>.stride.<i> and the like.
    static bool is_description(const std::string &name) {
        return name.find(".stride.") != std::string::npos ||
               name.find(".extent.") != std::string::npos ||
               name.find(".min.") != std::string::npos;
    }

    const Call *const call;
    const std::map<std::string, Expr> &lets;
};

/// Items of a thread block: the grid is the output's innermost block dimension cut by it.
int items_per_block(const Launch &launch) {
    const Expr blocks = launch.expanded(launch.argument(launch_blocks));
    require_lowering(launch.constant(launch_blocks + 1) == 1 &&
                         launch.constant(launch_blocks + 2) == 1,
                     "the grid is not one-dimensional");
    class FindExtent : public IRVisitor {
        using IRVisitor::visit;
        void visit(const Variable *op) override {
            name = op->name;
        }

    public:
        std::string name;
    } extent;
    blocks.accept(&extent);
    const auto blocks_of = [&](int items) {
        return constant_value(simplify(substitute(extent.name, items, blocks)),
                              "the grid depends on more than one size: ", blocks);
    };
    constexpr int many = 1 << 20;
    const int items = many / blocks_of(many);
    require_lowering(blocks_of(items) == 1 && blocks_of(items + 1) == 2, "unusual grid: ", blocks);
    return items;
}

std::string without_suffix(const std::string &name, const std::string &suffix) {
    const bool has = name.size() > suffix.size() &&
                     name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
    return has ? name.substr(0, name.size() - suffix.size()) : name;
}

std::string text_of(const Expr &e) {
    const StringImm *text = e.as<StringImm>();
    require_lowering(text, "not a string: ", e);
    return text->value;
}

}  // namespace

LoweredKernel find_kernel(const Module &module) {
    FindLaunches find;
    for (const LoweredFunc &function : module.functions()) {
        function.body.accept(&find);
    }
    require_lowering(find.launches.size() == 1, "a module with ", find.launches.size(),
                     " kernels instead of one");
    const Launch launch(find.launches[0], find.lets);

    LoweredKernel kernel;
    for (const Buffer<> &buffer : module.buffers()) {
        if (buffer.name().find("cuda_gpu_source") != std::string::npos) {
            kernel.ptx = reinterpret_cast<const char *>(buffer.data());  // ends with a zero byte
        }
    }
    kernel.entry = text_of(launch.argument(launch_entry));
    for (int i = 0; i < 3; i++) {
        kernel.threads[i] = launch.constant(launch_threads + i);
    }
    kernel.items_per_block = items_per_block(launch);
    kernel.shared_bytes = launch.constant(launch_shared);
    const auto &arguments = launch.array(launch_arguments), &sizes = launch.array(launch_sizes);
    for (size_t i = 0; i + 1 < arguments.size(); i++) {
        Expr argument = arguments[i];
        if (const Call *scalar = argument.as<Call>(); scalar && scalar->args.size() == 1) {
            argument = scalar->args[0];  // passed by its address
        }
        const Variable *variable = argument.as<Variable>();
        require_lowering(variable, "not a parameter: ", argument);
        const int bytes = constant_value(sizes[i], "size of ", variable->name, ": ", sizes[i]);
        require_lowering(bytes == 4 || bytes == 8, "parameter ", variable->name, " has ", bytes,
                         " bytes");
        kernel.parameters.push_back({without_suffix(variable->name, ".buffer"), bytes});
    }
    return kernel;
}

std::string device_kernel_source(const std::string &name, const LoweredKernel &kernel,
                                 const std::string &image) {
    std::ostringstream source;
    source << "#include \"lowering/device_kernel.h\"\n\nnamespace {\n\n"
           << "alignas(64) const unsigned char image[] = {";
    for (size_t i = 0; i < image.size(); i++) {
        source << (i % 32 == 0 ? "\n" : "") << int(static_cast<unsigned char>(image[i])) << ',';
    }
    source << "};\n\nconst pagegrad::DeviceParameter parameters[] = {\n";
    for (const LoweredKernel::Parameter &parameter : kernel.parameters) {
        source << "    {\"" << parameter.name << "\", " << parameter.bytes << "},\n";
    }
    const std::string symbol = "pagegrad_device_kernel_" + name;
    source << "};\n\n}  // namespace\n\nextern const pagegrad::DeviceKernel " << symbol << ";\n"
           << "const pagegrad::DeviceKernel " << symbol << " = {\n    \"" << name
           << "\", image, sizeof(image), \"" << kernel.entry << "\", {" << kernel.threads[0] << ", "
           << kernel.threads[1] << ", " << kernel.threads[2] << "}, " << kernel.items_per_block
           << ", " << kernel.shared_bytes << ", parameters, " << kernel.parameters.size() << "};\n";
    return source.str();
}

}  // namespace pagegrad
