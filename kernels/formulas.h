// The formulas at one number: xhat's numerator, the activations and their derivatives, and where the terms of a channel
// or column stand. Sums and maps are made of nothing else.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "kernels.h"
#include "memory.h"
#include "number.h"

#include <type_traits>

namespace {

using namespace xhat;
using std::size_t;

// xhat's numerator. Subtracting the mean in two halves keeps its double precision in float arithmetic.
template <class A> inline A centred(A x, A hi, A lo) { return (x - hi) - lo; }

// slope * v, and 0 for relu also where v is infinite. A mask, and no condition: four of them are still vector code.
template <class A> struct Slope {
    using Bits = std::conditional_t<sizeof(A) == 8, std::uint64_t, std::uint32_t>;
    A slope;
    Bits kept;
    explicit Slope(double s) : slope(A(s)), kept(slope == A(0) ? Bits(0) : ~Bits(0)) {}
    inline A operator*(A v) const { return slope * bits<A>(Bits(bits<Bits>(v) & kept)); }
};

template <int activation, class A> inline A act(A pre, Slope<A> slope) {
    if (activation == LEAKY_RELU) return pre < A(0) ? slope * pre : pre;
    if (activation == SILU) return pre < -FAR<A> ? A(0) : pre * sigmoid(pre);
    return pre;
}

// g = dy act'(pre).
template <int side, class A> inline A through_activation(A dy, A pre, Slope<A> slope) {
    if (side == NO_ACTIVATION) return dy;
    if (side == LEAKY_FROM_X || side == LEAKY_FROM_Y) return pre <= A(0) ? slope * dy : dy;
    const A sigma = sigmoid(pre);
    A slope_here = sigma * (A(1) + pre * (A(1) - sigma));
    slope_here = pre < -FAR<A> ? A(0) : slope_here;
    slope_here = pre > FAR<A> ? A(1) : slope_here;
    return dy == A(0) ? dy : dy * slope_here;  // no gradient passes a padded NaN
}

// What stands before the activation, as the forward pass had it (or y, of the same sign).
template <int side, class A> inline A before_activation(A d, A scale, A beta, A extra) {
    if (side == LEAKY_FROM_Y) return extra;
    if (side == SILU_FROM_RESIDUAL) return d * scale + beta + extra;
    return d * scale + beta;
}
constexpr bool through_silu(int side) { return side == SILU_FROM_X || side == SILU_FROM_RESIDUAL; }
constexpr bool reads_extra(int side) { return side == LEAKY_FROM_Y || side == SILU_FROM_RESIDUAL; }

// The terms at one place: with step 0 the channel's, with step 1 the column's.
template <class A, int step> struct TermsAt {
    const A *RESTRICT hi, *RESTRICT lo, *RESTRICT scale, *RESTRICT beta, *RESTRICT mu_path, *RESTRICT var_path;
    TermsAt(const Terms& t, size_t at)
        : hi(static_cast<const A*>(t.mu_hi) + at), lo(static_cast<const A*>(t.mu_lo) + at),
          scale(static_cast<const A*>(t.scale) + at), beta(static_cast<const A*>(t.beta) + at),
          mu_path(static_cast<const A*>(t.through_mu) + at), var_path(static_cast<const A*>(t.through_var) + at) {}
    static size_t i(size_t column) { return step * column; }
};

}  // namespace
