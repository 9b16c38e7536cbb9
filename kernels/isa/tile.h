// Addresses within a tile, and prefetching of what is read next. sums.h, uncentered_sums.h and maps.h share it.
//
// Hardware prefetchers follow a few sequential streams. They fail in two places: in columns, where four rows are read
// side by side, and in lanes, where a channel's run ends and the next one begins a stride away. There the kernels
// prefetch themselves, a line for each line that they read, so that requests never come in bursts: in columns the
// rows that are read PREFETCH_DISTANCE bytes later, in lanes the run of the same channel in the next row.
//
// Anonymous namespace: see number.h.
#pragma once
#include "isa/memory.h"
#include "isa/number.h"
#include "isa/table.h"

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
inline Source as_source(const Target& t) { return {t.at, t.row, t.channel}; }

// The start of channel k's run in a row (lanes), or the element of column k.
template <class T, bool columns> const T* element(const Source& s, size_t row, size_t k) {
    return columns ? from<T>(s, row, 0) + k : from<T>(s, row, k);
}

inline const double* weights(const Tile& t, size_t row) { return t.weights + ptrdiff_t(row) * t.weights_row; }

// std::min would be a weak symbol, see number.h.
inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

ALWAYS_INLINE bool has_next(const Tile& t, size_t row, size_t distance = 1) { return row + distance < t.rows; }

// The prefetch distance in rows: a multiple of `rows`, which are read together.
template <class T, size_t rows = 4> size_t rows_ahead(const Tile& t) {
    const size_t bytes = rows * t.width * sizeof(T);
    return rows * ((PREFETCH_DISTANCE + bytes - 1) / bytes);
}
// Columns: prefetches columns [first, first + n) of `rows` rows. If rows are adjacent in memory, as many elements in
// the order of memory instead.
template <class T, size_t rows = 4>
ALWAYS_INLINE void prefetch_rows(const Tile& t, const Source& s, size_t row, size_t first, size_t n) {
    if (t.fits_in_cache || !s.at || row + rows > t.rows) return;
    if (s.row == ptrdiff_t(t.width)) return prefetch_elements(from<T>(s, row, 0) + rows * first, rows * n);
    for (size_t k = 0; k < rows; k++) prefetch_elements(from<T>(s, row + k, 0) + first, n);
}
// Lanes: prefetches elements [first, first + n) of channel c in the row `distance` rows after `row`.
template <class T>
ALWAYS_INLINE void prefetch_run(const Tile& t, const Source& s, size_t distance, size_t row, size_t c, size_t first,
                                size_t n) {
    if (t.fits_in_cache || !s.at || !has_next(t, row, distance)) return;
    prefetch_elements(from<T>(s, row + distance, c) + first, n);
}

}  // namespace
