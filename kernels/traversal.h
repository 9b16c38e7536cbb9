// How a tile is walked: reductions in fixed lanes or columns, maps in chunks. No formula lives here.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "kernels.h"
#include "memory.h"
#include "number.h"

#include <utility>

namespace {

using namespace xhat;
using std::ptrdiff_t;

template <class T> using A = typename Arithmetic<T>::type;

template <class T> const T* from(const Source& s, size_t row, size_t channel) {
    return static_cast<const T*>(s.at) + ptrdiff_t(row) * s.row + ptrdiff_t(channel) * s.channel;
}
template <class T> T* to(const Target& t, size_t row, size_t channel) {
    return static_cast<T*>(t.at) + ptrdiff_t(row) * t.row + ptrdiff_t(channel) * t.channel;
}

constexpr size_t CHUNK = 512;  // numbers that go through a buffer at a time: it stays in the first cache

// Where channel k of a row begins (lanes), or its column k lies.
template <class T, bool columns> const T* place(const Source& s, size_t row, size_t k) {
    return columns ? from<T>(s, row, 0) + k : from<T>(s, row, k);
}

inline const double* weights(const Tile& t, size_t row) { return t.weights + ptrdiff_t(row) * t.weights_row; }

// ------------------------------------------------------------------------------------------- reductions

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

// Rows read side by side are no stream to the processor's own prefetcher: it is told what comes next, whole rows
// in the order of memory, at the pace of the columns, and so far ahead that memory has answered by then.
constexpr size_t PACE = 128;
constexpr size_t AHEAD = 8192;  // bytes

template <class T, size_t rows = 4> size_t rows_ahead(const Tile& t) {
    const size_t bytes = rows * t.width * sizeof(T);
    return rows * ((AHEAD + bytes - 1) / bytes);
}
template <class T, size_t rows = 4>
ALWAYS_INLINE void prefetch_rows(const Tile& t, const Source& s, size_t row, size_t first, size_t n) {
    if (!s.at || row + rows > t.rows) return;
    if (s.row == ptrdiff_t(t.width)) return prefetch_numbers(from<T>(s, row, 0) + rows * first, rows * n);
    for (size_t k = 0; k < rows; k++) prefetch_numbers(from<T>(s, row + k, 0) + first, n);
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
        for (size_t c = 0; c < t.channels; c++) {
            const bool last = c + 1 == t.channels;
            const size_t next = last ? r + 1 : r;  // after the last run there is none to ask for
            sum_lanes(at(r, c), next < t.rows ? at(next, last ? 0 : c + 1) : at(r, c), t.width, t.sum + c * LANES,
                      t.sum_product + c * LANES);
        }
}

// Walks the tile: lanes go run by run, columns some rows at a time. `at(row, k)` is the Each of channel or column k on.
template <class T, bool columns, bool extra, class At> inline void reduce(const Tile& t, const At& at) {
    using Term = typename decltype(at(0, 0))::Term;
    if constexpr (columns) reduce_columns<T, extra>(t, at, std::make_index_sequence<together<Term>>());
    else reduce_lanes(t, at);
}

// ------------------------------------------------------------------------------------------------- maps

// The numbers of a chunk, rounded to their place: an own loop, which becomes vector code for 16-bit numbers too.
template <class T> inline void round_to(T* RESTRICT to, const A<T>* RESTRICT from, size_t n) {
    for (size_t i = 0; i < n; i++) store(to[i], from[i]);
}

// Where a chunk's results go: straight to their place, or through a buffer, where they are to be rounded or flushed.
template <class T> struct Results {
    static constexpr bool rounded = sizeof(T) < sizeof(A<T>);
    bool staged, stream;
    alignas(64) A<T> buffer[CHUNK];
    alignas(64) T narrow[rounded ? CHUNK : 1];

    explicit Results(const Tile& t) : staged(t.staged), stream(t.stream) {}
    A<T>* of(T* place, size_t first) {
        if constexpr (!rounded) {
            if (!staged) return place;
        }
        return buffer + first;
    }
    // Called for each row of a chunk with what `of` gave.
    void finish(const A<T>* values, T* place, size_t n) {
        const void* finished = values;
        if (rounded) {
            round_to(staged ? narrow : place, values, n);
            finished = narrow;
        }
        if (staged) flush(finished, place, n * sizeof(T), stream);
    }
};

// A map is an `Each` with  void operator()(i, &out, &dresidual). Four rows of columns share the loads of their terms.
template <class V, bool second, class Each> inline void map_row(const Each& each, size_t n, V* RESTRICT out, V* RESTRICT also) {
    IVDEP  // RESTRICT in the members of `each` is not believed, and two results in one loop are not vector code without it
    for (size_t i = 0; i < n; i++) {
        V dresidual;
        each(i, out[i], dresidual);
        if (second) also[i] = dresidual;
    }
}
template <class V, bool second, class Each>
inline void map_four_rows(const Each& a, const Each& b, const Each& c, const Each& d, size_t n, V* const* outs,
                          V* const* alsos) {
    V *RESTRICT o0 = outs[0], *RESTRICT o1 = outs[1], *RESTRICT o2 = outs[2], *RESTRICT o3 = outs[3];
    V *RESTRICT p0 = alsos[0], *RESTRICT p1 = alsos[1], *RESTRICT p2 = alsos[2], *RESTRICT p3 = alsos[3];
    IVDEP
    for (size_t i = 0; i < n; i++) {
        V y0, y1, y2, y3, r0, r1, r2, r3;
        a(i, y0, r0);
        b(i, y1, r1);
        c(i, y2, r2);
        d(i, y3, r3);
        o0[i] = y0, o1[i] = y1, o2[i] = y2, o3[i] = y3;
        if (second) p0[i] = r0, p1[i] = r1, p2[i] = r2, p3[i] = r3;
    }
}

// A result that is to be cached has its lines brought there first: asked for as early as the numbers it is made from.
inline Source as_source(const Target& t) { return {t.at, t.row, t.channel}; }

// Asks for the same part of the run after this one, or of a row `ahead`.
template <class T, bool columns>
ALWAYS_INLINE void prefetch_next(const Tile& t, const Source& s, size_t ahead, size_t r, size_t c, size_t first, size_t n) {
    const bool last = c + 1 == t.channels;
    const size_t row = r + (columns ? ahead : last);
    if (s.at && row < t.rows) prefetch_numbers(from<T>(s, row, last ? 0 : c + 1) + first, n);
}

// The map of a run asks for the next run; but of the array that comes first in a reduction, for the block that will be
// reduced next: this one's numbers were read a moment ago, and memory has time to read while results are written.
template <class T, bool columns>
ALWAYS_INLINE void prefetch_sources(const Tile& t, size_t ahead, size_t r, size_t c, size_t first, size_t n) {
    const Source& reduced_first = t.dy.at ? t.dy : t.x;
    if (!columns && t.following) prefetch_numbers(from<T>(reduced_first, r, c + t.following) + first, n);
    else prefetch_next<T, columns>(t, reduced_first, ahead, r, c, first, n);
    if (t.dy.at) prefetch_next<T, columns>(t, t.x, ahead, r, c, first, n);
    prefetch_next<T, columns>(t, t.extra, ahead, r, c, first, n);
}

// A row of a channel, or of columns, in chunks.
template <class T, bool columns, bool second, class At>
inline void map_run(const Tile& t, const At& at, size_t ahead, size_t r, size_t c) {
    Results<T> out(t), also(t);
    T* place = to<T>(t.out, r, c);
    T* place2 = second ? to<T>(t.dresidual, r, c) : nullptr;
    for (size_t i = 0, n; i < t.width; i += n) {
        n = CHUNK - (t.stream ? beyond_line(place + i, 64) / sizeof(T) : 0);  // the next chunk begins a cache line
        n = n < t.width - i ? n : t.width - i;
        prefetch_sources<T, columns>(t, ahead, r, c, i, n);
        if (!t.staged) prefetch_next<T, columns>(t, as_source(t.out), ahead, r, c, i, n);
        A<T>* const values = out.of(place + i, 0);
        A<T>* const values2 = second ? also.of(place2 + i, 0) : nullptr;
        map_row<A<T>, second>(at(r, c, i), n, values, values2);
        out.finish(values, place + i, n);
        if (second) also.finish(values2, place2 + i, n);
    }
}

template <class T, bool second, class At> inline void map_columns(const Tile& t, const At& at, size_t ahead, size_t r) {
    Results<T> out(t), also(t);
    const bool joined = t.width <= PACE && t.out.row == ptrdiff_t(t.width) &&
                        (!second || t.dresidual.row == ptrdiff_t(t.width));
    for (size_t i = 0, n; i < t.width; i += n) {
        n = joined ? t.width : PACE - (t.stream ? beyond_line(to<T>(t.out, r, 0) + i, 64) / sizeof(T) : 0);
        n = n < t.width - i ? n : t.width - i;
        prefetch_rows<T>(t, t.x, r + ahead, i, n);
        prefetch_rows<T>(t, t.dy, r + ahead, i, n);
        prefetch_rows<T>(t, t.extra, r + ahead, i, n);
        if (!t.staged) prefetch_rows<T>(t, as_source(t.out), r + ahead, i, n);
        A<T> *values[4], *values2[4] = {};
        for (size_t k = 0; k < 4; k++) {
            values[k] = out.of(to<T>(t.out, r + k, 0) + i, k * n);
            if (second) values2[k] = also.of(to<T>(t.dresidual, r + k, 0) + i, k * n);
        }
        if constexpr (decltype(at(r, 0, i))::simple)
            map_four_rows<A<T>, second>(at(r, 0, i), at(r + 1, 0, i), at(r + 2, 0, i), at(r + 3, 0, i), n, values, values2);
        else
            for (size_t k = 0; k < 4; k++) map_row<A<T>, second>(at(r + k, 0, i), n, values[k], values2[k]);
        for (size_t k = 0; k < 4; k += joined ? 4 : 1) {
            out.finish(values[k], to<T>(t.out, r + k, 0) + i, joined ? 4 * n : n);
            if (second) also.finish(values2[k], to<T>(t.dresidual, r + k, 0) + i, joined ? 4 * n : n);
        }
    }
}

// Walks the tile. `at(row, channel, first)` is the Each of a run, or of a row of columns, from number `first` on.
template <class T, bool columns, bool second, class At> inline void map(const Tile& t, const At& at) {
    const size_t ahead = columns ? rows_ahead<T>(t) : 0;
    size_t r = 0;
    if constexpr (columns)  // wide rows that are no vector code four at a time are quicker one by one
        if (decltype(at(0, 0, 0))::simple || t.width <= PACE)
            for (; r + 4 <= t.rows; r += 4) map_columns<T, second>(t, at, ahead, r);
    for (; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) map_run<T, columns, second>(t, at, ahead, r, c);
}

}  // namespace
