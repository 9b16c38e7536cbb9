// One pass over a batch: which two kernels run, what shape of tile they get, and the way through float64
// for what a kernel can't take as it is: numbers that are not neighbours, and factors beyond float's range.
#pragma once
#include "batch.h"
#include "statistics.h"

namespace xhat {

constexpr std::size_t WORTH_A_TEAM = 32768;  // numbers; below, waking threads costs more than they save
constexpr std::size_t STREAM_FROM = std::size_t(32) << 20;  // bytes of all arrays of a pass, past which none stays cached

struct Pass {
    const Batch& b;
    bool backward, columns;
    Kernel reduce, map, wide_reduce, wide_map;
    bool neighbours;  // the numbers of a row are neighbours in memory, in every array
    bool brief;       // `reduce` adds in float32 first: its sums are to be asked whether they are sure
    bool in_place, large;
    bool part;        // of a larger batch

    // `bytes`: of the whole result, of which the batch may be a part.
    Pass(const Batch& batch, bool is_backward, bool by_columns, std::size_t bytes);

    // A tile at outer row `row`, channel `channel`, place `place` along the inner axis.
    Tile tile(std::size_t row, std::size_t channel, std::size_t place, std::size_t rows, std::size_t channels,
              std::size_t width) const;
    void run_reduce(Tile t, bool wide) const {
        t.out.at = t.dresidual.at = nullptr;  // a reduction has no results to scatter
        run(t, reduce, wide_reduce, wide);
    }
    void run_map(const Tile& t, bool wide) const { run(t, map, wide_map, wide); }
    // Arithmetic type of the terms that a kernel run this way reads.
    bool terms_in_double(bool wide) const { return wide || !neighbours || b.dtype == FLOAT64; }

    // What moments subtract from a channel's numbers [first, last), counted along (outer, inner): the one at `heaviest`,
    // or where sums are brief the mean of a few, so that not much of the squares cancels whatever lies first.
    double origin(std::size_t channel, std::size_t first, std::size_t last, std::size_t heaviest) const;
    // The mean of some numbers as an origin: of float32, and zero only if they all are.
    static double origin_from(double mean, double any);
    // The number at place `index` of a channel, counted likewise.
    double value(std::size_t channel, std::size_t index) const;
    // The first number of every channel in outer row `row`.
    void values(std::size_t row, double* to) const;

  private:
    void run(const Tile& tile, Kernel kernel, Kernel wide_kernel, bool wide) const {
        if (wide || !neighbours) run_widened(tile, wide_kernel);
        else kernel(tile);
    }
    void run_widened(const Tile& tile, Kernel kernel) const;
    std::ptrdiff_t step(const Array& a) const { return columns && b.inner == 1 ? a.channel : a.inner; }
};

void run_lanes(const Pass& pass, int threads);    // lanes.cpp
void run_columns(const Pass& pass, int threads);  // columns.cpp

}  // namespace xhat
