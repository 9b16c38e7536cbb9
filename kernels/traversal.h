// What the walks over a tile share: where a run lies, and what is asked for while another one is walked. Sums are in sums.h
// and raw.h, maps in maps.h.
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

ALWAYS_INLINE bool has_next(const Tile& t, size_t row, size_t ahead = 1) { return row + ahead < t.rows; }

// Rows read side by side are no stream to the processor's own prefetcher: it is told what comes next, whole rows
// in the order of memory, at the pace of the columns, and so far ahead that memory has answered by then.
constexpr size_t PACE = 128;
// Where something is asked for, so few lines at once that they find room beside those that are read.
inline size_t pace_of(const Tile& t, size_t pace) { return t.near ? PACE : pace; }
constexpr size_t AHEAD = 8192;  // bytes

template <class T, size_t rows = 4> size_t rows_ahead(const Tile& t) {
    const size_t bytes = rows * t.width * sizeof(T);
    return rows * ((AHEAD + bytes - 1) / bytes);
}
template <class T, size_t rows = 4>
ALWAYS_INLINE void prefetch_rows(const Tile& t, const Source& s, size_t row, size_t first, size_t n) {
    if (t.near || !s.at || row + rows > t.rows) return;
    if (s.row == ptrdiff_t(t.width)) return prefetch_numbers(from<T>(s, row, 0) + rows * first, rows * n);
    for (size_t k = 0; k < rows; k++) prefetch_numbers(from<T>(s, row + k, 0) + first, n);
}
// While a run of lanes is walked, the same channel's in a row `ahead` is asked for.
template <class T>
ALWAYS_INLINE void prefetch_next(const Tile& t, const Source& s, size_t ahead, size_t r, size_t c, size_t first, size_t n) {
    if (!t.near && s.at && has_next(t, r, ahead)) prefetch_numbers(from<T>(s, r + ahead, c) + first, n);
}

}  // namespace
