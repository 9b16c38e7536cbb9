// Pieces: the parts of a channel that are summed separately. Both traversals share them.
//
// Where a channel is cut depends on the shape alone. One thread sums a piece, and pieces are merged in order. So the
// number of threads decides which thread adds, but not what is added to what, and results have the same bits.
#pragma once
#include <cstddef>
#include <vector>

#include "engine/moments.h"
#include "engine/pass.h"

namespace xhat {

struct Piece {
    std::size_t first, last;  // elements of a channel (lanes), or wide rows (columns)
    std::size_t heaviest;     // the element, or row, of the largest weight: its value is a good shift
    double m;                 // the sum of weights
};

// `count` pieces of [0, length), as even as possible.
inline std::vector<Piece> cut(std::size_t length, std::size_t count) {
    std::vector<Piece> pieces(count);
    for (std::size_t p = 0; p < count; p++) pieces[p] = {length * p / count, length * (p + 1) / count, 0, 0};
    return pieces;
}

inline double sum_of_weights(const Call& call, std::size_t first, std::size_t last) {
    if (!call.weights) return double(last - first);
    double m = 0;
    for (std::size_t i = first; i < last; i++) m += call.weights[i];
    return m;
}

// The place in [first, last) of the largest weight. Moments are shifted by the value there, so that padding (which
// may be NaN), or an outlier of small weight, can't cancel the digits of the other elements.
inline std::size_t heaviest(const Call& call, std::size_t first, std::size_t last) {
    std::size_t found = first;
    if (call.weights)
        for (std::size_t i = first; i < last; i++)
            if (call.weights[i] > call.weights[found]) found = i;
    return found;
}

// The pieces of one channel, merged in order, and the two results of the reduction.
struct ChannelTotal {
    Moments moments;
    double sum = 0, product = 0;

    void add(const Pass& pass, const Piece& piece, const Sums& s, double shift, double mean) {
        if (!pass.backward) return moments.merge(Moments::from(piece.m, shift, s));
        sum += s.sum;
        product += s.product_about(mean, shift);
    }
    // forward: mean and var. backward: sum g and sum g xhat.
    double first(const Pass& pass) const { return pass.backward ? sum : moments.mu; }
    double second(const Pass& pass, std::size_t channel, double var) const {
        if (!pass.backward) return moments.m2 / pass.call.divisor;
        const double rest = pass.call.rest ? pass.call.rest[channel] : 0;
        return (rest == 0 ? product : product - rest * sum) / std::sqrt(var + pass.call.eps);
    }
};

}  // namespace xhat
