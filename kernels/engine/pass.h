// One pass over a call: the reduction and the map that run, and the tiles that they get.
//
// A kernel takes a tile directly if the elements of its rows are contiguous and its coefficients fit in float.
// Otherwise the tile takes the fallback (fallback.cpp), which converts it to float64 in small pieces.
#pragma once
#include "engine/call.h"
#include "engine/moments.h"

namespace xhat {

// How a reduction computes its sums.
//   FAST      float32: uncentered sums; 16-bit formats: float partial sums. Followed by an accuracy check (moments.h)
//   CENTERED  shifted sums in double, by the kernel of the dtype
//   DOUBLE    by the float64 kernel, through the fallback
enum class Precision { FAST, CENTERED, DOUBLE };

struct Pass {
    const Call& call;
    bool backward, columns;
    bool contiguous;       // the elements of a row are contiguous in every array
    bool uncentered;       // FAST sums are the uncentered ones of float32
    bool float_partials;   // FAST sums are the float partial sums of a 16-bit format
    bool in_place;         // out aliases x or dy
    bool streams;          // the arrays exceed the caches: results are written by streaming stores
    bool fits_in_cache;    // the arrays fit in the last-level cache: nothing is prefetched
    bool keeps_g;          // gradient sums that take exp store g in dresidual or dx, and the map reads it
    bool is_part;          // the call is a block of channels of a larger one
    bool separates_pre;    // the fallback evaluates pre by itself, for kernels that read pre
    std::size_t inputs;    // arrays that are read

    // `bytes`: the size of x in the whole call, of which `call` may be a part.
    Pass(const Call& call, bool backward, bool columns, std::size_t bytes);

    // A tile that starts at an outer row, a channel, and a place along the inner axis (lanes) or along the row
    // (columns).
    Tile tile(std::size_t row, std::size_t channel, std::size_t place, std::size_t rows, std::size_t channels,
              std::size_t width) const;

    void run_reduce(Tile t, Precision precision) const {
        t.out = keeps_g ? g_target(t) : Target{};
        t.dresidual.at = nullptr;
        if (!backward) t.saved.at = nullptr;  // moments read no residual
        run(t, precision == Precision::FAST ? fast_reduce_ : reduce_, double_reduce_, precision == Precision::DOUBLE);
    }
    void run_map(Tile t, bool in_double) const {
        if (keeps_g) {
            const Target g = g_target(t);
            t.dy = {g.at, g.row, g.channel};
            t.via_buffer |= g.at == t.out.at;
            t.saved.at = t.dresidual.at = nullptr;
        }
        run(t, map_, double_map_, in_double);
    }

    bool has_fast_sums() const { return uncentered || float_partials; }
    // Whether fast gradient sums can be accurate for a channel. (Float partial sums are only checked afterwards.)
    bool may_be_accurate(double mu, double var) const { return !uncentered || near_zero(mu, var); }
    // Whether the fast sums of a piece are accurate.
    bool is_accurate(const Sums& s, double m, double var, double shift) const {
        if (uncentered) return backward || s.accurate_uncentered_moments(m);
        return backward ? s.accurate_gradients(m, var) : s.accurate_moments(m, shift);
    }
    // Whether centered moments may cancel. Those of a narrower dtype keep its digits: double has 29 bits to spare.
    bool may_cancel() const { return !backward && call.dtype == FLOAT64; }
    // The precision of the second attempt. For 16-bit formats FAST and CENTERED are the same kernel.
    Precision more_precise() const { return float_partials ? Precision::DOUBLE : Precision::CENTERED; }

    // Whether the kernel that runs takes its coefficients as doubles.
    bool coefficients_in_double(bool in_double) const { return in_double || !contiguous || call.dtype == FLOAT64; }

    // The shift of a piece's moments: its heaviest element or, for float partial sums, the mean of up to 16 elements,
    // since a single element may be far from the mean, and then most of the squares cancel. `first` and `last` count
    // along (outer, inner).
    double shift_of(std::size_t channel, std::size_t first, std::size_t last, std::size_t heaviest) const;
    // The mean of some elements as a shift: rounded to float, and 0 only if all elements are 0. `any`: a nonzero
    // element.
    static double shift_from_mean(double mean, double any);
    // The first element of every channel in an outer row.
    void first_elements(std::size_t row, double* to) const;

  private:
    Kernel fast_reduce_, reduce_, map_, double_reduce_, double_map_;

    void choose_kernels();
    static Target g_target(const Tile& t) { return t.dresidual.at ? t.dresidual : t.out; }
    void run(const Tile& tile, Kernel kernel, Kernel double_kernel, bool in_double) const {
        if (in_double || !contiguous) run_fallback(tile, double_kernel);
        else kernel(tile);
    }
    void run_fallback(const Tile& tile, Kernel double_kernel) const;  // fallback.cpp
    void before_activation(Tile chunk, double* pre) const;            // fallback.cpp
    // The stride along a row: of the inner axis, or of channels if these are the columns.
    std::ptrdiff_t row_stride(const Array& a) const { return columns && call.inner == 1 ? a.channel : a.inner; }
};

void run_lanes(const Pass& pass, int threads);    // lanes.cpp
void run_columns(const Pass& pass, int threads);  // columns.cpp

}  // namespace xhat
