// Where relu bends, as a number of x. pre = scale (x - mu) + beta rises or falls with x also as it is rounded, since every
// step of it does; so one number tells the sides of a whole channel apart, exactly as the forward pass saw them.
//
// Everything is in an anonymous namespace, as in number.h, and for the same reason.
#pragma once
#include "formulas.h"

#include <algorithm>
#include <limits>

namespace {

// Floats in their order, as unsigned integers.
template <class A> struct Ordered {
    using Key = typename Bits<A>::type;
    static constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
    static Key key(A v) {
        const Key u = bits<Key>(v);
        return u & sign ? Key(~u) : Key(u | sign);
    }
    static A number(Key k) { return bits<A>(k & sign ? Key(k ^ sign) : Key(~k)); }
};

// The largest u = rising(x, scale) with pre <= 0; -infinity where there is none.
template <class A> A kink(A hi, A lo, A scale, A beta) {
    using Order = Ordered<A>;
    using Key = typename Order::Key;
    const auto below = [=](Key k) { return before_activation(centred(rising(Order::number(k), scale), hi, lo), scale, beta) <= A(0); };
    constexpr A largest = std::numeric_limits<A>::max();
    const Key least = Order::key(-largest), most = Order::key(largest);
    const A guess = rising(A((hi + lo) - beta / scale), scale);  // within a few units in the last place, mostly
    Key low = Order::key(guess >= -largest && guess <= largest ? guess : A(0)), high = low;
    // Out from the guess in doubled steps, until `low` is below the kink and `high` is not.
    for (Key step = 1; below(high); step *= 2) {
        if (high == most) return largest;
        low = high;
        high += std::min(step, Key(most - high));
    }
    for (Key step = 1; !below(low); step *= 2) {
        if (low == least) return -std::numeric_limits<A>::infinity();
        high = low;
        low -= std::min(step, Key(low - least));
    }
    while (high - low > 1) {
        const Key middle = low + (high - low) / 2;
        (below(middle) ? low : high) = middle;
    }
    return Order::number(low);
}

}  // namespace
