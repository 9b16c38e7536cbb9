// The loops of the elementwise maps, in lanes and in columns. No equation is here.
//
// A map reads its inputs once and writes one or two results. Results go to their destination directly, or through a
// buffer that stays in L1, if they are rounded to 16 bits, if they may overwrite inputs that are still needed, or if
// they are written by streaming stores. A streaming store pays only if a whole cache line is written at once, so:
//   - chunks end where lines of the result end, and adjacent runs share a buffer, so that no line is cut between them;
//   - vectors of results begin where lines begin, since a store across two lines costs as much as two stores;
//   - in columns, four rows are mapped side by side, so that the coefficients of a column are loaded once for them.
//
// A map is given by a functor `Element`, with
//   static constexpr bool simple                  cheap enough to compute an element twice, and four rows at once
//   void operator()(i, V& out, V& dresidual)      the results of element i
//
// Anonymous namespace: see number.h.
#pragma once
#include "isa/tile.h"

namespace {

// Rounds a chunk to its format. In a loop of its own, which is vectorized for the 16-bit formats too.
template <class T> inline void round_to(T* RESTRICT to, const A<T>* RESTRICT from, size_t n) {
    for (size_t i = 0; i < n; i++) store(to[i], from[i]);
}

// --------------------------------------------------------------------------------------- where results are written

// The buffer of a block of columns of four rows.
template <class T> struct RowsBuffer {
    static constexpr bool rounds = sizeof(T) < sizeof(A<T>);
    bool via_buffer, stream;
    alignas(CACHE_LINE) A<T> buffer[CHUNK];
    alignas(CACHE_LINE) T rounded[rounds ? CHUNK : 1];

    explicit RowsBuffer(const Tile& t) : via_buffer(t.via_buffer), stream(t.stream) {}
    // Where results for `destination` are computed: there, or in the buffer from element `first` on.
    A<T>* place(T* destination, size_t first) {
        if constexpr (!rounds) {
            if (!via_buffer) return destination;
        }
        return buffer + first;
    }
    // Moves n results from `values`, which `place` returned, to their destination.
    void finish(const A<T>* values, T* destination, size_t n) {
        const void* finished = values;
        if (rounds) {
            round_to(via_buffer ? rounded : destination, values, n);
            finished = rounded;
        }
        if (via_buffer) flush(finished, destination, n * sizeof(T), stream);
    }
};

// The buffer of runs, of which each may begin where the last one ended. Elements have the same offset from the start
// of a cache line in the buffer as at their destination, so that whole lines are copied to whole lines.
template <class T> class RunBuffer {
  public:
    explicit RunBuffer(const Tile& t) : via_buffer(t.via_buffer), stream(t.stream) {}
    // How many results to compute at a time: up to the end of a line first, then whole chunks.
    size_t chunk_at(const T* to) const {
        const size_t past = stream ? bytes_past_line(to) / sizeof(T) : 0;
        return past ? CACHE_LINE / sizeof(T) - past : CHUNK;
    }
    // Where results for `to` are computed. Then call `add`; after the last run, `finish`.
    A<T>* place(T* to) {
        if (via_buffer && to != destination + (last - first)) {
            flush_to(last);
            destination = to;
            first = last = stream ? bytes_past_line(to) / sizeof(T) : 0;
        }
        target = via_buffer ? buffer + last : to;
        if constexpr (rounds) return unrounded;
        else return target;
    }
    void add(size_t n) {
        if constexpr (rounds) round_to(target, unrounded, n);
        if (!via_buffer) return;
        last += n;
        if (last < CHUNK) return;
        const size_t whole = stream ? last - bytes_past_line(destination + (last - first)) / sizeof(T) : last;
        const size_t rest = last - whole;
        flush_to(whole);
        std::memmove(buffer, buffer + whole, rest * sizeof(T));
        first = 0;
        last = rest;
    }
    void finish() { flush_to(last); }

  private:
    static constexpr bool rounds = sizeof(T) < sizeof(A<T>);
    bool via_buffer, stream;
    T *destination = nullptr, *target = nullptr;
    size_t first = 0, last = 0;  // the filled part of the buffer; `first` belongs to `destination`
    alignas(CACHE_LINE) A<T> unrounded[rounds ? CHUNK : 1];
    alignas(CACHE_LINE) T buffer[2 * CHUNK + CACHE_LINE];

    void flush_to(size_t end) {
        if (end > first) flush(buffer + first, destination, (end - first) * sizeof(T), stream);
        destination += end - first;
        first = end;
    }
};

// ------------------------------------------------------------------------------------------------------- loops

// Calls some(first, last) for parts of [0, n), such that all but the first begin where a cache line of `out` begins.
// The first and the last part overlap with the others: computing some elements twice is faster than one by one.
template <class V, class Some> ALWAYS_INLINE void in_lines(const V* out, size_t n, const Some& some) {
    if (n < LANES) return some(0, n);
    some(0, LANES);
    size_t i = (CACHE_LINE - bytes_past_line(out)) / sizeof(V);
    for (; i + LANES <= n; i += LANES) some(i, i + LANES);
    if (i < n) some(n - LANES, n);
}

template <class V, bool second, class Element>
inline void map_row(const Element& element, size_t n, V* RESTRICT out, V* RESTRICT out2) {
    const auto some = [&](size_t first, size_t last) INLINE_LAMBDA {
        IVDEP  // GCC ignores RESTRICT on members of `element`; a loop with two outputs is not vectorized without this
        for (size_t i = first; i < last; i++) {
            V dresidual;
            element(i, out[i], dresidual);
            if (second) out2[i] = dresidual;
        }
    };
    if (Element::simple) in_lines(out, n, some);
    else some(0, n);
}
template <class V, bool second, bool to_buffer, class Element>
inline void map_four_rows(const Element& a, const Element& b, const Element& c, const Element& d, size_t n,
                          V* const* outs, V* const* outs2) {
    V *RESTRICT o0 = outs[0], *RESTRICT o1 = outs[1], *RESTRICT o2 = outs[2], *RESTRICT o3 = outs[3];
    V *RESTRICT p0 = outs2[0], *RESTRICT p1 = outs2[1], *RESTRICT p2 = outs2[2], *RESTRICT p3 = outs2[3];
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

// One run (lanes) or one row of columns, in chunks.
template <class T, bool second, class At>
inline void map_run(const Tile& t, const At& at, size_t ahead, size_t r, size_t c, RunBuffer<T>& out,
                    RunBuffer<T>& out2) {
    T* destination = to<T>(t.out, r, c);
    T* destination2 = second ? to<T>(t.dresidual, r, c) : nullptr;
    for (size_t i = 0, n; i < t.width; i += n) {
        n = least(out.chunk_at(destination + i), t.width - i);
        if (t.prefetch_next_block)
            prefetch_elements(from<T>(t.dy.at ? t.dy : t.x, r, c + t.prefetch_next_block) + i, n);
        if (!t.input_is_hot) {
            prefetch_run<T>(t, t.x, ahead, r, c, i, n);
            prefetch_run<T>(t, t.dy, ahead, r, c, i, n);
        }
        if (!t.input_is_hot || !t.dy.at) prefetch_run<T>(t, t.saved, ahead, r, c, i, n);  // the sums read no residual
        if (!t.via_buffer) prefetch_run<T>(t, as_source(t.out), ahead, r, c, i, n);  // a store reads its line first
        A<T>* const values = out.place(destination + i);
        A<T>* const values2 = second ? out2.place(destination2 + i) : nullptr;
        map_row<A<T>, second>(at(r, c, i), n, values, values2);
        out.add(n);
        if (second) out2.add(n);
    }
}

// Four rows of columns, in blocks.
template <class T, bool second, class At> inline void map_columns(const Tile& t, const At& at, size_t ahead, size_t r) {
    RowsBuffer<T> out(t), out2(t);
    // Narrow rows that are adjacent in memory are flushed as one.
    const bool adjacent = t.width <= PREFETCH_BLOCK && t.out.row == ptrdiff_t(t.width) &&
                          (!second || t.dresidual.row == ptrdiff_t(t.width));
    const size_t block = t.fits_in_cache || !t.dy.at ? PREFETCH_BLOCK : PREFETCH_BLOCK_OF_TWO;
    for (size_t i = 0, n; i < t.width; i += n) {
        n = adjacent ? t.width : block - bytes_past_line(to<T>(t.out, r, 0) + i) / sizeof(T);
        n = least(n, t.width - i);
        prefetch_rows<T>(t, t.x, r + ahead, i, n);
        prefetch_rows<T>(t, t.dy, r + ahead, i, n);
        prefetch_rows<T>(t, t.saved, r + ahead, i, n);
        if (!t.via_buffer) prefetch_rows<T>(t, as_source(t.out), r + ahead, i, n);  // a store reads its line first
        A<T> *values[4], *values2[4] = {};
        for (size_t k = 0; k < 4; k++) {
            values[k] = out.place(to<T>(t.out, r + k, 0) + i, k * n);
            if (second) values2[k] = out2.place(to<T>(t.dresidual, r + k, 0) + i, k * n);
        }
        map_four_rows<A<T>, second, RowsBuffer<T>::rounds>(at(r, 0, i), at(r + 1, 0, i), at(r + 2, 0, i),
                                                           at(r + 3, 0, i), n, values, values2);
        for (size_t k = 0; k < 4; k += adjacent ? 4 : 1) {
            out.finish(values[k], to<T>(t.out, r + k, 0) + i, adjacent ? 4 * n : n);
            if (second) out2.finish(values2[k], to<T>(t.dresidual, r + k, 0) + i, adjacent ? 4 * n : n);
        }
    }
}

// Maps a tile. at(row, channel, first) gives the Element of a run, or of a row of columns, from element `first` on.
// With `second` there are two results.
template <class T, bool columns, bool second, class At> inline void map(const Tile& t, const At& at) {
    const size_t ahead = columns ? rows_ahead<T>(t) : 1;
    size_t r = 0;
    if constexpr (columns && decltype(at(0, 0, 0))::simple)
        for (; r + 4 <= t.rows; r += 4) map_columns<T, second>(t, at, ahead, r);
    RunBuffer<T> out(t), out2(t);
    for (; r < t.rows; r++)
        for (size_t c = 0; c < t.channels; c++) map_run<T, second>(t, at, ahead, r, c, out, out2);
    out.finish();
    out2.finish();
}

}  // namespace
