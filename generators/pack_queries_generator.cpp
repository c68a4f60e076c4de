/// Packs listed query rows of q or dout as the left operand of a product over head_dim, and as the
/// right one of a product over rows, which in float32 is the same. Rows past the end and columns
/// past head_dim are zero.
#include "paging.h"
#include "products.h"

namespace pagegrad {
namespace {

using namespace Halide;

class PackQueries : public Generator<PackQueries> {
public:
    GeneratorParam<Type> dtype{"dtype", Float(32)};
    GeneratorParam<Type> product{"product", Float(32)};

    // Indices innermost first. The caller owns everything.
    Input<Buffer<void, 4>> tensor{"tensor"};   // d, head, token, batch
    Input<Buffer<int32_t, 2>> rows{"rows"};    // field, row
    Output<Buffer<void, 2>> packed{"packed"};  // d word (padded), row (padded): see products.h
    Output<Buffer<>> *pairs = nullptr;         // unless float32: d (padded), row word (padded)

    void configure() {
        tensor.set_type(dtype);
        const Products products(product);
        packed.set_type(products.word_type());
        if (products.depth() > 1) {
            pairs = add_output<Buffer<>>("pairs", products.word_type(), 2);
        }
    }

    void generate() {
        const Products products(product);
        const Expr D = tensor.dim(0).extent(), num_rows = rows.dim(1).extent();
        const auto element = [&](const Expr &column, const Expr &at) {
            const QueryRow row(rows, tensor, min(at, num_rows - 1));
            const Expr value = cast<float>(row.of(tensor, min(column, D - 1)));
            return select(at < num_rows, in_head(value, column, D), 0.0f);
        };
        packed(d, r) = products.word([&](const Expr &column) { return element(column, r); }, d);
        if (pairs) {
            (*pairs)(d, r) = products.word([&](const Expr &row) { return element(d, row); }, r);
        }
    }

    void schedule() {
        const int vector = natural_vector_size<float>();
        tensor.dim(0).set_min(0);
        rows.dim(0).set_bounds(0, row_fields);
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

}  // namespace
}  // namespace pagegrad

HALIDE_REGISTER_GENERATOR(pagegrad::PackQueries, pack_queries)
