// How a tile is walked: reductions in fixed lanes or columns, maps in chunks. No formula lives here.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "kernels.h"
#include "memory.h"
#include "number.h"

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

// A reduction is an `Each` with  void operator()(i, l, &u, &v): the two summands of number i, where l is its
// lane or column. Four rows of lanes, or of columns, are added before they meet the running sums. `next` is the
// run after this one, which is asked for meanwhile.
template <class Each>
inline void sum_lanes(const Each& each, const Each& next, size_t width, double* RESTRICT sum,
                      double* RESTRICT product) {
    double s[LANES], q[LANES];
    for (size_t l = 0; l < LANES; l++) { s[l] = sum[l]; q[l] = product[l]; }
    size_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        next.prefetch_from(i);
        for (size_t l = 0; l < LANES; l++) {
            double u0, u1, u2, u3, v0, v1, v2, v3;
            each(i + l, l, u0, v0);
            each(i + l + LANES, l, u1, v1);
            each(i + l + 2 * LANES, l, u2, v2);
            each(i + l + 3 * LANES, l, u3, v3);
            s[l] += (u0 + u1) + (u2 + u3);
            q[l] += (v0 + v1) + (v2 + v3);
        }
    }
    for (; i + LANES <= width; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            double u, v;
            each(i + l, l, u, v);
            s[l] += u;
            q[l] += v;
        }
    for (size_t l = 0; i < width; i++, l++) {
        double u, v;
        each(i, l, u, v);
        s[l] += u;
        q[l] += v;
    }
    for (size_t l = 0; l < LANES; l++) { sum[l] = s[l]; product[l] = q[l]; }
}

template <class Each>
inline void sum_four_rows(const Each& a, const Each& b, const Each& c, const Each& d, size_t width,
                          double* RESTRICT sum, double* RESTRICT product) {
    for (size_t l = 0; l < width; l++) {
        double u0, u1, u2, u3, v0, v1, v2, v3;
        a(l, l, u0, v0);
        b(l, l, u1, v1);
        c(l, l, u2, v2);
        d(l, l, u3, v3);
        sum[l] += (u0 + u1) + (u2 + u3);
        product[l] += (v0 + v1) + (v2 + v3);
    }
}
template <class Each>
inline void sum_row(const Each& each, size_t width, double* RESTRICT sum, double* RESTRICT product) {
    for (size_t l = 0; l < width; l++) {
        double u, v;
        each(l, l, u, v);
        sum[l] += u;
        product[l] += v;
    }
}

// Four rows read side by side are no stream to the processor's own prefetcher: it is told what comes next, whole rows
// in the order of memory, at the pace of the columns, and so far ahead that memory has answered by then.
constexpr size_t PACE = 128;
constexpr size_t AHEAD = 8192;  // bytes

template <class T> size_t rows_ahead(const Tile& t) {
    const size_t four = 4 * t.width * sizeof(T);
    return 4 * ((AHEAD + four - 1) / four);
}
template <class T> ALWAYS_INLINE void prefetch_rows(const Tile& t, const Source& s, size_t row, size_t first, size_t n) {
    if (!s.at || row + 4 > t.rows) return;
    if (s.row == ptrdiff_t(t.width)) return prefetch_numbers(from<T>(s, row, 0) + 4 * first, 4 * n);
    for (size_t k = 0; k < 4; k++) prefetch_numbers(from<T>(s, row + k, 0) + first, n);
}

// Walks the tile: lanes go run by run, columns four rows at a time. `at(row, k)` is the Each of channel or column k on.
template <class T, bool columns, bool extra, class At> inline void reduce(const Tile& t, const At& at) {
    if (columns) {
        const size_t ahead = rows_ahead<T>(t);
        size_t r = 0;
        for (; r + 4 <= t.rows; r += 4)
            for (size_t i = 0; i < t.width; i += PACE) {
                const size_t n = t.width - i < PACE ? t.width - i : PACE;
                prefetch_rows<T>(t, t.x, r + ahead, i, n);
                prefetch_rows<T>(t, t.dy, r + ahead, i, n);
                if (extra) prefetch_rows<T>(t, t.extra, r + ahead, i, n);
                sum_four_rows(at(r, i), at(r + 1, i), at(r + 2, i), at(r + 3, i), n, t.sum + i, t.sum_product + i);
            }
        for (; r < t.rows; r++) sum_row(at(r, 0), t.width, t.sum, t.sum_product);
    } else {
        for (size_t r = 0; r < t.rows; r++)
            for (size_t c = 0; c < t.channels; c++) {
                const bool last = c + 1 == t.channels;
                const size_t next = last ? r + 1 : r;  // after the last run there is none to ask for
                sum_lanes(at(r, c), next < t.rows ? at(next, last ? 0 : c + 1) : at(r, c), t.width, t.sum + c * LANES,
                          t.sum_product + c * LANES);
            }
    }
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
