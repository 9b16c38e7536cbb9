// Raw sums of float32: sum g and sum g x, about zero, where moments have g = x. The products are exact in double, no
// number is shifted before, and so they take little more than the conversions. What becomes of them if x lies far from
// zero is asked in statistics.h.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "formulas.h"
#include "traversal.h"
#include "vector.h"

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
template <int side, class V, class Load>
ALWAYS_INLINE V raw_gradient(V x, const RawRun& run, const RawTerms<V>& terms, const Load& load) {
    if constexpr (side == MOMENTS) return x;
    else if constexpr (side == LEAKY_FROM_X) return through_leaky(load(run.dy), rising(x, terms.scale) <= terms.kink, terms.slope);
    else if constexpr (side == LEAKY_FROM_Y) return through_leaky(load(run.dy), load(run.extra) <= V{}, terms.slope);
    else return load(run.dy);
}

// The lanes of a run; `next`, of the run after it, is asked for meanwhile.
template <int side> struct RawLanes {
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
        const Doubles xk = widened(x), gk = side == MOMENTS ? xk : widened(raw_gradient<side>(x, run, terms, load));
        sum[k] = sum[k] + gk;
        product[k] = plus_product(product[k], gk, xk);
    }
};

template <int side>
inline void raw_lanes(const RawRun& run, const RawRun& next, const RawTerms<Floats>& terms, size_t width, double* RESTRICT sum,
                      double* RESTRICT product) {
    RawLanes<side> lanes(sum, product);
    const auto add_lanes = [&](size_t i) INLINE_LAMBDA {
        for (size_t k = 0; k < lanes.n; k++)
            lanes.add(k, run, terms, [&](const float* at) INLINE_LAMBDA { return floats(at + i + k * VECTOR); });
    };
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        prefetch_numbers(next.x + i, 4 * LANES);
        if (side != MOMENTS) prefetch_numbers(next.dy + i, 4 * LANES);
        if (reads_extra(side)) prefetch_numbers(next.extra + i, 4 * LANES);
        for (size_t k = 0; k < 4 * LANES; k += LANES) add_lanes(i + k);
    }
    for (; i + LANES <= width; i += LANES) add_lanes(i);
    for (size_t k = 0; k < lanes.n && i < width; k++, i += VECTOR)  // zeros fill the last ones up
        lanes.add(k, run, terms, [&](const float* at) INLINE_LAMBDA {
            return floats(at + i, width - i < VECTOR ? width - i : VECTOR);
        });
    lanes.put_to(sum, product);
}

// Rows of columns side by side: four, or one.
template <int side, class... Runs>
inline void raw_rows(size_t width, const Tile& t, size_t first, Runs... runs) {
    double *RESTRICT sum = t.sum + first, *RESTRICT product = t.sum_product + first;
    constexpr bool bends = side == LEAKY_FROM_X;
    const float* scale = bends ? static_cast<const float*>(t.terms.scale) + first : nullptr;
    const float* kink = bends ? static_cast<const float*>(t.terms.kink) + first : nullptr;
    const Slope<Floats> slope(t.slope);
    size_t i = 0;
    for (; i + VECTOR <= width; i += VECTOR) {
        Doubles s = doubles(sum + i), p = doubles(product + i);
        const RawTerms<Floats> terms{bends ? floats(scale + i) : Floats{}, bends ? floats(kink + i) : Floats{}, slope};
        const auto add = [&](const RawRun& run) INLINE_LAMBDA {
            const auto load = [&](const float* from) INLINE_LAMBDA { return floats(from + i); };
            const Floats x = load(run.x);
            const Doubles xi = widened(x), gi = side == MOMENTS ? xi : widened(raw_gradient<side>(x, run, terms, load));
            s = s + gi;
            p = plus_product(p, gi, xi);
        };
        (add(runs), ...);
        put(s, sum + i);
        put(p, product + i);
    }
    for (; i < width; i++) {
        const RawTerms<float> terms{bends ? scale[i] : 0, bends ? kink[i] : 0, Slope<float>(t.slope)};
        const auto add = [&](const RawRun& run) INLINE_LAMBDA {
            const auto load = [&](const float* from) INLINE_LAMBDA { return from[i]; };
            const double g = raw_gradient<side>(run.x[i], run, terms, load);
            sum[i] += g;
            product[i] += g * double(run.x[i]);
        };
        (add(runs), ...);
    }
}

// Walks the tile. `run_at(row, channel, first, n, buffer)` says where n numbers lie; g of silu it makes into the buffer.
template <int side, class RunAt> inline void reduce_raw_lanes(const Tile& t, const RunAt& run_at) {
    float buffer[CHUNK];
    constexpr bool bends = side == LEAKY_FROM_X;
    const auto term = [](const void* p, size_t c) { return everywhere(bends ? static_cast<const float*>(p)[c] : 0); };
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) {
            const RawTerms<Floats> terms{term(t.terms.scale, c), term(t.terms.kink, c), Slope<Floats>(t.slope)};
            const RawRun next = raw_run(t, r + has_next(t, r), c, 0);
            for (size_t i = 0, n; i < t.width; i += n) {
                n = t.width - i < CHUNK ? t.width - i : CHUNK;
                raw_lanes<side>(run_at(r, c, i, n, buffer), {next.x + i, next.dy + i, next.extra + i}, terms, n,
                                t.sum + c * LANES, t.sum_product + c * LANES);
            }
        }
}
template <int side, class RunAt> inline void reduce_raw_columns(const Tile& t, const RunAt& run_at) {
    constexpr size_t rows = 4;
    float buffers[rows][PACE];
    const size_t ahead = rows_ahead<float, rows>(t), pace = pace_of(t, PACE / 4);
    for (size_t r = 0; r < t.rows;) {
        const size_t four = r + rows <= t.rows ? rows : 1;
        for (size_t i = 0, n; i < t.width; i += n) {
            n = t.width - i < pace ? t.width - i : pace;
            RawRun run[rows];
            for (size_t k = 0; k < four; k++) run[k] = run_at(r + k, 0, i, n, buffers[k]);
            prefetch_rows<float, rows>(t, t.x, r + ahead, i, n);
            prefetch_rows<float, rows>(t, t.dy, r + ahead, i, n);
            if (reads_extra(side)) prefetch_rows<float, rows>(t, t.extra, r + ahead, i, n);
            if (four == rows) raw_rows<side>(n, t, i, run[0], run[1], run[2], run[3]);
            else raw_rows<side>(n, t, i, run[0]);
        }
        r += four;
    }
}

}  // namespace
