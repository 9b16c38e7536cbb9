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

// v, or 0. A mask, and no condition: what comes behind one may not become vector code.
template <class A> ALWAYS_INLINE A only_if(bool condition, A v) {
    using Mask = typename Bits<A>::type;
    return bits<A>(Mask(bits<Mask>(v) & (Mask(0) - Mask(condition))));
}

// slope * v, and 0 for relu also where v is infinite; a mask too.
template <class V> struct Slope {
    using Mask = typename Bits<V>::type;
    V slope;
    Mask kept;
    using Number = std::conditional_t<std::is_same_v<V, double>, double, float>;
    explicit Slope(double s) : slope(V{} + Number(s)), kept(Mask{} - (Number(s) == 0 ? 0 : 1)) {}
    ALWAYS_INLINE V operator*(V v) const { return slope * bits<V>(Mask(bits<Mask>(v) & kept)); }
};

// Numbers without their sign, cut off at FAR; as integers, of which this is one instruction. NaN is beyond FAR.
template <class A> constexpr typename Bits<A>::type SIGN = typename Bits<A>::type(1) << (8 * sizeof(A) - 1);
template <class A> inline A magnitude(A v) {
    using Mask = typename Bits<A>::type;
    const Mask u = bits<Mask>(v) & ~SIGN<A>, far = bits<Mask>(FAR<A>);
    return bits<A>(u < far ? u : far);
}
template <class A> inline A with_sign(A magnitude, A of) {
    using Mask = typename Bits<A>::type;
    return bits<A>(Mask(bits<Mask>(magnitude) | (bits<Mask>(of) & SIGN<A>)));
}

// pre sigma(pre), where sigma(a) = 1 / (1 + e^-a) and sigma(-a) = e^-a / (1 + e^-a).
template <class A> inline A silu(A pre) {
    const A a = magnitude(pre), e = decay(a);
    return (pre < A(0) ? -a * e : pre) / (A(1) + e);
}

template <int activation, class A> inline A act(A pre, Slope<A> slope) {
    if (activation == LEAKY_RELU) return pre < A(0) ? slope * pre : pre;
    if (activation == SILU) return silu(pre);
    return pre;
}

constexpr bool is_silu(int grad) { return grad == SILU_FROM_X || grad == SILU_FROM_X_AND_RESIDUAL; }
constexpr bool reads_extra(int grad) { return grad == LEAKY_RELU_FROM_Y || grad == SILU_FROM_X_AND_RESIDUAL; }

// What stands before the activation, as the forward pass had it.
template <class A> inline A before_activation(A d, A scale, A beta) { return d * scale + beta; }

// x, or -x where scale is negative: pre rises with it.
template <class V> ALWAYS_INLINE V rising(V x, V scale) {
    using Mask = typename Bits<V>::type;
    const Mask sign = bits<Mask>(-V{});
    return bits<V>(Mask(bits<Mask>(x) ^ (bits<Mask>(scale) & sign)));
}

// The terms at one place: with step 0 the channel's, with step 1 the column's.
template <class A, int step> struct TermsAt {
    const A *RESTRICT hi, *RESTRICT lo, *RESTRICT scale, *RESTRICT beta, *RESTRICT kink, *RESTRICT mu_path, *RESTRICT var_path;
    TermsAt(const Terms& t, size_t at)
        : hi(static_cast<const A*>(t.mu_hi) + at), lo(static_cast<const A*>(t.mu_lo) + at),
          scale(static_cast<const A*>(t.scale) + at), beta(static_cast<const A*>(t.beta) + at),
          kink(static_cast<const A*>(t.kink) + at), mu_path(static_cast<const A*>(t.through_mu) + at),
          var_path(static_cast<const A*>(t.through_var) + at) {}
    static size_t i(size_t column) { return step * column; }
};

// g = dy act'(pre) of leaky_relu, and of silu.
template <class V, class Below> ALWAYS_INLINE V through_leaky(V dy, const Below& below, const Slope<V>& slope) {
    return below ? slope * dy : dy;
}
template <class A> inline A through_silu(A dy, A pre) {
    const A a = magnitude(pre), e = decay(a), above = A(1) / (A(1) + e), below = e * above;  // sigma(a), sigma(-a)
    A slope = (pre < A(0) ? below : above) + with_sign(a * (below * above), pre);  // sigma + pre sigma (1 - sigma)
    slope = pre == pre ? slope : pre;
    return only_if(dy != A(0), dy * slope);  // no gradient passes a padded NaN
}

// g = dy act'(pre), where `extra` is y, of the sign of pre, or the residual.
template <int grad, class A, int step>
ALWAYS_INLINE A through_activation(A dy, A x, A extra, const TermsAt<A, step>& at, size_t k, Slope<A> slope) {
    if constexpr (is_silu(grad)) {
        const A pre = before_activation(centred(x, at.hi[k], at.lo[k]), at.scale[k], at.beta[k]);
        return through_silu(dy, grad == SILU_FROM_X_AND_RESIDUAL ? pre + extra : pre);
    } else if constexpr (grad == LEAKY_RELU_FROM_X) {
        return through_leaky(dy, rising(x, at.scale[k]) <= at.kink[k], slope);
    } else if constexpr (grad == LEAKY_RELU_FROM_Y) {
        return through_leaky(dy, extra <= A(0), slope);
    } else {
        return dy;
    }
}

}  // namespace
