#include "ptx_expander.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace pagegrad {
namespace {

using Strings = std::vector<std::string>;

[[noreturn]] void fail(const std::string &what) {
    throw std::runtime_error("PTX expander: " + what);
}

bool starts_with(const std::string &s, const std::string &prefix) {
    return s.compare(0, prefix.size(), prefix) == 0;
}

std::string trim(const std::string &s) {
    const size_t first = s.find_first_not_of(" \t\r\n");
    return first == std::string::npos ? ""
                                      : s.substr(first, s.find_last_not_of(" \t\r\n") - first + 1);
}

std::string join(const Strings &items, const std::string &separator) {
    std::string result;
    for (const std::string &item : items) {
        result += (result.empty() ? "" : separator) + item;
    }
    return result;
}

/// One line of PTX: the pattern with each `$` replaced by the next of the parts.
template<typename... Parts>
std::string line(const char *pattern, const Parts &...parts) {
    std::ostringstream result;
    result << '\t';
    [[maybe_unused]] const auto put = [&](const auto &part) {
        while (*pattern != '$') {
            result << *pattern++;
        }
        pattern++;
        result << part;
    };
    (put(parts), ...);
    result << pattern << '\n';
    return result.str();
}

// ---- Parsing

/// `opcode operand, operand, ...;`, where operands in brackets stay whole.
struct Statement {
    std::string opcode;
    Strings operands;
};

Statement parse_statement(const std::string &line) {
    const std::string text = trim(line.substr(0, line.find(';')));
    const size_t space = text.find_first_of(" \t");
    Statement result{text.substr(0, space), {}};
    if (space == std::string::npos) {
        return result;
    }
    int depth = 0;
    std::string operand;
    for (char c : text.substr(space)) {
        depth += (c == '(' || c == '[' || c == '{') - (c == ')' || c == ']' || c == '}');
        if (c == ',' && depth == 0) {
            result.operands.push_back(trim(operand));
            operand.clear();
        } else {
            operand += c;
        }
    }
    result.operands.push_back(trim(operand));
    return result;
}

/// The registers of an operand: `%r1` or `{%rd1, %rd2}`.
Strings registers_of(const std::string &operand) {
    if (operand.front() != '{') {
        return {operand};
    }
    return parse_statement("list " + operand.substr(1, operand.size() - 2)).operands;
}

/// A call sequence.
struct Call {
    std::string function;
    std::vector<Strings> arguments;  ///< the registers or the constant of each argument
    Strings result;                  ///< empty if nobody reads it

    const Strings &argument(size_t i) const {
        if (i >= arguments.size()) {
            fail(function + " lacks argument " + std::to_string(i));
        }
        return arguments[i];
    }

    const std::string &scalar(size_t i) const {
        if (argument(i).size() != 1) {
            fail("argument " + std::to_string(i) + " of " + function + " is no scalar");
        }
        return argument(i)[0];
    }

    int constant(size_t i) const {
        const std::string &text = scalar(i);
        int value = 0;
        const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
        if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
            fail("argument " + std::to_string(i) + " of " + function + " is not constant: " + text);
        }
        return value;
    }

    const std::string &destination() const {
        if (result.size() != 1) {
            fail(function + " has no scalar result");
        }
        return result[0];
    }
};

Call parse_call(const Strings &sequence) {
    Call call;
    for (const std::string &line : sequence) {
        const Statement s = parse_statement(line);
        if (starts_with(s.opcode, "st.param.")) {
            // A second piece of an argument is written to [param3+8].
            const size_t index = std::stoul(s.operands.at(0).substr(std::string("[param").size()));
            call.arguments.resize(std::max(call.arguments.size(), index + 1));
            for (const std::string &r : registers_of(s.operands.at(1))) {
                call.arguments[index].push_back(r);
            }
        } else if (s.opcode == "call.uni") {
            const bool returns = s.operands.at(0) == "(retval0)";
            call.function = s.operands.at(returns ? 1 : 0);
        } else if (starts_with(s.opcode, "ld.param.")) {
            for (const std::string &r : registers_of(s.operands.at(0))) {
                call.result.push_back(r);
            }
        } else if (s.opcode != ".param") {
            fail("unexpected line in a call sequence: " + line);
        }
    }
    return call;
}

// ---- What surrounds the instructions of a kernel

/// The output so far, and what instructions ask of it.
class Output {
public:
    void begin_kernel(const std::string &line) {
        kernel_begin = lines.size();
        accumulators = 0;
        lines.push_back(line);
    }

    void end_kernel(const std::string &line) {
        if (accumulators > 0) {
            lines[kernel_begin] += "\t.reg .f32 %acc<" + std::to_string(accumulators) + ">;\n";
        }
        lines.push_back(line);
    }

    void append(const std::string &text) {
        lines.push_back(text);
    }

    /// Appends a line of LLVM's and notes loads that an instruction may take over.
    void append_statement(const std::string &text) {
        const Statement s = parse_statement(text);
        if (s.opcode.back() == ':' || s.opcode.front() == '@' || starts_with(s.opcode, "bra")) {
            loads.clear();  // another basic block
        } else if (starts_with(s.opcode, "ld.global")) {
            loads[registers_of(s.operands.at(0))] = {lines.size(), s.operands.at(1)};
        }
        lines.push_back(text);
    }

    void use_accumulators(int first, int count) {
        accumulators = std::max(accumulators, first + count);
    }

    /// The address `[...]` from which `value` was loaded. Removes the load.
    std::string take_address(const Strings &value) {
        const auto load = loads.find(value);
        if (load == loads.end()) {
            fail("{" + join(value, ", ") +
                 "} is not loaded from global memory in this basic block");
        }
        lines[load->second.line].clear();
        removed.insert(value.begin(), value.end());
        return load->second.address;
    }

    std::string finish() const {
        for (const std::string &text : lines) {
            check_uses(text);
        }
        return join(lines, "");
    }

private:
    struct GlobalLoad {
        size_t line;
        std::string address;
    };

    /// Nothing else may read a value whose load was removed.
    void check_uses(const std::string &text) const {
        for (size_t begin = text.find('%'); begin != std::string::npos;
             begin = text.find('%', begin + 1)) {
            size_t end = begin + 1;
            while (end < text.size() && std::isalnum((unsigned char)text[end])) {
                end++;
            }
            if (removed.count(text.substr(begin, end - begin))) {
                fail("the value of a removed load is used: " + text);
            }
        }
    }

    Strings lines;
    std::map<Strings, GlobalLoad> loads;  ///< of the current basic block, by destination
    std::set<std::string> removed;        ///< destinations of the loads that were taken over
    size_t kernel_begin = 0;
    int accumulators = 0;
};

// ---- Instructions. The first line of each comment gives the arguments of the call.

/// fast_exp2(x)
std::string fast_exp2(Output &, const Call &c) {
    return line("ex2.approx.ftz.f32 $, $;", c.destination(), c.scalar(0));
}

/// all_lanes(condition): 1 if it is not 0 in any lane of the warp
std::string all_lanes(Output &, const Call &c) {
    return line("{ .reg .pred %p; setp.ne.b32 %p, $, 0; vote.sync.all.pred %p, %p, 0xffffffff; "
                "selp.b32 $, 1, 0, %p; }",
                c.scalar(0), c.destination());
}

/// fast_log2(x)
std::string fast_log2(Output &, const Call &c) {
    return line("lg2.approx.ftz.f32 $, $;", c.destination(), c.scalar(0));
}

/// fast_max(a, b)
std::string fast_max(Output &, const Call &c) {
    return line("max.f32 $, $, $;", c.destination(), c.scalar(0), c.scalar(1));
}

/// Combines the values of `lanes` neighbouring lanes, for all of them.
std::string combine_lanes(const Call &c, const char *operation, int lanes) {
    std::string text = line("{ .reg .f32 %other; mov.b32 $, $;", c.destination(), c.scalar(0));
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        text += line("shfl.sync.bfly.b32 %other, $, $, 31, 0xffffffff; $.f32 $, $, %other;",
                     c.destination(), distance, operation, c.destination(), c.destination());
    }
    return text + line("}");
}

/// half_warp_sum(x): over 16 lanes
std::string half_warp_sum(Output &, const Call &c) {
    return combine_lanes(c, "add", 16);
}

/// quad_sum(x): over four lanes, which hold a row of an accumulator
std::string quad_sum(Output &, const Call &c) {
    return combine_lanes(c, "add", 4);
}

/// quad_max(x)
std::string quad_max(Output &, const Call &c) {
    return combine_lanes(c, "max", 4);
}

/// exclusive_or(a, b)
std::string exclusive_or(Output &, const Call &c) {
    return line("xor.b32 $, $, $;", c.destination(), c.scalar(0), c.scalar(1));
}

/// pack_bf16x2(low, high)
std::string pack_bf16x2(Output &, const Call &c) {
    return line("cvt.rn.bf16x2.f32 $, $, $;", c.destination(), c.scalar(1), c.scalar(0));
}

/// pack_f16x2(low, high)
std::string pack_f16x2(Output &, const Call &c) {
    return line("cvt.rn.f16x2.f32 $, $, $;", c.destination(), c.scalar(1), c.scalar(0));
}

std::string accumulator(int i) {
    return "%acc" + std::to_string(i);
}

std::string accumulators(int first, int count) {
    Strings names;
    for (int i = first; i < first + count; i++) {
        names.push_back(accumulator(i));
    }
    return "{" + join(names, ", ") + "}";
}

/// accumulator_read(index, token)
std::string accumulator_read(Output &out, const Call &c) {
    out.use_accumulators(c.constant(0), 1);
    return line("mov.b32 $, $;", c.destination(), accumulator(c.constant(0)));
}

/// accumulator_zero(token, first, count)
std::string accumulator_zero(Output &out, const Call &c) {
    const int first = c.constant(1), count = c.constant(2);
    out.use_accumulators(first, count);
    std::string text;
    for (int i = first; i < first + count; i++) {
        text += line("mov.f32 $, 0f00000000;", accumulator(i));
    }
    return text;
}

/// accumulator_write(token, index, value)
std::string accumulator_write(Output &out, const Call &c) {
    out.use_accumulators(c.constant(1), 1);
    return line("mov.b32 $, $;", accumulator(c.constant(1)), c.scalar(2));
}

/// accumulator_scale(token, first, count, factor of the first row, factor of the second)
std::string accumulator_scale(Output &out, const Call &c) {
    const int first = c.constant(1), count = c.constant(2);
    out.use_accumulators(first, count);
    std::string text;
    for (int i = 0; i < count; i++) {  // two columns of each row in turn
        const std::string name = accumulator(first + i);
        text += line("mul.f32 $, $, $;", name, name, c.scalar(i % 4 < 2 ? 3 : 4));
    }
    return text;
}

/// A store to global memory if the condition is not 0.
std::string store_if(Output &out, const Call &c, size_t condition, size_t destination,
                     const char *type, const std::string &value) {
    return line("setp.ne.b32 %p, $, 0; @%p st.global.$ $, $;", c.scalar(condition), type,
                out.take_address(c.argument(destination)), value);
}

/// Two neighbours (argument 1), times a factor (argument 2), as %low and %high.
std::string scaled_neighbours(Output &out, const Call &c) {
    const int index = c.constant(1);
    out.use_accumulators(index, 2);
    return line("{ .reg .pred %p; .reg .f32 %low, %high;") +
           line("mul.f32 %low, $, $;", accumulator(index), c.scalar(2)) +
           line("mul.f32 %high, $, $;", accumulator(index + 1), c.scalar(2));
}

/// accumulator_store_<type>x2(token, index, factor, condition, destination in global memory)
/// Two neighbours, times the factor and rounded.
template<bool bfloat>
std::string accumulator_store_x2(Output &out, const Call &c) {
    return scaled_neighbours(out, c) +
           line(".reg .b32 %pair; cvt.rn.$.f32 %pair, %high, %low;", bfloat ? "bf16x2" : "f16x2") +
           store_if(out, c, 3, 4, "b32", "%pair") + line("}");
}

/// accumulator_store_f32x2(token, index, factor, condition, destination in global memory)
std::string accumulator_store_f32x2(Output &out, const Call &c) {
    return scaled_neighbours(out, c) + store_if(out, c, 3, 4, "v2.f32", "{%low, %high}") +
           line("}");
}

/// store_f32(token, value, condition, destination in global memory)
std::string store_f32(Output &out, const Call &c) {
    return line("{ .reg .pred %p;") + store_if(out, c, 2, 3, "b32", c.scalar(1)) + line("}");
}

/// accumulator_add_x2(token, index, factor, condition, destination in global memory)
/// Adds two neighbours, times the factor, if the condition is not 0.
std::string accumulator_add_x2(Output &out, const Call &c) {
    const int index = c.constant(1);
    out.use_accumulators(index, 2);
    std::string text = line("{ .reg .pred %p; .reg .f32 %low, %high;"), pair = "{%low, %high}",
                when;
    if (c.scalar(2) == "0f3F800000") {
        pair = accumulators(index, 2);
    } else {
        text += line("mul.f32 %low, $, $;", accumulator(index), c.scalar(2)) +
                line("mul.f32 %high, $, $;", accumulator(index + 1), c.scalar(2));
    }
    if (c.scalar(3) != "1") {
        text += line("setp.ne.b32 %p, $, 0;", c.scalar(3));
        when = "@%p ";
    }
    return text +
           line("$red.global.add.v2.f32 $, $;", when, out.take_address(c.argument(4)), pair) +
           line("}");
}

/// A matrix operand of `wgmma` in shared memory: panels of 64 columns, in rows of 128 swizzled
/// bytes.
struct SharedMatrix {
    std::string address;
    int panel_bytes;
    bool over_rows;  ///< the contraction runs over rows ("MN-major"), not over columns ("K-major")

    SharedMatrix(const Call &c, size_t first_argument)
        : address(c.scalar(first_argument)), panel_bytes(c.constant(first_argument + 1)),
          over_rows(c.constant(first_argument + 2) != 0) {
    }

    /// Computes the descriptor of a step of 16 along the contraction: the address, the leading byte
    /// offset (from panel to panel; has no meaning along columns) and the stride byte offset (from
    /// 8 rows to the next), in units of 16 bytes, and layout 1, the 128-byte swizzle. Steps differ
    /// by a constant, so that ptxas keeps one descriptor for all.
    std::string descriptor(const char *name, int step) const {
        const int leading = over_rows ? panel_bytes : 16, stride = 8 * 128;
        const int offset = over_rows ? step * 16 * 128 : step / 4 * panel_bytes + step % 4 * 32;
        return line("shr.u32 %low, $, 4; and.b32 %low, %low, 0x3fff; or.b32 %low, %low, $; "
                    "mov.b64 $, {%low, $}; add.s64 $, $, $;",
                    address, leading / 16 << 16, name, stride / 16 | 1 << 30, name, name,
                    offset / 16);
    }
};

/// The shape arguments of a product: first accumulator, columns, length of the contraction, and
/// whether to add to what the accumulators hold.
struct ProductShape {
    int first, columns, contraction;
    bool accumulate;

    explicit ProductShape(const Call &c)
        : first(c.constant(1)), columns(c.constant(2)), contraction(c.constant(3)),
          accumulate(c.constant(4) != 0) {
    }

    int registers() const {
        return columns / 2;
    }

    int steps() const {
        return contraction / 16;
    }

    /// 1 if a step adds to the accumulators, 0 if it sets them.
    bool adds(int step) const {
        return accumulate || step > 0;
    }
};

/// The type at the end of a function's name.
std::string element_type(const Call &c) {
    return c.function.substr(c.function.rfind('_') + 1);
}

/// wgmma_shared_<type>(token, shape..., a: address, panel bytes, over rows, b: the same)
/// One group of asynchronous products of 64 rows.
std::string wgmma_shared(Output &out, const Call &c) {
    const std::string type = element_type(c);
    const ProductShape shape(c);
    const SharedMatrix a(c, 5), b(c, 8);
    out.use_accumulators(shape.first, shape.registers());
    std::string text =
        line("{ .reg .b32 %low; .reg .b64 %a, %b;") + line("wgmma.fence.sync.aligned;");
    for (int step = 0; step < shape.steps(); step++) {
        text += a.descriptor("%a", step) + b.descriptor("%b", step);
        text += line("wgmma.mma_async.sync.aligned.m64n$k16.f32.$.$ $, %a, %b, $, 1, 1, $, $;",
                     shape.columns, type, type, accumulators(shape.first, shape.registers()),
                     shape.adds(step), a.over_rows, b.over_rows);
    }
    return text + line("wgmma.commit_group.sync.aligned;") + line("}");
}

/// wgmma_registers_<type>(token, shape..., b: address, panel bytes, over rows, a: 4 registers a
/// step) The same with the left operand in registers.
std::string wgmma_registers(Output &out, const Call &c) {
    const std::string type = element_type(c);
    const ProductShape shape(c);
    const SharedMatrix b(c, 5);
    out.use_accumulators(shape.first, shape.registers());
    std::string text = line("{ .reg .b32 %low; .reg .b64 %b;") + line("wgmma.fence.sync.aligned;");
    for (int step = 0; step < shape.steps(); step++) {
        const size_t a = 8 + 4 * step;
        text += b.descriptor("%b", step);
        text += line(
            "wgmma.mma_async.sync.aligned.m64n$k16.f32.$.$ $, {$, $, $, $}, %b, $, 1, 1, $;",
            shape.columns, type, type, accumulators(shape.first, shape.registers()), c.scalar(a),
            c.scalar(a + 1), c.scalar(a + 2), c.scalar(a + 3), shape.adds(step), b.over_rows);
    }
    return text + line("wgmma.commit_group.sync.aligned;") + line("}");
}

/// wgmma_wait(token, number of later groups that may still run)
std::string wgmma_wait(Output &, const Call &c) {
    return line("wgmma.wait_group.sync.aligned $;", c.constant(1));
}

/// Tiles are read once per block: 16 bytes go past the L1 cache.
const char *cache_of(int bytes) {
    return bytes == 16 ? "cg" : "ca";
}

/// copy_async_<bytes>(shared address, value in global memory)
template<int bytes>
std::string copy_async(Output &out, const Call &c) {
    return line("cp.async.$.shared.global [$], $, $;", cache_of(bytes), c.scalar(0),
                out.take_address(c.argument(1)), bytes);
}

/// copy_async_<bytes>_or_zero(shared address, value in global memory, condition)
/// Zeros, without a read, if the condition is 0.
template<int bytes>
std::string copy_async_or_zero(Output &out, const Call &c) {
    return line("{ .reg .pred %p; .reg .b32 %n; setp.ne.b32 %p, $, 0; selp.b32 %n, $, 0, %p;",
                c.scalar(2), bytes) +
           line("cp.async.$.shared.global [$], $, $, %n; }", cache_of(bytes), c.scalar(0),
                out.take_address(c.argument(1)), bytes);
}

/// copy_async_commit(token)
std::string copy_async_commit(Output &, const Call &) {
    return line("cp.async.commit_group;");
}

/// copy_async_wait(number of later groups that may still run)
std::string copy_async_wait(Output &, const Call &c) {
    return line("cp.async.wait_group $;", c.constant(0));
}

/// proxy_fence(token)
/// Makes ordinary writes to shared memory visible to `wgmma`.
std::string proxy_fence(Output &, const Call &) {
    return line("fence.proxy.async.shared::cta;");
}

/// end_step(token, ...)
/// Only names the place where the statements of a step end.
std::string end_step(Output &, const Call &) {
    return "";
}

enum class Returns { value, token };

struct Entry {
    std::string (*expand)(Output &, const Call &);
    Returns returns;
};

const std::map<std::string, Entry> instruction_table = {
    {"fast_exp2", {fast_exp2, Returns::value}},
    {"all_lanes", {all_lanes, Returns::value}},
    {"fast_log2", {fast_log2, Returns::value}},
    {"fast_max", {fast_max, Returns::value}},
    {"half_warp_sum", {half_warp_sum, Returns::value}},
    {"quad_sum", {quad_sum, Returns::value}},
    {"quad_max", {quad_max, Returns::value}},
    {"exclusive_or", {exclusive_or, Returns::value}},
    {"pack_bf16x2", {pack_bf16x2, Returns::value}},
    {"pack_f16x2", {pack_f16x2, Returns::value}},
    {"accumulator_read", {accumulator_read, Returns::value}},
    {"accumulator_zero", {accumulator_zero, Returns::token}},
    {"accumulator_write", {accumulator_write, Returns::token}},
    {"accumulator_scale", {accumulator_scale, Returns::token}},
    {"accumulator_store_bf16x2", {accumulator_store_x2<true>, Returns::token}},
    {"accumulator_store_f16x2", {accumulator_store_x2<false>, Returns::token}},
    {"accumulator_store_f32x2", {accumulator_store_f32x2, Returns::token}},
    {"store_f32", {store_f32, Returns::token}},
    {"accumulator_add_x2", {accumulator_add_x2, Returns::token}},
    {"wgmma_shared_bf16", {wgmma_shared, Returns::token}},
    {"wgmma_shared_f16", {wgmma_shared, Returns::token}},
    {"wgmma_registers_bf16", {wgmma_registers, Returns::token}},
    {"wgmma_registers_f16", {wgmma_registers, Returns::token}},
    {"wgmma_wait", {wgmma_wait, Returns::token}},
    {"copy_async_4", {copy_async<4>, Returns::token}},
    {"copy_async_8", {copy_async<8>, Returns::token}},
    {"copy_async_16", {copy_async<16>, Returns::token}},
    {"copy_async_4_or_zero", {copy_async_or_zero<4>, Returns::token}},
    {"copy_async_8_or_zero", {copy_async_or_zero<8>, Returns::token}},
    {"copy_async_16_or_zero", {copy_async_or_zero<16>, Returns::token}},
    {"copy_async_commit", {copy_async_commit, Returns::token}},
    {"copy_async_wait", {copy_async_wait, Returns::token}},
    {"proxy_fence", {proxy_fence, Returns::token}},
    {"end_step", {end_step, Returns::token}},
};

std::string expand_call(Output &out, const Call &call) {
    const auto entry = instruction_table.find(call.function);
    if (entry == instruction_table.end()) {
        fail("no instruction for the device function '" + call.function + "'");
    }
    std::string text = entry->second.expand(out, call);
    if (entry->second.returns == Returns::token && !call.result.empty()) {
        text += line("mov.b32 $, 0;", call.destination());
    }
    return text;
}

}  // namespace

std::string expand_ptx(const std::string &ptx, const std::string &architecture) {
    Output out;
    std::istringstream input(ptx);
    for (std::string text; std::getline(input, text);) {
        const std::string start = trim(text);
        text += '\n';
        if (starts_with(start, ".extern .func")) {
            while (text.find(';') == std::string::npos && std::getline(input, text)) {
            }
        } else if (starts_with(start, "{ // callseq")) {
            Strings sequence;
            while (std::getline(input, text) && !starts_with(trim(text), "} // callseq")) {
                sequence.push_back(text);
            }
            out.append(expand_call(out, parse_call(sequence)));
        } else if (starts_with(start, ".version")) {
            out.append(".version 8.1\n");  // the first with vector reductions
        } else if (starts_with(start, ".target")) {
            out.append(".target " + architecture + "\n");
        } else if (start == "{") {
            out.begin_kernel(text);
        } else if (start == "}") {
            out.end_kernel(text);
        } else if (start.empty() || starts_with(start, "//")) {
            out.append(text);
        } else {
            out.append_statement(text);
        }
    }
    return out.finish();
}

}  // namespace pagegrad
