// Layouts in which neighbours belong to different channels (NHWC, (N, C), (N, L, C)), or to few numbers of each.
//
// The array is a matrix whose columns are channels; where rows follow one another without a gap, several make
// one wide row, so that C = 3 fills a register as well as C = 64 does. The rows are cut into pieces that depend
// on the shape alone; two sweeps over memory, since every row holds every channel.
#include "pass.h"
#include "threads.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <vector>

namespace xhat {

namespace {

using std::size_t;

struct Plan {
    // Wide rows [first, last); the row of the largest weight; the sum of weights.
    struct Piece { size_t first, last, origin; double m; };
    size_t row;      // columns of a row of the array: channels * inner
    size_t together; // rows of the array in a wide row
    size_t width;    // columns of a wide row
    size_t rows;     // whole wide rows
    size_t shift;    // columns that a map's rows begin later, where a cache line of the result begins
    std::vector<Piece> pieces;

    explicit Plan(const Pass& pass) {
        const Batch& b = pass.b;
        row = b.channels * b.inner;
        const bool dense = no_gaps(pass);
        together = dense ? rows_together(b.outer) : 1;
        width = row * together;
        rows = b.outer / together;
        shift = dense && b.map && width % LANES == 0 ? to_line(b.out.at, SIZE_OF[b.dtype]) : 0;
        const size_t few = pass.part || b.size() < WORTH_A_TEAM ? 1 : 4;  // a part is one thread's anyway
        const size_t wanted = std::max(few, b.size() >> 17);
        pieces.resize(std::max<size_t>(1, std::min<size_t>({64, rows / 4, wanted})));
        for (size_t p = 0; p < pieces.size(); p++) {
            const size_t first = rows * p / pieces.size(), last = rows * (p + 1) / pieces.size();
            const size_t end = p + 1 == pieces.size() ? b.outer : last * together;  // the last one has the odd rows
            pieces[p] = {first, last, heaviest(b, first * together, end),
                         sum_of_weights(b, first * together, end) * double(b.inner)};
        }
    }

  private:
    bool no_gaps(const Pass& pass) const {
        if (pass.b.weights || !pass.neighbours) return false;
        for (const Array* a : {&pass.b.x, &pass.b.dy, &pass.b.extra, &pass.b.out, &pass.b.dresidual})
            if (a->at && a->outer != std::ptrdiff_t(row)) return false;
        return true;
    }
    // Enough for 64 columns, in whole registers of 16 where that does not take many more.
    size_t rows_together(size_t outer) const {
        constexpr size_t enough = 64;  // more rows side by side cost more at the memory than they save here
        if (row >= enough) return 1;
        const size_t whole = 16 / std::gcd(row, size_t(16));
        size_t k = (enough - 1 + row) / row;
        if (whole * row <= enough) k = (k + whole - 1) / whole * whole;
        return std::max<size_t>(1, std::min(k, outer));
    }
};

// Running sums of every column for every piece, and what they come to for every channel.
struct ColumnSums {
    std::unique_ptr<double[]> origin, sum, product;
    std::unique_ptr<Sums[]> total;
    ColumnSums(const Plan& plan, size_t channels)
        : origin(new double[plan.pieces.size() * plan.width]), sum(new double[plan.pieces.size() * plan.width]),
          product(new double[plan.pieces.size() * plan.width]), total(new Sums[plan.pieces.size() * channels]) {}
};

struct Walk {
    const Pass& pass;
    const Plan& plan;
    const Batch& b = pass.b;
    ColumnSums sums;
    FactorSpace factors;           // of every column, as far as the last row of a map goes
    std::vector<FactorSpace> own;  // of each of the team, where gradient sums may be unsure; nothing is asked for in their midst
    // Whether some channel's factors are beyond float, which takes the whole half of the pass to double.
    std::atomic<bool> wide_sums{false}, wide_map{false};
    bool quick;  // sums will do at first

    Walk(const Pass& p, const Plan& l, size_t team)
        : pass(p), plan(l), sums(l, p.b.channels), factors(l.width + l.shift, l.shift), quick(p.quick()) {
        if (pass.backward)
            for (size_t c = 0; c < b.channels && quick; c++) quick = pass.raw_will_do(b.mean[c], b.var[c]);
        while (pass.backward && b.reduce && pass.brief && own.size() < team) own.emplace_back(plan.width, 0);
    }

    // The rows of a piece as tiles, and the column that each of them begins with. `shift`: of the whole rows.
    template <class Visit> void tiles(size_t piece, size_t shift, const Visit& visit) const {
        const size_t first = plan.pieces[piece].first, last = plan.pieces[piece].last, joined = plan.together;
        const size_t whole = last - first - (shift && last > first), odd = piece + 1 == plan.pieces.size() ? b.outer % joined : 0;
        if (shift && last > first) visit(wide_rows(first, 1, shift), 0);
        if (whole) visit(wide_rows(first, whole, plan.width, shift), shift);
        if (shift && last > first) visit(wide_rows(last - 1, 1, plan.width - shift, shift), shift);
        if (odd) visit(wide_rows(plan.rows, 1, odd * plan.row), 0);
    }

    void reduce(size_t piece, size_t member) const {
        const Care care = wide_sums ? Care::WIDE : quick ? Care::QUICK : Care::CAREFUL;
        set_origins(piece, care);
        sum_up(piece, care, terms(wide_sums, factors), [](size_t) { return true; });
        if (care != Care::QUICK) return;
        const auto unsure = [&](size_t c) { return !sure(piece, c); };
        bool any = false;
        for (size_t c = 0; c < b.channels; c++) any |= unsure(c);
        if (!any) return;
        if (pass.raw) correct_origins(piece, unsure);
        if (pass.backward) fill(own[member].of<double>(), 0, b.channels, false);
        sum_up(piece, pass.more_care(), pass.backward ? terms(true, own[member]) : Terms{}, unsure);
    }

    // Folds the pieces in order, and in each the columns of a channel; a few channels at a time, as they lie.
    void fold(size_t first, size_t last) const {
        constexpr size_t few = 64;
        for (; first < last; first += few) {
            const size_t count = std::min(few, last - first);
            Moments moments[few];
            double sum[few] = {}, product[few] = {};
            for (size_t p = 0; p < plan.pieces.size(); p++)
                for (size_t c = 0; c < count; c++) {
                    const Sums& s = total(p, first + c);
                    const double from = origin(p, first + c);
                    sum[c] += s.sum;
                    if (pass.backward) product[c] += s.product_about(b.mean[first + c], from);
                    else moments[c].fold(Moments::of(plan.pieces[p].m, from, s));
                }
            for (size_t c = 0; c < count; c++) publish(first + c, moments[c], sum[c], product[c]);
        }
    }

    void map(size_t piece) const {
        tiles(piece, plan.shift, [&](Tile t, size_t column) {
            t.terms = terms(wide_map, factors, column);
            t.stream = pass.large;
            t.staged = t.staged || t.stream;
            pass.run_map(t, wide_map);
        });
    }

    // The factors of the sums, or of the map: each member of the team makes those of its share of the channels.
    void prepare(Team team, bool with_sums, std::atomic<bool>& wide) {
        const size_t first = team.first(b.channels), last = team.last(b.channels);
        if (!pass.terms_in_double(false) && !fill(factors.of<float>(), first, last, with_sums))
            wide = true;
        team.barrier();
        if (!pass.terms_in_double(wide)) return;
        fill(factors.of<double>(), first, last, with_sums);
        team.barrier();
    }

  private:
    double& origin(size_t piece, size_t c) const { return sums.origin[piece * plan.width + c * b.inner]; }
    Sums& total(size_t piece, size_t c) const { return sums.total[piece * b.channels + c]; }
    bool sure(size_t piece, size_t c) const {
        return pass.sure(total(piece, c), plan.pieces[piece].m, pass.backward ? b.var[c] : 0, origin(piece, c));
    }

    // None for raw sums; else the mean; of moments, a number of each channel, or the mean of some where sums are brief.
    void set_origins(size_t piece, Care care) const {
        double* const dense = &sums.origin[piece * plan.width];
        if (pass.raw && care == Care::QUICK) return void(std::fill_n(dense, plan.width, 0.0));
        if (pass.backward) std::copy_n(b.mean, b.channels, dense);
        else pass.values(plan.pieces[piece].origin, dense);
        for (size_t c = b.channels; c-- > 0;) origin(piece, c) = dense[c];  // from the last on: they spread in place
        repeat_origins(piece);
        if (pass.brief && !pass.backward) average_origins(piece);
    }
    // A number of each channel whose moments about zero are unsure.
    template <class Unsure> void correct_origins(size_t piece, const Unsure& unsure) const {
        double* const numbers = &sums.sum[piece * plan.width];  // of which the totals are known
        pass.values(plan.pieces[piece].origin, numbers);
        for (size_t c = 0; c < b.channels; c++)
            if (unsure(c)) origin(piece, c) = numbers[c];
        repeat_origins(piece);
    }
    // So that not much of the squares cancels, whatever lies first.
    void average_origins(size_t piece) const {
        const Plan::Piece& part = plan.pieces[piece];
        const size_t rows = std::min<size_t>(16, part.last - part.first);
        if (rows < 2) return;
        Tile t = wide_rows(part.first, rows, plan.width);
        t.x.row *= std::ptrdiff_t((part.last - part.first) / rows);
        clear(piece);
        add(piece, t, Terms{}, Care::QUICK);
        const double numbers = double(rows * plan.together * b.inner);
        for (size_t c = 0; c < b.channels; c++) {
            const double one = origin(piece, c);
            origin(piece, c) = Pass::origin_from(one + column_sums(piece, c).sum / numbers, one);
        }
        repeat_origins(piece);
    }
    void repeat_origins(size_t piece) const {
        for (size_t c = 0; c < b.channels; c++) std::fill_n(&origin(piece, c), b.inner, origin(piece, c));
        for (size_t k = 1; k < plan.together; k++) std::copy_n(&origin(piece, 0), plan.row, &origin(piece, 0) + k * plan.row);
    }

    void clear(size_t piece) const {
        std::fill_n(&sums.sum[piece * plan.width], plan.width, 0.0);
        std::fill_n(&sums.product[piece * plan.width], plan.width, 0.0);
    }
    void add(size_t piece, Tile t, const Terms& factors, Care care) const {
        t.origin = &sums.origin[piece * plan.width];
        t.sum = &sums.sum[piece * plan.width];
        t.sum_product = &sums.product[piece * plan.width];
        t.terms = factors;
        pass.run_reduce(t, care);
    }
    // Adds the columns of a piece, and sets the totals of the channels that are `wanted`.
    template <class Wanted>
    void sum_up(size_t piece, Care care, const Terms& factors, const Wanted& wanted) const {
        clear(piece);
        tiles(piece, 0, [&](const Tile& t, size_t) { add(piece, t, factors, care); });
        for (size_t c = 0; c < b.channels; c++)
            if (wanted(c)) total(piece, c) = column_sums(piece, c);
    }
    Sums column_sums(size_t piece, size_t c) const {
        const size_t at = piece * plan.width + c * b.inner;
        return {column_sum(&sums.sum[at]), column_sum(&sums.product[at])};
    }
    double column_sum(const double* column) const {
        double s = 0;
        for (size_t k = 0; k < plan.together; k++)
            for (size_t i = 0; i < b.inner; i++) s += column[k * plan.row + i];
        return s;
    }
    void publish(size_t c, const Moments& moments, double total, double total_product) const {
        if (pass.backward) {
            b.sum_dy[c] = total;
            b.sum_dy_xhat[c] = through_xhat(b, total_product, b.var[c]);
        } else {
            b.mean[c] = moments.mu;
            b.var[c] = variance(b, moments);
        }
    }
    // From wide row `first` and column `column` on.
    Tile wide_rows(size_t first, size_t rows, size_t width, size_t column = 0) const {
        Tile t = pass.tile(first * plan.together, 0, column, rows, 1, width);
        const auto joined = std::ptrdiff_t(plan.together);
        t.x.row *= joined, t.dy.row *= joined, t.extra.row *= joined, t.out.row *= joined, t.dresidual.row *= joined;
        return t;
    }
    Factors factors_of(size_t c, bool with_sums) const {
        return {b, c, b.mean[c], b.var[c], with_sums ? b.sum_dy[c] : 0, with_sums ? b.sum_dy_xhat[c] : 0};
    }
    // Of channels [first, last), for every column of theirs; whether all of them are moderate enough for float.
    template <class A> bool fill(const FactorArrays<A>& arrays, size_t first, size_t last, bool with_sums) const {
        bool fit = true;
        for (size_t c = first; c < last; c++) {
            const Factors f = factors_of(c, with_sums);
            fit &= f.fits_float();
            for (size_t k = c * b.inner; k < arrays.count; k += plan.row) arrays.set(k, std::min(b.inner, arrays.count - k), f);
        }
        return fit;
    }
    // From column `column` on.
    Terms terms(bool in_double, const FactorSpace& space, size_t column = 0) const {
        return pass.terms_in_double(in_double) ? space.of<double>().terms(column) : space.of<float>().terms(column);
    }
};

}  // namespace

void run_columns(const Pass& pass, int threads) {
    const Batch& b = pass.b;
    const Plan plan(pass);
    Walk walk(pass, plan, size_t(threads));
    const bool sums_have_factors = pass.backward && b.reduce && (b.activation_grad != NO_ACTIVATION || pass.brief);
    parallel(threads, [&](Team team) {
        if (sums_have_factors) walk.prepare(team, false, walk.wide_sums);
        const size_t p0 = team.first(plan.pieces.size()), p1 = team.last(plan.pieces.size());
        if (b.reduce) {
            for (size_t p = p0; p < p1; p++) walk.reduce(p, team.rank);
            team.barrier();
            walk.fold(team.first(b.channels), team.last(b.channels));
        }
        if (b.map) {
            walk.prepare(team, pass.backward, walk.wide_map);
            for (size_t p = p1; p-- > p0;) walk.map(p);  // what was read last is still in the caches
        }
    });
}

}  // namespace xhat
