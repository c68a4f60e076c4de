/// Packs keys or query rows as the right operand of a product over head_dim: transposed.
#include "products.h"
#include "tile_sources.h"

namespace pagegrad {
namespace {

using namespace Halide;

template<typename Source>
class Transpose : public Generator<Transpose<Source>> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};
    GeneratorParam<Type> product{"product", Float(32)};

    Source source;
    // row (padded), d word (padded): see products.h
    GeneratorOutput<Buffer<void, 2>> packed{"packed"};

    void configure() {
        source.set_type(dtype);
        packed.set_type(Products(product).word_type());
    }

    void generate() {
        source.prepare();
        words(d, r) =
            Products(product).word([&](const Expr &column) { return source(column, r); }, d);
        packed(r, d) = words(d, r);
    }

    void schedule() {
        const int vector = this->template natural_vector_size<float>();
        Var block("block");
        packed.dim(0).set_bounds(0, packed.dim(0).extent() / vector * vector);
        packed.dim(1).set_bounds(0, packed.dim(1).extent() / vector * vector);
        packed.split(r, block, r, vector).reorder(r, d, block).vectorize(r);
        words.compute_at(packed, block).vectorize(d, vector);
    }

private:
    Var d{"d"}, r{"r"};
    Func words{"words"};
};

using TransposeKeys = Transpose<KeySource>;
using TransposeQueries = Transpose<QuerySource>;

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::TransposeKeys, transpose_keys)
HALIDE_REGISTER_GENERATOR(pagegrad::TransposeQueries, transpose_queries)
