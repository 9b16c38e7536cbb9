// Raw sums of float32: sum g and sum g x, about zero, where moments have g = x. The products are exact in double, no
// number is shifted before, and so they take little more than the conversions. What becomes of them if x lies far from
// zero is asked in statistics.h.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "formulas.h"
#include "traversal.h"
#include "vector.h"

#include <initializer_list>

namespace {

constexpr int MOMENTS = -1;  // a side, of sums whose g is x

// Where numbers lie, and what g is made of beside them.
struct RawRun { const float *x, *dy, *extra; };
inline RawRun raw_run(const Tile& t, size_t r, size_t c, size_t first) {
    const float* x = from<float>(t.x, r, c) + first;  // stands for what there is not
    return {x, t.dy.at ? from<float>(t.dy, r, c) + first : x, t.extra.at ? from<float>(t.extra, r, c) + first : x};
}
template <class V> struct RawTerms { V scale, kink; Slope<V> slope; };

// g of the numbers x, where `load` takes from the other arrays what belongs to them.
template <int grad, class V, class Load>
ALWAYS_INLINE V raw_gradient(V x, const RawRun& run, const RawTerms<V>& terms, const Load& load) {
    if constexpr (grad == MOMENTS) return x;
    else if constexpr (grad == LEAKY_RELU_FROM_X) return through_leaky(load(run.dy), rising(x, terms.scale) <= terms.kink, terms.slope);
    else if constexpr (grad == LEAKY_RELU_FROM_Y) return through_leaky(load(run.dy), load(run.extra) <= V{}, terms.slope);
    else return load(run.dy);
}

// The lanes of a run; `next`, of the run after it, is asked for meanwhile.
template <int grad> struct RawLanes {
    static constexpr size_t n = LANES / VECTOR;
    Doubles sum[n], product[n];

    RawLanes(const double* s, const double* p) {
        for (size_t k = 0; k < n; k++) sum[k] = doubles(s + k * VECTOR), product[k] = doubles(p + k * VECTOR);
    }
    void put_to(double* s, double* p) const {
        for (size_t k = 0; k < n; k++) put(sum[k], s + k * VECTOR), put(product[k], p + k * VECTOR);
    }
    template <class Load> ALWAYS_INLINE void add(size_t k, const RawRun& run, const RawTerms<Floats>& terms, const Load& load) {
        const Floats x = load(run.x);
        const Doubles xk = widened(x), gk = grad == MOMENTS ? xk : widened(raw_gradient<grad>(x, run, terms, load));
        sum[k] = sum[k] + gk;
        product[k] = plus_product(product[k], gk, xk);
    }
};

template <int grad>
inline void raw_lanes(const RawRun& run, const RawRun& next, const RawTerms<Floats>& terms, size_t width, double* RESTRICT sum,
                      double* RESTRICT product) {
    RawLanes<grad> lanes(sum, product);
    const auto add_lanes = [&](size_t i) INLINE_LAMBDA {
        for (size_t k = 0; k < lanes.n; k++)
            lanes.add(k, run, terms, [&](const float* at) INLINE_LAMBDA { return floats(at + i + k * VECTOR); });
    };
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        prefetch_numbers(next.x + i, 4 * LANES);
        if (grad != MOMENTS) prefetch_numbers(next.dy + i, 4 * LANES);
        if (reads_extra(grad)) prefetch_numbers(next.extra + i, 4 * LANES);
        for (size_t k = 0; k < 4 * LANES; k += LANES) add_lanes(i + k);
    }
    for (; i + LANES <= width; i += LANES) add_lanes(i);
    for (size_t k = 0; k < lanes.n && i < width; k++, i += VECTOR)  // zeros fill the last ones up
        lanes.add(k, run, terms, [&](const float* at) INLINE_LAMBDA {
            return floats(at + i, width - i < VECTOR ? width - i : VECTOR);
        });
    lanes.put_to(sum, product);
}

// Rows of columns side by side: where the first of them lies, and what it is from each to the next.
struct RawRows {
    RawRun first;
    ptrdiff_t x, dy, extra;
    ALWAYS_INLINE RawRun operator[](size_t k) const {
        return {first.x + ptrdiff_t(k) * x, first.dy + ptrdiff_t(k) * dy, first.extra + ptrdiff_t(k) * extra};
    }
};
inline RawRows raw_rows(const Tile& t, size_t r, size_t first) {
    return {raw_run(t, r, 0, first), t.x.row, t.dy.row, t.extra.row};
}

// What is asked for of rows ahead while LANES columns are added: a line of each row, or as many lines in the order of memory
// where rows follow one another.
class Ahead {
  public:
    static constexpr size_t ROWS = 4;

    Ahead() = default;
    Ahead(const Tile& t, size_t r) {
        if (t.near || r + ROWS > t.rows) return;
        for (const Source* s : {&t.x, &t.dy, &t.extra}) {
            if (!s->at) continue;
            const bool dense = s->row == ptrdiff_t(t.width);
            of_[arrays_++] = {from<float>(*s, r, 0), dense ? ptrdiff_t(LANES) : s->row, dense ? ptrdiff_t(ROWS) : 1};
        }
    }
    ALWAYS_INLINE void ask(size_t column) const {
        for (size_t a = 0; a < arrays_; a++)
            for (size_t k = 0; k < ROWS; k++) prefetch(of_[a].at + ptrdiff_t(column) * of_[a].column + ptrdiff_t(k) * of_[a].line);
    }

  private:
    struct Lines { const float* at; ptrdiff_t line, column; } of_[3];
    size_t arrays_ = 0;
};

// Columns [first, first + width) of some rows, which lie at `runs`; the same of the rows ahead is asked for.
template <int grad, size_t rows>
inline void add_raw_rows(const Tile& t, const RawRows& runs, const Ahead& ahead, size_t first, size_t width) {
    double *RESTRICT sum = t.sum + first, *RESTRICT product = t.sum_product + first;
    constexpr bool bends = grad == LEAKY_RELU_FROM_X;
    const float* scale = bends ? static_cast<const float*>(t.terms.scale) + first : nullptr;
    const float* kink = bends ? static_cast<const float*>(t.terms.kink) + first : nullptr;
    const Slope<Floats> slope(t.slope);
    size_t i = 0;
    const auto add_vector = [&]() INLINE_LAMBDA {
        const RawTerms<Floats> terms{bends ? floats(scale + i) : Floats{}, bends ? floats(kink + i) : Floats{}, slope};
        const auto load = [&](const float* from) INLINE_LAMBDA { return floats(from + i); };
        Doubles s = doubles(sum + i), p = doubles(product + i);
        for (size_t k = 0; k < rows; k++) {
            const Floats x = load(runs[k].x);
            const Doubles xk = widened(x), gk = grad == MOMENTS ? xk : widened(raw_gradient<grad>(x, runs[k], terms, load));
            s = s + gk;
            p = plus_product(p, gk, xk);
        }
        put(s, sum + i);
        put(p, product + i);
        i += VECTOR;
    };
    while (i + LANES <= width) {
        ahead.ask(first + i);
        for (size_t k = 0; k < LANES; k += VECTOR) add_vector();
    }
    while (i + VECTOR <= width) add_vector();
    for (; i < width; i++) {
        const RawTerms<float> terms{bends ? scale[i] : 0, bends ? kink[i] : 0, Slope<float>(t.slope)};
        const auto load = [&](const float* from) INLINE_LAMBDA { return from[i]; };
        for (size_t k = 0; k < rows; k++) {
            const double x = load(runs[k].x), g = raw_gradient<grad>(float(x), runs[k], terms, load);
            sum[i] += g;
            product[i] += g * x;
        }
    }
}

// Walks the tile. `run_at(row, channel, first, n, buffer)` says where n numbers lie; g of silu it makes into the buffer.
template <int grad, class RunAt> inline void reduce_raw_lanes(const Tile& t, const RunAt& run_at) {
    float buffer[CHUNK];
    constexpr bool bends = grad == LEAKY_RELU_FROM_X;
    const auto term = [](const void* p, size_t c) { return everywhere(bends ? static_cast<const float*>(p)[c] : 0); };
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) {
            const RawTerms<Floats> terms{term(t.terms.scale, c), term(t.terms.kink, c), Slope<Floats>(t.slope)};
            const RawRun next = raw_run(t, r + has_next(t, r), c, 0);
            for (size_t i = 0, n; i < t.width; i += n) {
                n = t.width - i < CHUNK ? t.width - i : CHUNK;
                raw_lanes<grad>(run_at(r, c, i, n, buffer), {next.x + i, next.dy + i, next.extra + i}, terms, n,
                                t.sum + c * LANES, t.sum_product + c * LANES);
            }
        }
}
// The same, some rows at a time, in pieces of `most` columns. `rows_at(row, rows, first, n, buffer)` says where they lie.
template <int grad, class RowsAt> inline void reduce_raw_columns(const Tile& t, size_t most, const RowsAt& rows_at) {
    constexpr size_t rows = Ahead::ROWS;
    float buffer[rows * PACE];
    const size_t far = rows_ahead<float, rows>(t);
    size_t r = 0;
    for (; r + rows <= t.rows; r += rows) {
        const Ahead ahead(t, r + far);
        for (size_t i = 0, n; i < t.width; i += n) {
            n = t.width - i < most ? t.width - i : most;
            add_raw_rows<grad, rows>(t, rows_at(r, rows, i, n, buffer), ahead, i, n);
        }
    }
    for (; r < t.rows; r++)
        for (size_t i = 0, n; i < t.width; i += n) {
            n = t.width - i < most ? t.width - i : most;
            add_raw_rows<grad, 1>(t, rows_at(r, 1, i, n, buffer), Ahead(), i, n);
        }
}

}  // namespace
