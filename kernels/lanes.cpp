// Layouts in which a run of neighbours belongs to one channel (NCHW, (N, C, L), channel first).
//
// A channel is cut into pieces that depend on the shape alone. A block of channels is reduced and then mapped
// while it is still in the cache: one read and one write of memory in the forward pass. Each member of the team
// walks blocks of its own; where there are too few blocks, or too large ones, the team shares the pieces of one block
// after another.
#include "pass.h"
#include "threads.h"

#include <algorithm>
#include <vector>

namespace xhat {

namespace {

using std::ptrdiff_t;
using std::size_t;

constexpr size_t MOST_CHANNELS = 64;  // of a block
constexpr size_t ENOUGH = 16384;      // bytes of a row's run that are worth a block of their own
constexpr size_t CACHED = size_t(1) << 19;  // bytes that stay in the second cache beside what is written
constexpr size_t SHARED = size_t(1) << 20;  // of a block that one member's second cache may not hold, and a team's do

size_t clamped(size_t v, size_t low, size_t high) { return std::max(low, std::min(v, high)); }

struct Plan {
    // Numbers [first, last); the one of the largest weight; the sum of weights.
    struct Piece { size_t first, last, origin; double m; };
    size_t length, block;  // numbers of a channel; channels of a block
    size_t bytes;          // that are read of a block
    std::vector<Piece> pieces;

    explicit Plan(const Pass& pass) : length(pass.b.outer * pass.b.inner), block(1) {
        const Batch& b = pass.b;
        const size_t run = b.inner * SIZE_OF[b.dtype];  // short runs of neighbouring channels share cache lines
        const size_t most = std::min(MOST_CHANNELS, CACHED / (length * SIZE_OF[b.dtype] * pass.read));
        if (b.outer > 1) block = clamped(std::min(ENOUGH / run, most), 1, b.channels);
        bytes = pass.read * block * length * SIZE_OF[b.dtype];
        pieces.resize(clamped(256 / b.channels, 1, std::max<size_t>(1, length / 8192)));
        for (size_t p = 0; p < pieces.size(); p++) {
            const size_t first = length * p / pieces.size(), last = length * (p + 1) / pieces.size();
            pieces[p] = {first, last, heaviest(b, first, last), sum_of_weights(b, first, last)};
        }
    }
};

// The sums of a block: [piece][channel], and LANES of them for what the kernels add to.
struct BlockSums {
    size_t channels;
    std::vector<double> origin, sum, product;
    explicit BlockSums(const Plan& plan)
        : channels(plan.block), origin(plan.pieces.size() * channels), sum(origin.size() * LANES), product(sum.size()) {}
    size_t at(size_t piece, size_t channel) const { return piece * channels + channel; }
    Sums of(size_t piece, size_t channel) const {
        Sums s;
        for (size_t l = at(piece, channel) * LANES, end = l + LANES; l < end; l++) {
            s.sum += sum[l];
            s.product += product[l];
        }
        return s;
    }
};

// Calls visit(row, rows, place, width) for the parts of [first, last) that are whole rows, or parts of one.
template <class Visit> void segments(size_t first, size_t last, size_t inner, const Visit& visit) {
    while (first < last) {
        const size_t row = first / inner, place = first % inner;
        const size_t rows = place ? 0 : (last - first) / inner;
        const size_t width = rows ? inner : std::min(inner - place, last - first);
        visit(row, std::max<size_t>(rows, 1), place, width);
        first += std::max<size_t>(rows, 1) * width;
    }
}

struct Block {
    const Pass& pass;
    const Plan& plan;
    BlockSums& sums;
    size_t first, count;  // channels
    double mean[MOST_CHANNELS], var[MOST_CHANNELS], sum_dy[MOST_CHANNELS], sum_dy_xhat[MOST_CHANNELS];

    Block(const Pass& p, const Plan& l, BlockSums& s, size_t f, size_t n) : pass(p), plan(l), sums(s), first(f), count(n) {
        const Batch& b = pass.b;
        if (pass.backward || !b.reduce) {
            std::copy_n(b.mean + first, count, mean);
            std::copy_n(b.var + first, count, var);
        }
        if (pass.backward && !b.reduce) {
            std::copy_n(b.sum_dy + first, count, sum_dy);
            std::copy_n(b.sum_dy_xhat + first, count, sum_dy_xhat);
        }
    }

    void reduce(size_t piece) const {
        const bool in_double = pass.backward && wide(0, count, false);
        const Care care = in_double ? Care::WIDE : quick() ? Care::QUICK : Care::CAREFUL;
        sum_up(piece, 0, count, care);
        if (care != Care::QUICK) return;
        for (size_t c = 0; c < count; c++)
            if (!sure(piece, c)) sum_up(piece, c, 1, pass.more_care());
    }

    // Folds the pieces in order; every member of a team computes the same.
    void fold() {
        for (size_t c = 0; c < count; c++) {
            Moments moments;
            double total = 0, total_product = 0;
            for (size_t p = 0; p < plan.pieces.size(); p++) {
                const Sums s = sums.of(p, c);
                const double origin = sums.origin[sums.at(p, c)];
                total += s.sum;
                if (pass.backward) total_product += s.product_about(mean[c], origin);
                else moments.fold(Moments::of(plan.pieces[p].m, origin, s));
            }
            if (pass.backward) {
                sum_dy[c] = total;
                sum_dy_xhat[c] = through_xhat(pass.b, total_product, var[c]);
            } else {
                mean[c] = moments.mu;
                var[c] = variance(pass.b, moments);
            }
        }
    }

    void publish() const {
        const Batch& b = pass.b;
        std::copy_n(pass.backward ? sum_dy : mean, count, (pass.backward ? b.sum_dy : b.mean) + first);
        std::copy_n(pass.backward ? sum_dy_xhat : var, count, (pass.backward ? b.sum_dy_xhat : b.var) + first);
    }

    // `cached`: what is read was reduced a moment ago. `more`: this thread reduces another whole block after this one.
    void map(size_t piece, bool cached, bool more) const {
        const Batch& b = pass.b;
        double space[FACTORS * MOST_CHANNELS];
        const bool in_double = wide(0, count, pass.backward);
        const Terms terms = terms_of(0, count, in_double, pass.backward, space);
        const bool stream = pass.large && count * b.inner * SIZE_OF[b.dtype] >= 1024;
        const bool reads = !pass.backward && b.extra.at;  // a residual, and memory has enough to do
        segments(plan.pieces[piece].first, plan.pieces[piece].last, b.inner,
                 [&](size_t row, size_t rows, size_t place, size_t width) {
                     Tile t = pass.tile(row, first, place, rows, count, width);
                     t.terms = terms;
                     t.stream = stream;
                     t.cached = cached;
                     t.following = stream && more && !reads ? plan.block : 0;
                     t.staged = t.staged || stream;
                     pass.run_map(t, in_double);
                 });
    }

  private:
    bool quick() const {
        bool will_do = pass.quick();
        if (pass.backward)
            for (size_t c = 0; c < count; c++) will_do &= pass.raw_will_do(mean[c], var[c]);
        return will_do;
    }
    double origin_of(size_t piece, size_t c, Care care) const {
        const Plan::Piece& part = plan.pieces[piece];
        if (pass.raw && care == Care::QUICK) return 0;
        return pass.backward ? mean[c] : pass.origin(first + c, part.first, part.last, part.origin);
    }
    // The sums of a piece for channels [c, c + n).
    void sum_up(size_t piece, size_t c, size_t n, Care care) const {
        const Plan::Piece& part = plan.pieces[piece];
        const size_t at = sums.at(piece, c);
        for (size_t k = 0; k < n; k++) sums.origin[at + k] = origin_of(piece, c + k, care);
        std::fill_n(&sums.sum[at * LANES], n * LANES, 0.0);
        std::fill_n(&sums.product[at * LANES], n * LANES, 0.0);
        double space[FACTORS * MOST_CHANNELS];
        const Terms terms = pass.backward ? terms_of(c, n, care == Care::WIDE, false, space) : Terms{};
        segments(part.first, part.last, pass.b.inner, [&](size_t row, size_t rows, size_t place, size_t width) {
            Tile t = pass.tile(row, first + c, place, rows, n, width);
            t.origin = &sums.origin[at];
            t.sum = &sums.sum[at * LANES];
            t.sum_product = &sums.product[at * LANES];
            t.terms = terms;
            pass.run_reduce(t, care);
        });
    }
    bool sure(size_t piece, size_t c) const {
        const double v = pass.backward ? var[c] : 0;
        return pass.sure(sums.of(piece, c), plan.pieces[piece].m, v, sums.origin[sums.at(piece, c)]);
    }

    Factors factors_of(size_t c, bool with_sums) const {
        return {pass.b, first + c, mean[c], var[c], with_sums ? sum_dy[c] : 0, with_sums ? sum_dy_xhat[c] : 0};
    }
    // One channel beyond float takes the block to double.
    bool wide(size_t c, size_t n, bool with_sums) const {
        bool beyond = false;
        if (pass.b.dtype != FLOAT64)
            for (size_t k = c; k < c + n; k++) beyond |= !factors_of(k, with_sums).fits_float();
        return beyond;
    }
    // In the kernels' arithmetic type.
    Terms terms_of(size_t c, size_t n, bool in_double, bool with_sums, double* space) const {
        return pass.terms_in_double(in_double) ? filled(c, n, with_sums, space)
                                               : filled(c, n, with_sums, reinterpret_cast<float*>(space));
    }
    template <class A> Terms filled(size_t c, size_t n, bool with_sums, A* space) const {
        const FactorArrays<A> arrays{space, n};
        for (size_t k = 0; k < n; k++) arrays.set(k, 1, factors_of(c + k, with_sums));
        return arrays.terms();
    }
};

// One block after another, its pieces shared by the team. With two sets of sums in turn, one barrier a block is
// enough: nobody can be a whole block ahead.
void walk(const Pass& pass, const Plan& plan, Team team, std::vector<BlockSums>& sums, size_t first_block, size_t last_block) {
    const Batch& b = pass.b;
    const size_t p0 = team.first(plan.pieces.size()), p1 = team.last(plan.pieces.size());
    const bool cached = b.reduce && 2 * plan.bytes <= NEAR;  // beside what is written
    for (size_t k = first_block; k < last_block; k++) {
        const size_t first = k * plan.block;
        Block block(pass, plan, sums[k % sums.size()], first, std::min(plan.block, b.channels - first));
        if (b.reduce) {
            for (size_t p = p0; p < p1; p++) block.reduce(p);
            team.barrier();
            block.fold();
            if (team.rank == 0) block.publish();
        }
        const bool more = b.reduce && k + 1 < last_block && first + 2 * plan.block <= b.channels;
        if (b.map)
            for (size_t p = p1; p-- > p0;) block.map(p, cached, more);  // what was read last is still in the caches
    }
}

}  // namespace

void run_lanes(const Pass& pass, int threads) {
    const Plan plan(pass);
    const size_t blocks = (pass.b.channels + plan.block - 1) / plan.block;
    const bool large = plan.bytes > SHARED && plan.pieces.size() >= size_t(threads), few = blocks < 2 * size_t(threads);
    if (threads > 1 && (large || few)) {
        std::vector<BlockSums> sums(2, BlockSums(plan));
        parallel(threads, [&](Team team) { walk(pass, plan, team, sums, 0, blocks); });
        return;
    }
    parallel(threads, [&](Team team) {
        std::vector<BlockSums> sums(1, BlockSums(plan));
        walk(pass, plan, Team{0, 1}, sums, team.first(blocks), team.last(blocks));
    });
}

}  // namespace xhat
