// Raw sums of float32: sum g and sum g x, about zero, where moments have g = x. The products are exact in double, no
// number is shifted before, and so they take little more than the conversions. What becomes of them if x lies far from
// zero is asked in statistics.h.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "traversal.h"
#include "vector.h"

namespace {

// A run of lanes; `next_x` and `next_g` are asked for meanwhile. With `squares`, g is x.
template <bool squares> struct RawLanes {
    static constexpr size_t n = LANES / VECTOR;
    Doubles sum[n], product[n];

    ALWAYS_INLINE void add(const float* g, const float* x) {
        for (size_t k = 0; k < n; k++) {
            const Doubles xk = widened(x + k * VECTOR), gk = squares ? xk : widened(g + k * VECTOR);
            sum[k] += gk;
            product[k] = plus_product(product[k], gk, xk);
        }
    }
};

template <bool squares>
inline void raw_lanes(const float* RESTRICT g, const float* RESTRICT x, const float* next_g, const float* next_x, size_t width,
                      double* RESTRICT sum, double* RESTRICT product) {
    RawLanes<squares> lanes;
    for (size_t k = 0; k < lanes.n; k++) {
        lanes.sum[k] = loaded(sum + k * VECTOR);
        lanes.product[k] = loaded(product + k * VECTOR);
    }
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        prefetch_numbers(next_x + i, 4 * LANES);
        if (!squares) prefetch_numbers(next_g + i, 4 * LANES);
        for (size_t k = 0; k < 4 * LANES; k += LANES) lanes.add(g + i + k, x + i + k);
    }
    for (; i + LANES <= width; i += LANES) lanes.add(g + i, x + i);
    for (size_t k = 0; k < lanes.n; k++) {
        put(lanes.sum[k], sum + k * VECTOR);
        put(lanes.product[k], product + k * VECTOR);
    }
    for (size_t l = 0; i < width; i++, l++) {
        sum[l] += double(g[i]);
        product[l] += double(g[i]) * double(x[i]);
    }
}

// Four rows of columns side by side, or one; a row is where its g and its x begin.
struct RawRow { const float *g, *x; };

template <bool squares, class... Rows>
inline void raw_rows(size_t width, double* RESTRICT sum, double* RESTRICT product, Rows... rows) {
    size_t i = 0;
    for (; i + VECTOR <= width; i += VECTOR) {
        Doubles s = loaded(sum + i), p = loaded(product + i);
        const auto add = [&](const RawRow& row) {
            const Doubles x = widened(row.x + i), g = squares ? x : widened(row.g + i);
            s += g;
            p = plus_product(p, g, x);
        };
        (add(rows), ...);
        put(s, sum + i);
        put(p, product + i);
    }
    for (; i < width; i++) {
        const auto add = [&](const RawRow& row) {
            sum[i] += double(row.g[i]);
            product[i] += double(row.g[i]) * double(row.x[i]);
        };
        (add(rows), ...);
    }
}

// Walks the tile. `gradient(row, channel, first, n, buffer)` says where g of n numbers lies: in an array or in the buffer.
template <bool squares, class Gradient> inline void reduce_raw_lanes(const Tile& t, const Gradient& gradient) {
    float buffer[CHUNK];
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) {
            const size_t next = r + has_next(t, r);
            const float *x = from<float>(t.x, r, c), *next_x = from<float>(t.x, next, c);
            const float* next_dy = squares ? next_x : from<float>(t.dy, next, c);
            for (size_t i = 0, n; i < t.width; i += n) {
                n = t.width - i < CHUNK ? t.width - i : CHUNK;
                raw_lanes<squares>(gradient(r, c, i, n, buffer), x + i, next_dy + i, next_x + i, n, t.sum + c * LANES,
                                   t.sum_product + c * LANES);
            }
        }
}
template <bool squares, class Gradient> inline void reduce_raw_columns(const Tile& t, const Gradient& gradient) {
    constexpr size_t rows = 4;
    float buffers[rows][PACE];
    const size_t ahead = rows_ahead<float, rows>(t);
    for (size_t r = 0; r < t.rows;) {
        const size_t four = r + rows <= t.rows ? rows : 1;
        for (size_t i = 0, n; i < t.width; i += n) {
            n = t.width - i < PACE ? t.width - i : PACE;
            RawRow row[rows];
            for (size_t k = 0; k < four; k++)
                row[k] = {gradient(r + k, 0, i, n, buffers[k]), from<float>(t.x, r + k, 0) + i};
            prefetch_rows<float, rows>(t, t.x, r + ahead, i, n);
            prefetch_rows<float, rows>(t, t.dy, r + ahead, i, n);
            prefetch_rows<float, rows>(t, t.extra, r + ahead, i, n);
            double *sum = t.sum + i, *product = t.sum_product + i;
            if (four == rows) raw_rows<squares>(n, sum, product, row[0], row[1], row[2], row[3]);
            else raw_rows<squares>(n, sum, product, row[0]);
        }
        r += four;
    }
}

}  // namespace
