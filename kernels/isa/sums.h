// The loops of the reductions, in lanes and in columns, left to the compiler's vectorizer. No equation is here.
//
// Floating-point addition is not associative, so a compiler may not vectorize `s += x[i]`. These loops therefore keep
// many independent sums: one for each of LANES lanes of a run, or one for each column. A compiler can map them to
// vectors of any width, and the result has the same bits for each. To hide the latency of additions, and to convert
// to double less often, UNROLL rows of lanes (or rows of columns) are first added to each other in pairs. This is
// part of the order too.
//
// A reduction is given by a functor `Terms`, with
//   type Partial                                     in which rows are added before they are widened to double
//   void operator()(i, l, Partial& u, Partial& v)    the two terms of element i, which is in lane or column l
//   void prefetch_from(i)                            prefetches what elements i, i + 1, ... read (lanes)
//
// Anonymous namespace: see number.h.
#pragma once
#include "isa/tile.h"

#include <utility>

namespace {

// Eight rows for float partial sums (16-bit formats; moments.h bounds their error), four for doubles.
template <class Partial> constexpr size_t UNROLL = sizeof(Partial) == 8 ? 4 : 8;

// The pairwise sum of term(k, u, v) over k, k + 1, ..., k + n - 1.
template <size_t n, class Partial, class Term>
ALWAYS_INLINE void pairwise(const Term& term, size_t k, Partial& u, Partial& v) {
    if constexpr (n == 1) {
        term(k, u, v);
    } else {
        Partial u0, u1, v0, v1;
        pairwise<n / 2>(term, k, u0, v0);
        pairwise<n / 2>(term, k + n / 2, u1, v1);
        u = u0 + u1;
        v = v0 + v1;
    }
}

// Adds a run to the LANES accumulators of its channel. `next` is the same channel's run in the next row, for
// prefetching.
template <class Terms>
inline void sum_lanes(const Terms& terms, const Terms& next, size_t width, double* RESTRICT sum,
                      double* RESTRICT product) {
    using Partial = typename Terms::Partial;
    double s[LANES], q[LANES];
    for (size_t l = 0; l < LANES; l++) { s[l] = sum[l]; q[l] = product[l]; }
    size_t i = 0;
    const auto add_rows = [&](auto rows) {
        for (size_t l = 0; l < LANES; l++) {
            Partial u, v;
            pairwise<rows()>([&](size_t k, Partial& uk, Partial& vk) { terms(i + k * LANES + l, l, uk, vk); }, 0, u, v);
            s[l] += double(u);
            q[l] += double(v);
        }
        i += rows() * LANES;
    };
    while (i + UNROLL<Partial> * LANES <= width) {
        next.prefetch_from(i);
        add_rows(std::integral_constant<size_t, UNROLL<Partial>>());
    }
    while (i + LANES <= width) add_rows(std::integral_constant<size_t, 1>());
    for (size_t l = 0; i < width; i++, l++) {
        Partial u, v;
        terms(i, l, u, v);
        s[l] += double(u);
        q[l] += double(v);
    }
    for (size_t l = 0; l < LANES; l++) { sum[l] = s[l]; product[l] = q[l]; }
}

// Adds rows of columns, of which terms[k] is one each, to the columns' sums.
template <class Terms, size_t rows>
inline void sum_rows(const Terms (&terms)[rows], size_t width, double* RESTRICT sum, double* RESTRICT product) {
    for (size_t l = 0; l < width; l++) {
        typename Terms::Partial u, v;
        pairwise<rows>([&](size_t k, auto& uk, auto& vk) { terms[k](l, l, uk, vk); }, 0, u, v);
        sum[l] += double(u);
        product[l] += double(v);
    }
}

template <class T, bool with_saved, class At, size_t... k>
inline void reduce_columns(const Tile& t, const At& at, std::index_sequence<k...>) {
    constexpr size_t rows = sizeof...(k);
    const size_t ahead = rows_ahead<T, rows>(t);
    size_t r = 0;
    for (; r + rows <= t.rows; r += rows)
        for (size_t i = 0; i < t.width; i += PREFETCH_BLOCK) {
            const size_t n = least(t.width - i, PREFETCH_BLOCK);
            prefetch_rows<T, rows>(t, t.x, r + ahead, i, n);
            prefetch_rows<T, rows>(t, t.dy, r + ahead, i, n);
            if (with_saved) prefetch_rows<T, rows>(t, t.saved, r + ahead, i, n);
            sum_rows({at(r + k, i)...}, n, t.sum + i, t.sum_product + i);
        }
    for (; r < t.rows; r++) sum_rows({at(r, 0)}, t.width, t.sum, t.sum_product);
}
template <class At> inline void reduce_lanes(const Tile& t, const At& at) {
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++)
            sum_lanes(at(r, c), at(r + has_next(t, r), c), t.width, t.sum + c * LANES, t.sum_product + c * LANES);
}

// Reduces a tile. at(row, k) gives the Terms of a row from channel k (lanes) or column k on.
template <class T, bool columns, bool with_saved, class At> inline void reduce(const Tile& t, const At& at) {
    using Partial = typename decltype(at(0, 0))::Partial;
    if constexpr (columns) reduce_columns<T, with_saved>(t, at, std::make_index_sequence<UNROLL<Partial>>());
    else reduce_lanes(t, at);
}

}  // namespace
