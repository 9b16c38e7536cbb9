// Sums over a tile, in fixed lanes or columns. No formula lives here.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "traversal.h"

#include <utility>

namespace {

// A reduction is an `Each` with  void operator()(i, l, Term& u, Term& v): the two summands of number i, where l is its
// lane or column. As many rows of lanes, or of columns, as `together` says are added in its Term, pairwise, before they
// meet the running sums in double. `next` is the run after this one, which is asked for meanwhile.
template <class Term> constexpr size_t together = sizeof(Term) == 8 ? 4 : 8;

template <size_t n, class Term, class At> ALWAYS_INLINE void pairwise(const At& at, size_t k, Term& u, Term& v) {
    if constexpr (n == 1) {
        at(k, u, v);
    } else {
        Term u0, u1, v0, v1;
        pairwise<n / 2>(at, k, u0, v0);
        pairwise<n / 2>(at, k + n / 2, u1, v1);
        u = u0 + u1;
        v = v0 + v1;
    }
}

template <class Each>
inline void sum_lanes(const Each& each, const Each& next, size_t width, double* RESTRICT sum,
                      double* RESTRICT product) {
    using Term = typename Each::Term;
    double s[LANES], q[LANES];
    for (size_t l = 0; l < LANES; l++) { s[l] = sum[l]; q[l] = product[l]; }
    size_t i = 0;
    const auto add_rows = [&](auto rows) {
        for (size_t l = 0; l < LANES; l++) {
            Term u, v;
            pairwise<rows()>([&](size_t k, Term& uk, Term& vk) { each(i + k * LANES + l, l, uk, vk); }, 0, u, v);
            s[l] += double(u);
            q[l] += double(v);
        }
        i += rows() * LANES;
    };
    while (i + together<Term> * LANES <= width) {
        next.prefetch_from(i);
        add_rows(std::integral_constant<size_t, together<Term>>());
    }
    while (i + LANES <= width) add_rows(std::integral_constant<size_t, 1>());
    for (size_t l = 0; i < width; i++, l++) {
        Term u, v;
        each(i, l, u, v);
        s[l] += double(u);
        q[l] += double(v);
    }
    for (size_t l = 0; l < LANES; l++) { sum[l] = s[l]; product[l] = q[l]; }
}

// Rows of columns side by side: an Each for every row.
template <class Each, size_t rows>
inline void sum_rows(const Each (&each)[rows], size_t width, double* RESTRICT sum, double* RESTRICT product) {
    for (size_t l = 0; l < width; l++) {
        typename Each::Term u, v;
        pairwise<rows>([&](size_t k, auto& uk, auto& vk) { each[k](l, l, uk, vk); }, 0, u, v);
        sum[l] += double(u);
        product[l] += double(v);
    }
}

template <class T, bool extra, class At, size_t... k>
inline void reduce_columns(const Tile& t, const At& at, std::index_sequence<k...>) {
    constexpr size_t rows = sizeof...(k);
    const size_t ahead = rows_ahead<T, rows>(t);
    size_t r = 0;
    for (; r + rows <= t.rows; r += rows)
        for (size_t i = 0; i < t.width; i += PACE) {
            const size_t n = t.width - i < PACE ? t.width - i : PACE;
            prefetch_rows<T, rows>(t, t.x, r + ahead, i, n);
            prefetch_rows<T, rows>(t, t.dy, r + ahead, i, n);
            if (extra) prefetch_rows<T, rows>(t, t.extra, r + ahead, i, n);
            sum_rows({at(r + k, i)...}, n, t.sum + i, t.sum_product + i);
        }
    for (; r < t.rows; r++) sum_rows({at(r, 0)}, t.width, t.sum, t.sum_product);
}
template <class At> inline void reduce_lanes(const Tile& t, const At& at) {
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++)
            sum_lanes(at(r, c), at(r + has_next(t, r), c), t.width, t.sum + c * LANES, t.sum_product + c * LANES);
}

// Walks the tile: lanes go run by run, columns some rows at a time. `at(row, k)` is the Each of channel or column k on.
template <class T, bool columns, bool extra, class At> inline void reduce(const Tile& t, const At& at) {
    using Term = typename decltype(at(0, 0))::Term;
    if constexpr (columns) reduce_columns<T, extra>(t, at, std::make_index_sequence<together<Term>>());
    else reduce_lanes(t, at);
}

}  // namespace
