// Maps over a tile, in chunks: results in their place, in the caches or past them. No formula lives here.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "traversal.h"

namespace {

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

// The same for runs, of which the next one may begin where the last one ended. The buffer lies in cache lines as its place
// does, so that whole lines are written from whole lines.
template <class T> class Written {
  public:
    explicit Written(const Tile& t) : staged(t.staged), stream(t.stream) {}
    // How many results are made at a time: up to the end of a line, or a chunk.
    size_t few(const T* to) const {
        const size_t used = stream ? beyond_line(to, 64) / sizeof(T) : 0;
        return used ? 64 / sizeof(T) - used : CHUNK;
    }
    // Where those for `to` are made; then `add` them, and `finish` in the end.
    A<T>* at(T* to) {
        if (staged && to != place + (last - first)) {
            flush_to(last);
            place = to;
            first = last = stream ? beyond_line(to, 64) / sizeof(T) : 0;
        }
        target = staged ? buffer + last : to;
        if constexpr (rounded) return wide;
        else return target;
    }
    void add(size_t n) {
        if constexpr (rounded) round_to(target, wide, n);
        if (!staged || (last += n) < CHUNK) return;
        const size_t whole = stream ? last - beyond_line(place + (last - first), 64) / sizeof(T) : last, rest = last - whole;
        flush_to(whole);
        std::memmove(buffer, buffer + whole, rest * sizeof(T));
        first = 0;
        last = rest;
    }

    void finish() { flush_to(last); }

  private:
    static constexpr bool rounded = sizeof(T) < sizeof(A<T>);
    bool staged, stream;
    T *place = nullptr, *target = nullptr;
    size_t first = 0, last = 0;  // in the buffer, for `place` on
    alignas(64) A<T> wide[rounded ? CHUNK : 1];
    alignas(64) T buffer[2 * CHUNK + 64];

    void flush_to(size_t end) {
        if (end > first) flush(buffer + first, place, (end - first) * sizeof(T), stream);
        place += end - first;
        first = end;
    }
};

// Vectors that begin where cache lines of a result do.
template <class V, class Some> ALWAYS_INLINE void in_lines(const V* out, size_t n, const Some& some) {
    if (n < LANES) return some(0, n);
    some(0, LANES);
    size_t i = (64 - beyond_line(out, 64)) / sizeof(V);  // from here on whole lines are written
    for (; i + LANES <= n; i += LANES) some(i, i + LANES);
    if (i < n) some(n - LANES, n);  // some of them again, which is quicker than one by one
}

// A map is an `Each` with  void operator()(i, &out, &dresidual). Four rows of columns share the loads of their terms.
template <class V, bool second, class Each> inline void map_row(const Each& each, size_t n, V* RESTRICT out, V* RESTRICT also) {
    const auto some = [&](size_t first, size_t last) INLINE_LAMBDA {
        IVDEP  // RESTRICT in the members of `each` is not believed, and two results in one loop are not vector code without it
        for (size_t i = first; i < last; i++) {
            V dresidual;
            each(i, out[i], dresidual);
            if (second) also[i] = dresidual;
        }
    };
    if (Each::simple) in_lines(out, n, some);
    else some(0, n);
}
template <class V, bool second, bool to_buffer, class Each>
inline void map_four_rows(const Each& a, const Each& b, const Each& c, const Each& d, size_t n, V* const* outs,
                          V* const* alsos) {
    V *RESTRICT o0 = outs[0], *RESTRICT o1 = outs[1], *RESTRICT o2 = outs[2], *RESTRICT o3 = outs[3];
    V *RESTRICT p0 = alsos[0], *RESTRICT p1 = alsos[1], *RESTRICT p2 = alsos[2], *RESTRICT p3 = alsos[3];
    const auto some = [&](size_t first, size_t last) INLINE_LAMBDA {
        IVDEP
        for (size_t i = first; i < last; i++) {
            V y0, y1, y2, y3, r0, r1, r2, r3;
            a(i, y0, r0);
            b(i, y1, r1);
            c(i, y2, r2);
            d(i, y3, r3);
            o0[i] = y0, o1[i] = y1, o2[i] = y2, o3[i] = y3;
            if (second) p0[i] = r0, p1[i] = r1, p2[i] = r2, p3[i] = r3;
        }
    };
    if (to_buffer) some(0, n);
    else in_lines(o0, n, some);
}

// A result that is to be cached has its lines brought there first: asked for as early as the numbers it is made from.
inline Source as_source(const Target& t) { return {t.at, t.row, t.channel}; }

// A row of a channel, or of columns, in chunks.
template <class T, bool second, class At>
inline void map_run(const Tile& t, const At& at, size_t ahead, size_t r, size_t c, Written<T>& out, Written<T>& also) {
    T* place = to<T>(t.out, r, c);
    T* place2 = second ? to<T>(t.dresidual, r, c) : nullptr;
    for (size_t i = 0, n; i < t.width; i += n) {
        n = out.few(place + i);
        n = n < t.width - i ? n : t.width - i;
        if (t.following) prefetch_numbers(from<T>(t.dy.at ? t.dy : t.x, r, c + t.following) + i, n);
        if (!t.cached) {
            prefetch_next<T>(t, t.x, ahead, r, c, i, n);
            prefetch_next<T>(t, t.dy, ahead, r, c, i, n);
        }
        if (!t.cached || !t.dy.at) prefetch_next<T>(t, t.extra, ahead, r, c, i, n);  // no sum has read a residual
        if (!t.staged) prefetch_next<T>(t, as_source(t.out), ahead, r, c, i, n);
        A<T>* const values = out.at(place + i);
        A<T>* const values2 = second ? also.at(place2 + i) : nullptr;
        map_row<A<T>, second>(at(r, c, i), n, values, values2);
        out.add(n);
        if (second) also.add(n);
    }
}

template <class T, bool second, class At> inline void map_columns(const Tile& t, const At& at, size_t ahead, size_t r) {
    Results<T> out(t), also(t);
    const bool joined = t.width <= PACE && t.out.row == ptrdiff_t(t.width) &&
                        (!second || t.dresidual.row == ptrdiff_t(t.width));
    const size_t pace = pace_of(t, t.dy.at ? PACE / 2 : PACE);
    for (size_t i = 0, n; i < t.width; i += n) {
        n = joined ? t.width : pace - beyond_line(to<T>(t.out, r, 0) + i, 64) / sizeof(T);
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
        map_four_rows<A<T>, second, Results<T>::rounded>(at(r, 0, i), at(r + 1, 0, i), at(r + 2, 0, i), at(r + 3, 0, i), n,
                                                         values, values2);
        for (size_t k = 0; k < 4; k += joined ? 4 : 1) {
            out.finish(values[k], to<T>(t.out, r + k, 0) + i, joined ? 4 * n : n);
            if (second) also.finish(values2[k], to<T>(t.dresidual, r + k, 0) + i, joined ? 4 * n : n);
        }
    }
}

// Walks the tile. `at(row, channel, first)` is the Each of a run, or of a row of columns, from number `first` on.
template <class T, bool columns, bool second, class At> inline void map(const Tile& t, const At& at) {
    const size_t ahead = columns ? rows_ahead<T>(t) : 1;
    size_t r = 0;
    if constexpr (columns && decltype(at(0, 0, 0))::simple)
        for (; r + 4 <= t.rows; r += 4) map_columns<T, second>(t, at, ahead, r);
    Written<T> out(t), also(t);
    for (; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) map_run<T, second>(t, at, ahead, r, c, out, also);
    out.finish();
    also.finish();
}

}  // namespace
