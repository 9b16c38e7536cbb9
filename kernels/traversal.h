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

// Four rows read side by side are no stream to the processor's own prefetcher: it is told what comes next, the
// following four rows in the order of memory, at the pace of the columns.
constexpr size_t PACE = 128;
template <class T> ALWAYS_INLINE void prefetch_rows(const Tile& t, const Source& s, size_t row, size_t first, size_t n) {
    if (row + 4 > t.rows) return;
    if (s.row == ptrdiff_t(t.width)) return prefetch_numbers(from<T>(s, row, 0) + 4 * first, 4 * n);
    for (size_t k = 0; k < 4; k++) prefetch_numbers(from<T>(s, row + k, 0) + first, n);
}

// Walks the tile: lanes go run by run, columns four rows at a time. `at(row, k)` is the Each of channel or column k on.
template <class T, bool columns, bool gradient, class At> inline void reduce(const Tile& t, const At& at) {
    if (columns) {
        size_t r = 0;
        for (; r + 4 <= t.rows; r += 4)
            for (size_t i = 0; i < t.width; i += PACE) {
                const size_t n = t.width - i < PACE ? t.width - i : PACE;
                prefetch_rows<T>(t, t.x, r + 4, i, n);
                if (gradient) prefetch_rows<T>(t, t.dy, r + 4, i, n);
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

// Runs `chunk(row, channel, first, count, out, dresidual)` over the tile, with the results, in the arithmetic
// type, going to their places; or to a buffer, where they are to be rounded or flushed.
template <class T, bool second, class Chunk> inline void map(const Tile& t, const Chunk& chunk) {
    constexpr bool rounded = sizeof(T) < sizeof(A<T>);
    alignas(64) A<T> buffer[CHUNK], buffer2[second ? CHUNK : 1];
    alignas(64) T narrow[rounded ? CHUNK : 1];
    const auto finish = [&](A<T>* values, T* place, size_t n) {
        const void* chunk_out = values;
        if (rounded) {
            round_to(t.staged ? narrow : place, values, n);
            chunk_out = narrow;
        }
        if (t.staged) flush(chunk_out, place, n * sizeof(T), t.stream);
    };
    for (size_t r = 0; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) {
            T* out = to<T>(t.out, r, c);
            T* dresidual = second ? to<T>(t.dresidual, r, c) : nullptr;
            for (size_t i = 0, n; i < t.width; i += n) {
                n = CHUNK - beyond_line(out + i, 64) / sizeof(T);  // the next chunk begins a cache line
                n = n < t.width - i ? n : t.width - i;
                if constexpr (!rounded) {
                    if (!t.staged) {
                        chunk(r, c, i, n, out + i, second ? dresidual + i : nullptr);
                        continue;
                    }
                }
                chunk(r, c, i, n, buffer, buffer2);
                finish(buffer, out + i, n);
                if (second) finish(buffer2, dresidual + i, n);
            }
        }
}

// Asks for the same part of the run after this one.
template <class T> ALWAYS_INLINE void prefetch_next(const Tile& t, const Source& s, size_t r, size_t c, size_t first,
                                                    size_t n) {
    const bool last = c + 1 == t.channels;
    if (r + last < t.rows) prefetch_numbers(from<T>(s, r + last, last ? 0 : c + 1) + first, n);
}

}  // namespace
