// The columns traversal: layouts in which neighbouring elements belong to different channels (NHWC, (N, C)), or in
// which a channel's contiguous runs are short.
//
// The array is a matrix whose columns are channels (or the elements of their short runs). Each row holds every channel,
// so there are two sweeps over memory: all pieces are reduced, the sums are merged, all pieces are mapped.
//
// wide_rows.h cuts the matrix into tiles.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "engine/coefficients.h"
#include "engine/pass.h"
#include "engine/threads.h"
#include "engine/wide_rows.h"

namespace xhat {

namespace {

using std::size_t;

// The running sums: for each piece one shift and two sums per column, and the sums of each channel, added over its
// columns.
struct ColumnSums {
    std::unique_ptr<double[]> shift, sum, product;
    std::unique_ptr<Sums[]> of_channel;
    ColumnSums(const WideRows& rows, size_t channels) {
        const size_t pieces = rows.pieces.size(), columns = pieces * rows.width;
        shift.reset(new double[columns]);
        sum.reset(new double[columns]);
        product.reset(new double[columns]);
        of_channel.reset(new Sums[pieces * channels]);
    }
};

struct Columns {
    const Pass& pass;
    const WideRows& rows;
    const Call& call = pass.call;
    ColumnSums sums;
    CoefficientBuffer coefficients;  // of every column; with a rotation, those of the first columns again at the end
    // Coefficients in double for each thread, where fast gradient sums may turn out inaccurate. Allocated up front:
    // allocating inside the parallel region could throw before a barrier.
    std::vector<CoefficientBuffer> own;
    // Whether a channel's coefficients do not fit in float. Then all columns take the fallback.
    std::atomic<bool> sums_in_double{false}, map_in_double{false};
    bool fast;  // the first precision is FAST

    Columns(const Pass& p, const WideRows& r, size_t threads)
        : pass(p), rows(r), sums(r, p.call.channels),
          coefficients(r.width + r.rotation, r.rotation), fast(p.has_fast_sums()) {
        if (pass.backward)
            for (size_t c = 0; c < call.channels && fast; c++) fast = pass.may_be_accurate(call.mean[c], call.var[c]);
        while (pass.backward && call.reduce && pass.float_partials && own.size() < threads)
            own.emplace_back(rows.width, 0);
    }

    // Sums a piece, then once more if the fast sums of some channels are not accurate.
    void reduce(size_t piece, size_t thread) const {
        const Precision precision = sums_in_double ? Precision::DOUBLE : fast ? Precision::FAST : Precision::CENTERED;
        set_shifts(piece, precision);
        sum_up(piece, precision, coefficients_in(coefficients, sums_in_double), [](size_t) { return true; });
        if (pass.may_cancel()) sum_up_about_means(piece);
        if (precision != Precision::FAST) return;
        const auto inaccurate = [&](size_t c) { return !is_accurate(piece, c); };
        bool any = false;
        for (size_t c = 0; c < call.channels; c++) any |= inaccurate(c);
        if (!any) return;
        if (pass.uncentered) set_shifts_of(piece, inaccurate);
        if (pass.backward) fill(own[thread].of<double>(), 0, call.channels, false);
        const Coefficients in_double = pass.backward ? coefficients_in(own[thread], true) : Coefficients{};
        sum_up(piece, pass.more_precise(), in_double, inaccurate);
    }

    // Merges the pieces of channels [first, last), some at a time, in the order of memory.
    void merge(size_t first, size_t last) const {
        constexpr size_t some = 64;
        for (; first < last; first += some) {
            const size_t count = std::min(some, last - first);
            ChannelTotal totals[some];
            for (size_t p = 0; p < rows.pieces.size(); p++)
                for (size_t k = 0; k < count; k++) {
                    const size_t c = first + k;
                    const double mean = pass.backward ? call.mean[c] : 0;
                    totals[k].add(pass, rows.pieces[p], of_channel(p, c), shift(p, c), mean);
                }
            for (size_t k = 0; k < count; k++) {
                const size_t c = first + k;
                const double var = pass.backward ? call.var[c] : 0;
                (pass.backward ? call.sum_dy : call.mean)[c] = totals[k].first(pass);
                (pass.backward ? call.sum_dy_xhat : call.var)[c] = totals[k].second(pass, c, var);
                if (!pass.backward && call.rest) call.rest[c] = totals[k].moments.rest;
            }
        }
    }

    void map(size_t piece) const {
        rows.tiles(piece, rows.rotation, [&](Tile t, size_t column) {
            t.coefficients = coefficients_in(coefficients, map_in_double, column);
            t.stream = pass.streams;
            t.via_buffer |= t.stream;
            pass.run_map(t, map_in_double);
        });
    }

    // Computes the coefficients of the sums, or (with_sums) of the map. Each thread does its share of the channels, and
    // `in_double` becomes true if one of them does not fit in float.
    void prepare(ThreadTeam team, bool with_sums, std::atomic<bool>& in_double) {
        const size_t first = team.first(call.channels), last = team.last(call.channels);
        if (!pass.coefficients_in_double(false) && !fill(coefficients.of<float>(), first, last, with_sums))
            in_double = true;
        team.barrier();
        if (!pass.coefficients_in_double(in_double)) return;
        fill(coefficients.of<double>(), first, last, with_sums);
        team.barrier();
    }

  private:
    // Of the first column of a channel.
    double& shift(size_t piece, size_t c) const { return sums.shift[piece * rows.width + c * call.inner]; }
    Sums& of_channel(size_t piece, size_t c) const { return sums.of_channel[piece * call.channels + c]; }
    bool is_accurate(size_t piece, size_t c) const {
        const double var = pass.backward ? call.var[c] : 0;
        return pass.is_accurate(of_channel(piece, c), rows.pieces[piece].m, var, shift(piece, c));
    }

    // ---------------------------------------------------------------------------------------------- shifts

    // Uncentered sums have no shift. Gradient sums are shifted by the mean; moments by an element of each channel or,
    // for float partial sums, by the mean of some.
    void set_shifts(size_t piece, Precision precision) const {
        double* const shifts = &sums.shift[piece * rows.width];
        if (pass.uncentered && precision == Precision::FAST) return void(std::fill_n(shifts, rows.width, 0.0));
        if (pass.backward) std::copy_n(call.mean, call.channels, shifts);
        else pass.first_elements(rows.pieces[piece].heaviest, shifts);
        for (size_t c = call.channels; c-- > 0;) shift(piece, c) = shifts[c];  // back to front, as they spread in place
        repeat_shifts(piece);
        if (pass.float_partials && !pass.backward) average_shifts(piece);
    }
    // For moments about zero that are not accurate: an element of each of these channels.
    template <class Inaccurate> void set_shifts_of(size_t piece, const Inaccurate& inaccurate) const {
        double* const elements = &sums.sum[piece * rows.width];  // free, as `of_channel` has the sums
        pass.first_elements(rows.pieces[piece].heaviest, elements);
        for (size_t c = 0; c < call.channels; c++)
            if (inaccurate(c)) shift(piece, c) = elements[c];
        repeat_shifts(piece);
    }
    // The mean of up to 16 wide rows, see Pass::shift_of.
    void average_shifts(size_t piece) const {
        const Piece& p = rows.pieces[piece];
        const size_t count = std::min<size_t>(16, p.last - p.first);
        if (count < 2) return;
        Tile t = rows.tile(p.first, count, rows.width);
        t.x.row *= std::ptrdiff_t((p.last - p.first) / count);
        clear(piece);
        add(piece, t, Coefficients{}, Precision::FAST);
        const double elements = double(count * rows.joined * call.inner);
        for (size_t c = 0; c < call.channels; c++) {
            const double one = shift(piece, c);
            shift(piece, c) = Pass::shift_from_mean(one + column_sums(piece, c).sum / elements, one);
        }
        repeat_shifts(piece);
    }
    // From the first column of each channel to all of its columns.
    void repeat_shifts(size_t piece) const {
        double* const shifts = &sums.shift[piece * rows.width];
        for (size_t c = 0; c < call.channels; c++) std::fill_n(&shift(piece, c), call.inner, shift(piece, c));
        for (size_t k = 1; k < rows.joined; k++) std::copy_n(shifts, rows.row_width, shifts + k * rows.row_width);
    }

    // ------------------------------------------------------------------------------------------------ sums

    void clear(size_t piece) const {
        std::fill_n(&sums.sum[piece * rows.width], rows.width, 0.0);
        std::fill_n(&sums.product[piece * rows.width], rows.width, 0.0);
    }
    void add(size_t piece, Tile t, const Coefficients& of_tile, Precision precision) const {
        t.shift = &sums.shift[piece * rows.width];
        t.sum = &sums.sum[piece * rows.width];
        t.sum_product = &sums.product[piece * rows.width];
        t.coefficients = of_tile;
        pass.run_reduce(t, precision);
    }
    // Sums all columns of a piece, and sets the sums of the channels for which wanted(c) is true.
    template <class Wanted>
    void sum_up(size_t piece, Precision precision, const Coefficients& of_tile, const Wanted& wanted) const {
        clear(piece);
        rows.tiles(piece, 0, [&](const Tile& t, size_t) { add(piece, t, of_tile, precision); });
        for (size_t c = 0; c < call.channels; c++)
            if (wanted(c)) of_channel(piece, c) = column_sums(piece, c);
    }
    // Sums once more the channels whose shift was an outlier: shifted by the mean that was found.
    void sum_up_about_means(size_t piece) const {
        const double m = rows.pieces[piece].m;
        const auto cancels = [&](size_t c) { return of_channel(piece, c).cancels(m); };
        bool any = false;
        for (size_t c = 0; c < call.channels; c++)
            if (cancels(c)) shift(piece, c) += of_channel(piece, c).sum / m, any = true;
        if (!any) return;
        repeat_shifts(piece);
        sum_up(piece, Precision::CENTERED, Coefficients{}, cancels);
    }
    Sums column_sums(size_t piece, size_t c) const {
        const size_t at = piece * rows.width + c * call.inner;
        return {column_sum(&sums.sum[at]), column_sum(&sums.product[at])};
    }
    double column_sum(const double* column) const {
        double s = 0;
        for (size_t k = 0; k < rows.joined; k++)
            for (size_t i = 0; i < call.inner; i++) s += column[k * rows.row_width + i];
        return s;
    }

    // ---------------------------------------------------------------------------------------- coefficients

    ChannelCoefficients coefficients_of(size_t c, bool with_sums) const {
        const double sum_dy = with_sums ? call.sum_dy[c] : 0, sum_dy_xhat = with_sums ? call.sum_dy_xhat[c] : 0;
        return {call, c, call.mean[c], call.var[c], sum_dy, sum_dy_xhat};
    }
    // Sets every column of channels [first, last). Returns whether all of them fit in float.
    template <class A> bool fill(const CoefficientArrays<A>& arrays, size_t first, size_t last, bool with_sums) const {
        bool fit = true;
        for (size_t c = first; c < last; c++) {
            const ChannelCoefficients of_c = coefficients_of(c, with_sums);
            fit &= of_c.fits_float();
            for (size_t k = c * call.inner; k < arrays.count; k += rows.row_width)
                arrays.set(k, std::min(call.inner, arrays.count - k), of_c);
        }
        return fit;
    }
    // What a kernel reads, from a column on.
    Coefficients coefficients_in(const CoefficientBuffer& buffer, bool in_double, size_t column = 0) const {
        if (pass.coefficients_in_double(in_double)) return buffer.of<double>().from(column);
        return buffer.of<float>().from(column);
    }
};

}  // namespace

void run_columns(const Pass& pass, int threads) {
    const Call& call = pass.call;
    const WideRows rows(pass);
    Columns columns(pass, rows, size_t(threads));
    const bool activation = call.activation_grad != NO_ACTIVATION;
    const bool sums_need_coefficients = pass.backward && call.reduce && (activation || pass.float_partials);
    parallel(threads, [&](ThreadTeam team) {
        if (sums_need_coefficients) columns.prepare(team, false, columns.sums_in_double);
        const size_t p0 = team.first(rows.pieces.size()), p1 = team.last(rows.pieces.size());
        if (call.reduce) {
            for (size_t p = p0; p < p1; p++) columns.reduce(p, team.index);
            team.barrier();
            columns.merge(team.first(call.channels), team.last(call.channels));
        }
        if (call.map) {
            columns.prepare(team, pass.backward, columns.map_in_double);
            for (size_t p = p1; p-- > p0;) columns.map(p);  // the last piece is in a cache still
        }
    });
}

}  // namespace xhat
