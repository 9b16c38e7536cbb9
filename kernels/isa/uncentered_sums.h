// Uncentered sums of float32, in explicit vectors: sum g and sum g x, where moments have g = x.
//
// Centered sums subtract a shift from each element in double before they multiply. Without the subtraction, the
// product of two floats is exact in double, so a step is two conversions, an addition and a fused multiply-add that
// rounds like the two separate operations. In cache this takes 0.114 ns instead of 0.163 (moments), and 0.167 instead
// of 0.237 (gradients).
//
// The price is cancellation: m2 = sum x^2 - (sum x)^2 / m loses digits if x is far from zero compared with its
// deviation. moments.h (near_zero) decides whether the sums are accurate; if not, the engine runs the centered kernel
// of sums.h. docs/decisions/0019 has the details.
//
// Anonymous namespace: see number.h.
#pragma once
#include "isa/formulas.h"
#include "isa/tile.h"
#include "isa/vector.h"

#include <initializer_list>

namespace {

constexpr ActivationGrad MOMENTS = ACTIVATION_GRADS;  // beside the kinds of gradients: sums with g = x

// The arrays at the start of a run or row.
struct Inputs { const float *x, *dy, *saved; };
inline Inputs inputs_at(const Tile& t, size_t r, size_t c, size_t first) {
    const float* x = from<float>(t.x, r, c) + first;
    // Absent arrays alias x; they are never read, but the pointer arithmetic stays valid.
    return {x, t.dy.at ? from<float>(t.dy, r, c) + first : x, t.saved.at ? from<float>(t.saved, r, c) + first : x};
}

// Coefficients of a vector of elements, for pre; read behind LEAKY_RELU_FROM_X only.
template <class V> struct VectorCoefficients { V hi, lo, scale, beta; Slope<V> slope; };

// The same from arrays of them. `read` makes a V of the float at an address.
template <ActivationGrad grad, class V, class Read>
ALWAYS_INLINE VectorCoefficients<V> vector_coefficients(const Tile& t, size_t at, Slope<V> slope, const Read& read) {
    const auto value = [&](const void* p) INLINE_LAMBDA { return read(static_cast<const float*>(p) + at); };
    const Coefficients& c = t.coefficients;
    if constexpr (grad == LEAKY_RELU_FROM_X)
        return {value(c.mu_hi), value(c.mu_lo), value(c.scale), value(c.beta), slope};
    else return {V{}, V{}, V{}, V{}, slope};
}

// g of the elements x. load(p) gives the elements of another array that starts at p.
template <ActivationGrad grad, class V, class Load>
ALWAYS_INLINE V gradient_of(V x, const Inputs& in, const VectorCoefficients<V>& c, const Load& load) {
    if constexpr (grad == MOMENTS) return x;
    else if constexpr (grad == LEAKY_RELU_FROM_X)
        return through_leaky(load(in.dy), not_positive(centered(x, c.hi, c.lo), c.scale, c.beta), c.slope);
    else if constexpr (grad == LEAKY_RELU_FROM_Y) return through_leaky(load(in.dy), load(in.saved) <= V{}, c.slope);
    else {
        static_assert(grad == NO_ACTIVATION, "if act' takes exp, g is computed beforehand, and in.dy is g");
        return load(in.dy);
    }
}

// sum += g, product += g x.
template <ActivationGrad grad, class Load>
ALWAYS_INLINE void add_vector(Doubles& sum, Doubles& product, const Inputs& in, const VectorCoefficients<Floats>& c,
                              const Load& load) {
    const Floats x = load(in.x);
    const Doubles xd = widened(x), g = grad == MOMENTS ? xd : widened(gradient_of<grad>(x, in, c, load));
    sum = sum + g;
    product = plus_product(product, g, xd);
}

// ------------------------------------------------------------------------------------------------------ lanes

// Adds a run to the LANES accumulators of its channel, which are in registers meanwhile. `next` is prefetched.
template <ActivationGrad grad>
inline void add_uncentered_run(const Inputs& in, const Inputs& next, const VectorCoefficients<Floats>& c, size_t width,
                               double* RESTRICT sum, double* RESTRICT product) {
    constexpr size_t vectors = LANES / VECTOR;
    Doubles s[vectors], p[vectors];
    for (size_t k = 0; k < vectors; k++) s[k] = doubles(sum + k * VECTOR), p[k] = doubles(product + k * VECTOR);
    const auto add_lanes = [&](size_t i) INLINE_LAMBDA {
        for (size_t k = 0; k < vectors; k++)
            add_vector<grad>(s[k], p[k], in, c, [&](const float* at) INLINE_LAMBDA {
                return floats(at + i + k * VECTOR);
            });
    };
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        prefetch_elements(next.x + i, 4 * LANES);
        if (grad != MOMENTS) prefetch_elements(next.dy + i, 4 * LANES);
        if (reads_saved(grad)) prefetch_elements(next.saved + i, 4 * LANES);
        for (size_t k = 0; k < 4 * LANES; k += LANES) add_lanes(i + k);
    }
    for (; i + LANES <= width; i += LANES) add_lanes(i);
    for (size_t k = 0; k < vectors && i < width; k++, i += VECTOR)  // the tail is a zero-padded vector
        add_vector<grad>(s[k], p[k], in, c, [&](const float* at) INLINE_LAMBDA {
            return floats(at + i, least(width - i, VECTOR));
        });
    for (size_t k = 0; k < vectors; k++) put(s[k], sum + k * VECTOR), put(p[k], product + k * VECTOR);
}

// Reduces a tile in lanes. inputs(row, channel, first, n, buffer) gives the arrays from element `first` on; it may
// compute n gradients into `buffer` (takes_exp).
template <ActivationGrad grad, class InputsOf>
inline void reduce_uncentered_lanes(const Tile& t, const InputsOf& inputs) {
    float buffer[CHUNK];
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) {
            const auto read = [](const float* at) INLINE_LAMBDA { return broadcast(*at); };
            const auto coefficients = vector_coefficients<grad>(t, c, Slope<Floats>(t.slope), read);
            const Inputs next = inputs_at(t, r + has_next(t, r), c, 0);
            for (size_t i = 0, n; i < t.width; i += n) {
                n = least(t.width - i, CHUNK);
                add_uncentered_run<grad>(inputs(r, c, i, n, buffer), {next.x + i, next.dy + i, next.saved + i},
                                         coefficients, n, t.sum + c * LANES, t.sum_product + c * LANES);
            }
        }
}

// ---------------------------------------------------------------------------------------------------- columns

// The arrays at the start of several rows: those of the first one, and the strides.
struct InputRows {
    Inputs first;
    ptrdiff_t x, dy, saved;
    ALWAYS_INLINE Inputs operator[](size_t k) const {
        return {first.x + ptrdiff_t(k) * x, first.dy + ptrdiff_t(k) * dy, first.saved + ptrdiff_t(k) * saved};
    }
};
inline InputRows input_rows_at(const Tile& t, size_t r, size_t first) {
    return {inputs_at(t, r, 0, first), t.x.row, t.dy.row, t.saved.row};
}

// Prefetches rows r, ..., r + ROWS - 1, one line of each per LANES columns that are added; if the rows are adjacent in
// memory, as many lines in the order of memory. Finding the addresses once per row, not per block of columns, is worth
// 10 % of a forward pass.
class RowPrefetcher {
  public:
    static constexpr size_t ROWS = 4;

    RowPrefetcher() = default;  // prefetches nothing
    RowPrefetcher(const Tile& t, size_t r) {
        if (t.fits_in_cache || r + ROWS > t.rows) return;
        for (const Source* s : {&t.x, &t.dy, &t.saved}) {
            if (!s->at) continue;
            const bool adjacent = s->row == ptrdiff_t(t.width);
            const ptrdiff_t line = adjacent ? ptrdiff_t(LANES) : s->row, column = adjacent ? ptrdiff_t(ROWS) : 1;
            of_[arrays_++] = {from<float>(*s, r, 0), line, column};
        }
    }
    ALWAYS_INLINE void prefetch_at(size_t column) const {
        for (size_t a = 0; a < arrays_; a++)
            for (size_t k = 0; k < ROWS; k++)
                prefetch(of_[a].at + ptrdiff_t(column) * of_[a].column + ptrdiff_t(k) * of_[a].line);
    }

  private:
    struct Lines { const float* at; ptrdiff_t line, column; } of_[3];  // strides from line to line, and per column
    size_t arrays_ = 0;
};

// Adds columns [first, first + width) of some rows to their sums.
template <ActivationGrad grad, size_t rows>
inline void add_uncentered_rows(const Tile& t, const InputRows& in, const RowPrefetcher& ahead, size_t first,
                                size_t width) {
    double *RESTRICT sum = t.sum + first, *RESTRICT product = t.sum_product + first;
    const Slope<Floats> slope(t.slope);
    size_t i = 0;
    const auto add_columns = [&]() INLINE_LAMBDA {
        const auto read = [](const float* at) INLINE_LAMBDA { return floats(at); };
        const auto c = vector_coefficients<grad>(t, first + i, slope, read);
        const auto load = [&](const float* at) INLINE_LAMBDA { return floats(at + i); };
        Doubles s = doubles(sum + i), p = doubles(product + i);
        for (size_t k = 0; k < rows; k++) add_vector<grad>(s, p, in[k], c, load);
        put(s, sum + i);
        put(p, product + i);
        i += VECTOR;
    };
    while (i + LANES <= width) {
        ahead.prefetch_at(first + i);
        for (size_t k = 0; k < LANES; k += VECTOR) add_columns();
    }
    while (i + VECTOR <= width) add_columns();
    for (; i < width; i++) {
        const auto read = [](const float* at) INLINE_LAMBDA { return *at; };
        const auto c = vector_coefficients<grad>(t, first + i, Slope<float>(t.slope), read);
        const auto load = [&](const float* at) INLINE_LAMBDA { return at[i]; };
        for (size_t k = 0; k < rows; k++) {
            const double x = load(in[k].x), g = gradient_of<grad>(float(x), in[k], c, load);
            sum[i] += g;
            product[i] += g * x;
        }
    }
}

// Reduces a tile in columns, at most `block` columns at a time. inputs(row, rows, first, n, buffer) gives the arrays of
// some rows from column `first` on; it may compute their gradients into `buffer`, which is PREFETCH_BLOCK wide.
template <ActivationGrad grad, class InputsOf>
inline void reduce_uncentered_columns(const Tile& t, size_t block, const InputsOf& inputs) {
    constexpr size_t rows = RowPrefetcher::ROWS;
    float buffer[rows * PREFETCH_BLOCK];
    const size_t distance = rows_ahead<float, rows>(t);
    size_t r = 0;
    for (; r + rows <= t.rows; r += rows) {
        const RowPrefetcher ahead(t, r + distance);
        for (size_t i = 0, n; i < t.width; i += n) {
            n = least(t.width - i, block);
            add_uncentered_rows<grad, rows>(t, inputs(r, rows, i, n, buffer), ahead, i, n);
        }
    }
    for (; r < t.rows; r++)
        for (size_t i = 0, n; i < t.width; i += n) {
            n = least(t.width - i, block);
            add_uncentered_rows<grad, 1>(t, inputs(r, 1, i, n, buffer), RowPrefetcher(), i, n);
        }
}

}  // namespace
