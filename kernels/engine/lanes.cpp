// The lanes traversal: layouts in which a contiguous run belongs to one channel (NCHW, (N, C, L), channel first).
//
// A block of channels is reduced and then mapped while it is still in L2, so the forward pass reads memory once. Blocks
// are small (tuning.h): one channel, or a few neighbouring ones if their runs are short.
//
// Each thread processes blocks of its own, and never waits for another. If there are too few blocks for that, or a
// block exceeds one core's L2, all threads share the pieces of one block after another, with a barrier per block.
#include <algorithm>
#include <vector>

#include "engine/coefficients.h"
#include "engine/pass.h"
#include "engine/pieces.h"
#include "engine/threads.h"

namespace xhat {

namespace {

using std::ptrdiff_t;
using std::size_t;

size_t clamp(size_t v, size_t low, size_t high) { return std::max(low, std::min(v, high)); }

// How the channels are cut into blocks, and each channel into pieces.
struct Partition {
    size_t length;              // elements of a channel
    size_t block_channels = 1;
    size_t block_bytes;         // of the inputs
    std::vector<Piece> pieces;  // of each channel

    explicit Partition(const Pass& pass) : length(pass.call.outer * pass.call.inner) {
        const Call& call = pass.call;
        const size_t element = SIZE_OF[call.dtype], run_bytes = call.inner * element;
        const size_t most = std::min(BLOCK_CHANNELS, BLOCK_BYTES / (length * element * pass.inputs));
        if (call.outer > 1) block_channels = clamp(std::min(BLOCK_RUN_BYTES / run_bytes, most), 1, call.channels);
        block_bytes = pass.inputs * block_channels * length * element;
        const size_t most_pieces = std::max<size_t>(1, length / LANES_PIECE_ELEMENTS);
        pieces = cut(length, clamp(LANES_PIECES / call.channels, 1, most_pieces));
        for (Piece& p : pieces) {
            p.heaviest = heaviest(call, p.first, p.last);
            p.m = sum_of_weights(call, p.first, p.last);
        }
    }
};

// The running sums of a block: for each piece and channel, one shift, and LANES accumulators of both sums.
struct BlockSums {
    size_t channels;
    std::vector<double> shift, sum, product;
    explicit BlockSums(const Partition& partition)
        : channels(partition.block_channels), shift(partition.pieces.size() * channels), sum(shift.size() * LANES),
          product(sum.size()) {}
    size_t index(size_t piece, size_t channel) const { return piece * channels + channel; }
    Sums of(size_t piece, size_t channel) const {
        Sums s;
        for (size_t l = index(piece, channel) * LANES, end = l + LANES; l < end; l++) {
            s.sum += sum[l];
            s.product += product[l];
        }
        return s;
    }
};

// Cuts elements [first, last) of a channel into whole rows and parts of rows, and calls visit(row, rows, place, width).
template <class Visit> void segments(size_t first, size_t last, size_t inner, const Visit& visit) {
    while (first < last) {
        const size_t row = first / inner, place = first % inner;
        const size_t rows = place ? 0 : (last - first) / inner;
        const size_t width = rows ? inner : std::min(inner - place, last - first);
        visit(row, std::max<size_t>(rows, 1), place, width);
        first += std::max<size_t>(rows, 1) * width;
    }
}

// A block of channels. Where threads share it, each has a copy of this object, with the same values.
struct Block {
    const Pass& pass;
    const Partition& partition;
    BlockSums& sums;
    size_t first, count;  // channels
    double mean[BLOCK_CHANNELS], var[BLOCK_CHANNELS], sum_dy[BLOCK_CHANNELS], sum_dy_xhat[BLOCK_CHANNELS],
        rest[BLOCK_CHANNELS];

    Block(const Pass& p, const Partition& part, BlockSums& s, size_t first_channel, size_t channels)
        : pass(p), partition(part), sums(s), first(first_channel), count(channels) {
        const Call& call = pass.call;
        if (pass.backward || !call.reduce) {
            std::copy_n(call.mean + first, count, mean);
            std::copy_n(call.var + first, count, var);
        }
        if (pass.backward && !call.reduce) {
            std::copy_n(call.sum_dy + first, count, sum_dy);
            std::copy_n(call.sum_dy_xhat + first, count, sum_dy_xhat);
        }
    }

    // Sums a piece of all channels, then once more those channels whose fast sums are not accurate.
    void reduce(size_t piece) const {
        const Precision precision = first_precision();
        sum_up(piece, 0, count, precision);
        for (size_t c = 0; c < count && precision == Precision::FAST; c++)
            if (!is_accurate(piece, c)) sum_up(piece, c, 1, pass.more_precise());
        const double m = partition.pieces[piece].m;
        for (size_t c = 0; c < count && pass.may_cancel(); c++)
            if (sums.of(piece, c).cancels(m)) sum_up_about_mean(piece, c, m);
    }

    // Merges the pieces. Every thread of a team computes the same.
    void merge() {
        for (size_t c = 0; c < count; c++) {
            ChannelTotal total;
            const double mu = pass.backward ? mean[c] : 0, v = pass.backward ? var[c] : 0;
            for (size_t p = 0; p < partition.pieces.size(); p++)
                total.add(pass, partition.pieces[p], sums.of(p, c), sums.shift[sums.index(p, c)], mu);
            (pass.backward ? sum_dy : mean)[c] = total.first(pass);
            (pass.backward ? sum_dy_xhat : var)[c] = total.second(pass, first + c, v);
            rest[c] = total.moments.rest;
        }
    }

    void publish() const {
        const Call& call = pass.call;
        std::copy_n(pass.backward ? sum_dy : mean, count, (pass.backward ? call.sum_dy : call.mean) + first);
        std::copy_n(pass.backward ? sum_dy_xhat : var, count, (pass.backward ? call.sum_dy_xhat : call.var) + first);
        if (!pass.backward && call.rest) std::copy_n(rest, count, call.rest + first);
    }

    // `input_is_hot`: the inputs are still in a cache. `more`: this thread reduces another whole block after this one.
    void map(size_t piece, bool input_is_hot, bool more) const {
        const Call& call = pass.call;
        double space[COEFFICIENTS * BLOCK_CHANNELS];
        const bool in_double = needs_double(pass.backward);
        const Coefficients coefficients = coefficients_of(0, count, in_double, pass.backward, space);
        const bool stream = pass.streams && count * call.inner * SIZE_OF[call.dtype] >= STREAM_RUN_BYTES;
        // While a residual is read too, memory bandwidth is exhausted, and prefetching the next block only delays
        // this one.
        const bool reads_residual = !pass.backward && call.saved.at;
        segments(partition.pieces[piece].first, partition.pieces[piece].last, call.inner,
                 [&](size_t row, size_t rows, size_t place, size_t width) {
                     Tile t = pass.tile(row, first, place, rows, count, width);
                     t.coefficients = coefficients;
                     t.stream = stream;
                     t.via_buffer |= stream;
                     t.input_is_hot = input_is_hot;
                     t.prefetch_next_block = stream && more && !reads_residual ? partition.block_channels : 0;
                     pass.run_map(t, in_double);
                 });
    }

  private:
    Precision first_precision() const {
        if (pass.backward && needs_double(false)) return Precision::DOUBLE;
        bool fast = pass.has_fast_sums();
        if (pass.backward)
            for (size_t c = 0; c < count; c++) fast &= pass.may_be_accurate(mean[c], var[c]);
        return fast ? Precision::FAST : Precision::CENTERED;
    }
    double shift_of(size_t piece, size_t c, Precision precision) const {
        const Piece& p = partition.pieces[piece];
        if (pass.uncentered && precision == Precision::FAST) return 0;
        return pass.backward ? mean[c] : pass.shift_of(first + c, p.first, p.last, p.heaviest);
    }
    // Sums a piece of channels [c, c + n).
    void sum_up(size_t piece, size_t c, size_t n, Precision precision) const {
        const size_t at = sums.index(piece, c);
        for (size_t k = 0; k < n; k++) sums.shift[at + k] = shift_of(piece, c + k, precision);
        add_up(piece, c, n, precision);
    }
    // Once more, if the shift was an outlier: shifted by the mean that was found.
    void sum_up_about_mean(size_t piece, size_t c, double m) const {
        sums.shift[sums.index(piece, c)] += sums.of(piece, c).sum / m;
        add_up(piece, c, 1, Precision::CENTERED);
    }
    void add_up(size_t piece, size_t c, size_t n, Precision precision) const {
        const size_t at = sums.index(piece, c);
        std::fill_n(&sums.sum[at * LANES], n * LANES, 0.0);
        std::fill_n(&sums.product[at * LANES], n * LANES, 0.0);
        double space[COEFFICIENTS * BLOCK_CHANNELS];
        Coefficients coefficients{};
        if (pass.backward) coefficients = coefficients_of(c, n, precision == Precision::DOUBLE, false, space);
        segments(partition.pieces[piece].first, partition.pieces[piece].last, pass.call.inner,
                 [&](size_t row, size_t rows, size_t place, size_t width) {
                     Tile t = pass.tile(row, first + c, place, rows, n, width);
                     t.shift = &sums.shift[at];
                     t.sum = &sums.sum[at * LANES];
                     t.sum_product = &sums.product[at * LANES];
                     t.coefficients = coefficients;
                     pass.run_reduce(t, precision);
                 });
    }
    bool is_accurate(size_t piece, size_t c) const {
        return pass.is_accurate(sums.of(piece, c), partition.pieces[piece].m, pass.backward ? var[c] : 0,
                                sums.shift[sums.index(piece, c)]);
    }

    ChannelCoefficients coefficients_of(size_t c, bool with_sums) const {
        return {pass.call, first + c, mean[c], var[c], with_sums ? sum_dy[c] : 0, with_sums ? sum_dy_xhat[c] : 0};
    }
    // Whether a channel's coefficients do not fit in float. Then the whole block takes the fallback.
    bool needs_double(bool with_sums) const {
        bool fit = true;
        if (pass.call.dtype != FLOAT64)
            for (size_t c = 0; c < count; c++) fit &= coefficients_of(c, with_sums).fits_float();
        return !fit;
    }
    // The coefficients of channels [c, c + n) in `space`, in the arithmetic type of the kernel.
    Coefficients coefficients_of(size_t c, size_t n, bool in_double, bool with_sums, double* space) const {
        return pass.coefficients_in_double(in_double) ? fill(c, n, with_sums, space)
                                                      : fill(c, n, with_sums, reinterpret_cast<float*>(space));
    }
    template <class A> Coefficients fill(size_t c, size_t n, bool with_sums, A* space) const {
        const CoefficientArrays<A> arrays{space, n};
        for (size_t k = 0; k < n; k++) arrays.set(k, 1, coefficients_of(c + k, with_sums));
        return arrays.from();
    }
};

// Processes blocks [first_block, last_block); the team shares the pieces of each. With two sets of sums in turn, one
// barrier per block is enough: no thread can be a whole block ahead of another.
void process(const Pass& pass, const Partition& partition, ThreadTeam team, std::vector<BlockSums>& sums,
             size_t first_block, size_t last_block) {
    const Call& call = pass.call;
    const size_t p0 = team.first(partition.pieces.size()), p1 = team.last(partition.pieces.size());
    const bool input_is_hot = call.reduce && 2 * partition.block_bytes <= CACHE_BYTES;  // twice: results are cached too
    for (size_t k = first_block; k < last_block; k++) {
        const size_t first = k * partition.block_channels;
        const size_t count = std::min(partition.block_channels, call.channels - first);
        Block block(pass, partition, sums[k % sums.size()], first, count);
        if (call.reduce) {
            for (size_t p = p0; p < p1; p++) block.reduce(p);
            team.barrier();
            block.merge();
            if (team.index == 0) block.publish();
        }
        const bool more = call.reduce && k + 1 < last_block && first + 2 * partition.block_channels <= call.channels;
        if (call.map)
            for (size_t p = p1; p-- > p0;) block.map(p, input_is_hot, more);  // the last piece is in a cache still
    }
}

}  // namespace

void run_lanes(const Pass& pass, int threads) {
    const Partition partition(pass);
    const size_t blocks = (pass.call.channels + partition.block_channels - 1) / partition.block_channels;
    const bool exceeds_l2 = partition.block_bytes > L2_BYTES && partition.pieces.size() >= size_t(threads);
    const bool few_blocks = blocks < 2 * size_t(threads);
    if (threads > 1 && (exceeds_l2 || few_blocks)) {
        std::vector<BlockSums> sums(2, BlockSums(partition));
        parallel(threads, [&](ThreadTeam team) { process(pass, partition, team, sums, 0, blocks); });
        return;
    }
    parallel(threads, [&](ThreadTeam team) {
        std::vector<BlockSums> sums(1, BlockSums(partition));
        process(pass, partition, ThreadTeam{0, 1}, sums, team.first(blocks), team.last(blocks));
    });
}

}  // namespace xhat
