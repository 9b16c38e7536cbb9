// The geometry of the columns traversal: rows of the array joined to wide rows, cut into pieces, and their tiles.
//
// If rows are adjacent in memory, several are joined to one wide row, so that C = 3 fills a register as well as C =
// 64. A map may then also start its rows later ("rotated"), at the first column that begins a cache line of the
// result, so that no line is written in two parts. NHWC (32, 56, 56, 256), (32, 112, 112, 64) forward, Intel: 11.3 ->
// 8.2, 11.2 -> 8.8 ms.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "cache_line.h"
#include "engine/pass.h"
#include "engine/pieces.h"

namespace xhat {

using std::size_t;

struct WideRows {
    const Pass& pass;
    size_t row_width;  // columns of a row of the array: channels * inner
    size_t joined;     // rows of the array in a wide row
    size_t width;      // columns of a wide row
    size_t rows;       // whole wide rows; up to joined - 1 odd rows may be left
    size_t rotation;   // columns by which a map's rows start later, to start where a cache line of the result does
    std::vector<Piece> pieces;  // of wide rows; `heaviest` is a row of the array, and the last piece has the odd rows

    explicit WideRows(const Pass& p) : pass(p) {
        const Call& call = pass.call;
        row_width = call.channels * call.inner;
        const bool adjacent = rows_are_adjacent();
        joined = adjacent ? rows_to_join(call.outer) : 1;
        width = row_width * joined;
        rows = call.outer / joined;
        const bool whole_lines = adjacent && call.map && width % LANES == 0;
        rotation = whole_lines ? bytes_to_line(call.out.at) / SIZE_OF[call.dtype] : 0;
        if (rotation >= width) rotation = 0;  // a wide row of less than a line, of a 16-bit format
        const size_t fewest = pass.is_part || call.size() < PARALLEL_THRESHOLD ? 1 : 4;
        const size_t wanted = std::max(fewest, call.size() / COLUMNS_PIECE_ELEMENTS);
        pieces = cut(rows, std::max<size_t>(1, std::min({COLUMNS_PIECES, rows / COLUMNS_PIECE_ROWS, wanted})));
        for (Piece& piece : pieces) {
            const bool is_last = &piece == &pieces.back();
            const size_t first = piece.first * joined, last = is_last ? call.outer : piece.last * joined;
            piece.heaviest = heaviest(call, first, last);
            piece.m = sum_of_weights(call, first, last) * double(call.inner);
        }
    }

    // `count` wide rows from row `first` and column `column` on.
    Tile tile(size_t first, size_t count, size_t tile_width, size_t column = 0) const {
        Tile t = pass.tile(first * joined, 0, column, count, 1, tile_width);
        const auto k = std::ptrdiff_t(joined);
        t.x.row *= k, t.dy.row *= k, t.saved.row *= k, t.out.row *= k, t.dresidual.row *= k;
        return t;
    }
    // Calls visit(tile, first column) for the rows of a piece. With a rotation of k columns, rows run from column k
    // of a wide row to column k of the next one; the first k columns of the piece, and the rest of its last row, are
    // tiles of their own.
    template <class Visit> void tiles(size_t piece, size_t by, const Visit& visit) const {
        const size_t first = pieces[piece].first, last = pieces[piece].last;
        const bool rotated = by && last > first;
        const size_t whole = last - first - rotated, odd = piece + 1 == pieces.size() ? pass.call.outer % joined : 0;
        if (rotated) visit(tile(first, 1, by), 0);
        if (whole) visit(tile(first, whole, width, by), by);
        if (rotated) visit(tile(last - 1, 1, width - by, by), by);
        if (odd) visit(tile(rows, 1, odd * row_width), 0);
    }

  private:
    bool rows_are_adjacent() const {
        const Call& call = pass.call;
        if (call.weights || !pass.contiguous) return false;
        for (const Array* a : {&call.x, &call.dy, &call.saved, &call.out, &call.dresidual})
            if (a->at && a->outer != std::ptrdiff_t(row_width)) return false;
        return true;
    }
    // Enough rows for ROW_COLUMNS columns, in whole registers of 16 if that takes no more columns.
    size_t rows_to_join(size_t outer) const {
        if (row_width >= ROW_COLUMNS) return 1;
        const size_t whole = 16 / std::gcd(row_width, size_t(16));
        size_t k = (ROW_COLUMNS - 1 + row_width) / row_width;
        if (whole * row_width <= ROW_COLUMNS) k = (k + whole - 1) / whole * whole;
        return std::max<size_t>(1, std::min(k, outer));
    }
};

}  // namespace xhat
