// One pass over a batch: which two kernels run, what shape of tile they get, and the way through float64
// for what a kernel can't take as it is: numbers that are not neighbours, and factors beyond float's range.
#pragma once
#include "batch.h"
#include "statistics.h"

namespace xhat {

constexpr std::size_t WORTH_A_TEAM = 32768;  // numbers; below, waking threads costs more than they save
// Bytes of all arrays of a pass, past which none stays cached, and up to which all of them are.
constexpr std::size_t STREAM_FROM = std::size_t(32) << 20, NEAR = std::size_t(16) << 20;

// How sums are made: quick ones are to be asked whether they are sure; wide ones go through float64's kernel.
enum class Care { QUICK, CAREFUL, WIDE };

struct Pass {
    const Batch& b;
    bool backward, columns;
    Kernel quick_reduce, reduce, map, wide_reduce, wide_map;
    bool neighbours;  // the numbers of a row are neighbours in memory, in every array
    bool raw, brief;  // there are quick sums: of float32, raw.h; of 16 bits, that begin in float32
    std::size_t read;  // arrays
    bool in_place, large, near;
    bool keeps_g;      // the sums behind silu leave g where a result will be, and the map finds it there
    bool part;        // of a larger batch

    // `bytes`: of the whole result, of which the batch may be a part.
    Pass(const Batch& batch, bool is_backward, bool by_columns, std::size_t bytes);

    // A tile at outer row `row`, channel `channel`, place `place` along the inner axis, or in columns along the row.
    Tile tile(std::size_t row, std::size_t channel, std::size_t place, std::size_t rows, std::size_t channels,
              std::size_t width) const;
    bool quick() const { return raw || brief; }
    void run_reduce(Tile t, Care care) const {
        t.out = keeps_g ? place_of_g(t) : Target{};
        t.dresidual.at = nullptr;  // a reduction has no other results to scatter
        if (!backward) t.extra.at = nullptr;  // and moments read no residual
        run(t, care == Care::QUICK ? quick_reduce : reduce, wide_reduce, care == Care::WIDE);
    }
    void run_map(Tile t, bool wide) const {
        if (keeps_g) {
            const Target g = place_of_g(t);
            t.dy = {g.at, g.row, g.channel};
            t.staged |= g.at == t.out.at;
            t.extra.at = t.dresidual.at = nullptr;
        }
        run(t, map, wide_map, wide);
    }
    // What is asked of sums that turn out to be unsure: `reduce`; of 16 bits nothing else is between.
    Care more_care() const { return brief ? Care::WIDE : Care::CAREFUL; }
    // Whether quick sums will do for a channel's gradients; whether those that were made are sure.
    bool raw_will_do(double mu, double var) const { return !raw || near_zero(mu, var); }
    bool sure(const Sums& s, double m, double var, double origin) const {
        if (raw) return backward || s.sure_raw_moments(m);
        return backward ? s.sure_gradients(m, var) : s.sure_moments(m, origin);
    }
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
    static Target place_of_g(const Tile& t) { return t.dresidual.at ? t.dresidual : t.out; }
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
