/// Tensors in another dtype: 16 bits to float32, or back.
#include "dtypes.h"

namespace pagegrad {
namespace {

using namespace Halide;

class Convert : public Generator<Convert> {
public:
    GeneratorParam<Type> from{"from", Float(32)}, to{"to", Float(32)};

    // Indices innermost first. The caller owns everything.
    Input<Buffer<void, 4>> input{"input"};     // d, head, token, batch
    Output<Buffer<void, 4>> output{"output"};  // the same

    void configure() {
        input.set_type(from);
        output.set_type(to);
    }

    void generate() {
        output(d, h, t, b) = to_dtype(cast<float>(input(d, h, t, b)), to);
    }

    void schedule() {
        output.vectorize(d, natural_vector_size<float>(), TailStrategy::GuardWithIf);
        output.dim(0).set_min(0);
    }

private:
    Var d{"d"}, h{"h"}, t{"t"}, b{"b"};
};

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::Convert, widen)
HALIDE_REGISTER_GENERATOR(pagegrad::Convert, narrow)
