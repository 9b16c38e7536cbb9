// The equations for one element: xhat's numerator, the activations and their derivatives. The loops in kernels.cpp are
// built from these functions, and contain no other arithmetic of the equations.
//
// Every condition is written so that it compiles to a mask or a select; a branch in a loop would prevent vectorization.
//
// Anonymous namespace: see number.h.
#pragma once
#include "isa/memory.h"
#include "isa/number.h"
#include "isa/table.h"

#include <type_traits>

namespace {

using namespace xhat;
using std::size_t;

// x - mu, the numerator of xhat. mu = hi + lo is given in two parts, so that float arithmetic keeps its double
// precision: near the mean x - hi is exact.
template <class V> inline V centered(V x, V hi, V lo) { return (x - hi) - lo; }

// pre = scale (x - mu) + beta: the argument of the activation, from d = x - mu. The backward pass evaluates the same
// operations on the same values, so it gets the bits that the forward pass had.
template <class V> inline V before_activation(V d, V scale, V beta) { return d * scale + beta; }

// Whether pre <= 0, by the operations of the forward pass: its side of relu.
template <class V> ALWAYS_INLINE auto not_positive(V d, V scale, V beta) {
    return before_activation(d, scale, beta) <= V{};
}

// v where the condition holds, else 0; also where v is NaN.
template <class A> ALWAYS_INLINE A only_if(bool condition, A v) {
    using Mask = typename Bits<A>::type;
    return bits<A>(Mask(bits<Mask>(v) & (Mask(0) - Mask(condition))));
}

// slope * v. If the slope is 0 (relu), the product is 0 for infinite v too.
template <class V> struct Slope {
    using Mask = typename Bits<V>::type;
    using Scalar = std::conditional_t<std::is_same_v<V, double>, double, float>;
    V slope;
    Mask nonzero;
    explicit Slope(double s) : slope(V{} + Scalar(s)), nonzero(Mask{} - (Scalar(s) == 0 ? 0 : 1)) {}
    ALWAYS_INLINE V operator*(V v) const { return slope * bits<V>(Mask(bits<Mask>(v) & nonzero)); }
};

// ----------------------------------------------------------------------------------------------- activations

template <class A> constexpr typename Bits<A>::type SIGN = typename Bits<A>::type(1) << (8 * sizeof(A) - 1);

// min(|v|, FAR). As integers, non-negative floats have the same order, and the minimum of integers is one instruction.
// NaN becomes FAR.
template <class A> inline A magnitude(A v) {
    using Mask = typename Bits<A>::type;
    const Mask u = bits<Mask>(v) & ~SIGN<A>, far = bits<Mask>(FAR<A>);
    return bits<A>(u < far ? u : far);
}
template <class A> inline A with_sign(A magnitude, A of) {
    using Mask = typename Bits<A>::type;
    return bits<A>(Mask(bits<Mask>(magnitude) | (bits<Mask>(of) & SIGN<A>)));
}

// silu(pre) = pre sigma(pre). For a >= 0: sigma(a) = 1 / (1 + e^-a), sigma(-a) = e^-a / (1 + e^-a).
template <class A> inline A silu(A pre) {
    const A a = magnitude(pre), e = decay(a);
    return (pre < A(0) ? -a * e : pre) / (A(1) + e);
}

template <Activation activation, class A> inline A act(A pre, Slope<A> slope) {
    if constexpr (activation == SILU) return silu(pre);
    else if constexpr (activation == LEAKY_RELU) return pre < A(0) ? slope * pre : pre;
    else {
        static_assert(activation == IDENTITY, "each Activation has a formula");
        return pre;
    }
}

// ------------------------------------------------------------------------------------------ their derivatives

// dy act'(pre) of leaky_relu, where `is_below` is pre <= 0 (a bool, or a mask of vectors).
template <class V, class Below> ALWAYS_INLINE V through_leaky(V dy, const Below& is_below, const Slope<V>& slope) {
    return is_below ? slope * dy : dy;
}

// dy act'(pre) of silu: act' = sigma + pre sigma (1 - sigma).
template <class A> inline A through_silu(A dy, A pre) {
    const A a = magnitude(pre), e = decay(a), above = A(1) / (A(1) + e), below = e * above;  // sigma(a), sigma(-a)
    A slope = (pre < A(0) ? below : above) + with_sign(a * (below * above), pre);
    slope = pre == pre ? slope : pre;
    return only_if(dy != A(0), dy * slope);  // dy == 0 gives 0 even if the slope is NaN (padding)
}

// Coefficients from place `at` on. With step 1 each element (a column) has its own; with step 0 all elements of a run
// share those of their channel.
template <class A, int step> struct CoefficientsAt {
    const A *RESTRICT hi, *RESTRICT lo, *RESTRICT scale, *RESTRICT beta, *RESTRICT g_hi, *RESTRICT through_var,
        *RESTRICT low_terms;
    CoefficientsAt(const Coefficients& c, size_t at)
        : hi(static_cast<const A*>(c.mu_hi) + at), lo(static_cast<const A*>(c.mu_lo) + at),
          scale(static_cast<const A*>(c.scale) + at), beta(static_cast<const A*>(c.beta) + at),
          g_hi(static_cast<const A*>(c.g_hi) + at), through_var(static_cast<const A*>(c.through_var) + at),
          low_terms(static_cast<const A*>(c.low_terms) + at) {}
    static size_t index(size_t element) { return step * element; }
    ALWAYS_INLINE A difference(A x, size_t k) const { return centered(x, hi[k], lo[k]); }
    ALWAYS_INLINE bool pre_not_positive(A x, size_t k) const {
        return not_positive(difference(x, k), scale[k], beta[k]);
    }
    ALWAYS_INLINE A pre(A x, size_t k) const { return before_activation(difference(x, k), scale[k], beta[k]); }
};

// g = dy act'(pre). `saved` is y or the residual, if reads_saved(grad).
template <ActivationGrad grad, class A, int step>
ALWAYS_INLINE A through_activation(A dy, A x, A saved, const CoefficientsAt<A, step>& c, size_t k, Slope<A> slope) {
    if constexpr (grad == SILU_FROM_X) return through_silu(dy, c.pre(x, k));
    else if constexpr (grad == SILU_FROM_X_AND_RESIDUAL) return through_silu(dy, c.pre(x, k) + saved);
    else if constexpr (grad == LEAKY_RELU_FROM_X) return through_leaky(dy, c.pre_not_positive(x, k), slope);
    else if constexpr (grad == LEAKY_RELU_FROM_Y) return through_leaky(dy, saved <= A(0), slope);
    else {
        static_assert(grad == NO_ACTIVATION, "each ActivationGrad has a formula");
        return dy;
    }
}

}  // namespace
