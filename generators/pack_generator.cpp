/// Packs keys or query rows as operands of products: the left one of a product over head_dim, and
/// the right one of a product over the rows, which in float32 is the same.
#include "products.h"
#include "tile_sources.h"

namespace pagegrad {
namespace {

using namespace Halide;

template<typename Source>
class Pack : public Generator<Pack<Source>> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};
    GeneratorParam<Type> product{"product", Float(32)};

    Source source;
    // d word (padded), row (padded): see products.h
    GeneratorOutput<Buffer<void, 2>> packed{"packed"};
    // Unless products are in float32: d (padded), row word (padded).
    GeneratorOutput<Buffer<>> *pairs = nullptr;

    void configure() {
        const Products products(product);
        source.set_type(dtype);
        packed.set_type(products.word_type());
        if (products.depth() > 1) {
            pairs = this->template add_output<Buffer<>>("pairs", products.word_type(), 2);
        }
    }

    void generate() {
        const Products products(product);
        source.prepare();
        packed(d, r) = products.word([&](const Expr &column) { return source(column, r); }, d);
        if (pairs) {
            (*pairs)(d, r) = products.word([&](const Expr &row) { return source(d, row); }, r);
        }
    }

    void schedule() {
        const int vector = this->template natural_vector_size<float>();
        packed.dim(0).set_bounds(0, packed.dim(0).extent() / vector * vector);
        packed.vectorize(d, vector);
        if (pairs) {
            pairs->dim(0).set_bounds(0, pairs->dim(0).extent() / vector * vector);
            pairs->vectorize(d, vector);
        }
    }

private:
    Var d{"d"}, r{"r"};
};

using PackKeys = Pack<KeySource>;
using PackQueries = Pack<QuerySource>;

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::PackKeys, pack_keys)
HALIDE_REGISTER_GENERATOR(pagegrad::PackQueries, pack_queries)
