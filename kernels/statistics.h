// From running sums to statistics, and from statistics to the terms of the maps: the scalar part of the
// equations, once per channel, in double.
#pragma once
#include "batch.h"
#include "kink.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>

namespace xhat {

// Raw sums are made of x itself, about zero, and cancel where x lies far from it: m2 = sum x^2 - sum^2 / m, and likewise
// sum g (x - mu) = sum g x - mu sum g. Up to here that costs at most four of a double's 53 bits. NaN and infinity do not.
constexpr double NEAR_ZERO = 15;
inline bool near_zero(double mu, double var) { return mu * mu <= NEAR_ZERO * var; }

// The sums of a part of a channel. Of 16-bit numbers, kernels add eight terms in float32, pairwise, before they meet a
// double. With u = 2^-24, the terms are then off by u (x - origin), 2 u (g (x - mu)) or 3 u ((x - origin)^2), and their
// additions by 3 u: far less than rounding x and dy to 16 bits did to the sums. What that leaves to be asked is here;
// where the answer is no, the sums are made once more in double.
struct Sums {
    double sum = 0, product = 0;

    // What the product is about mu, made about `origin`.
    double product_about(double mu, double origin) const {
        return mu == origin ? product : product - (mu - origin) * sum;
    }
    // near_zero of mu = sum / m and var = product / m - mu^2, times m^2: no division.
    bool sure_raw_moments(double m) const {
        return (1 + NEAR_ZERO) * sum * sum <= NEAR_ZERO * m * product && product < INFINITY;
    }
    // m2 = squares - sum^2 / m: with two thirds of the squares cancelled, 18 u = 1.1e-6 off at the very worst. No square
    // may have overflowed or, beside the others, have been lost below float32's range. Where every square is zero, so is
    // every x - origin: the origin is far above what float32 could lose, or zero, as every sample was.
    bool sure_moments(double m, double origin) const {
        if (sum == 0 && product == 0) return origin == 0 || std::fabs(origin) > 1e-15;
        return product > 1e-30 * m && product < 1e35 && product - sum * (sum / m) >= product / 3;
    }
    // The same of sum g and sum g (x - mu), which is zero in a constant channel, or with sum g where no gradient arrives.
    bool sure_gradients(double m, double var) const {
        if (product == 0) return sum == 0 || var == 0;
        return std::fabs(product) > 1e-30 * m && std::fabs(product) < 1e35 && std::fabs(sum) < 1e35;
    }
};

// Moments of a part of a channel; folding is Chan's formula, in the order of the parts.
struct Moments {
    double m = 0, mu = 0, m2 = 0;

    // s.sum = sum w (x - origin), s.product = sum w (x - origin)^2
    static Moments of(double m, double origin, const Sums& s) {
        if (m == 0) return {};
        const double shift = s.sum / m;
        const double m2 = s.product - s.sum * shift;
        return {m, origin + shift, m2 < 0 ? 0 : m2};
    }
    void fold(const Moments& b) {
        if (b.m == 0) return;
        if (m == 0) { *this = b; return; }
        const double total = m + b.m, delta = b.mu - mu;
        mu += delta * (b.m / total);
        m2 += b.m2 + delta * delta * (m * (b.m / total));
        m = total;
    }
};

// var of the batch; and dgamma, of sum g (x - mu).
inline double variance(const Batch& b, const Moments& moments) { return moments.m2 / b.divisor; }
inline double through_xhat(const Batch& b, double product, double var) { return product / std::sqrt(var + b.eps); }

inline double sum_of_weights(const Batch& b, std::size_t first, std::size_t last) {
    if (!b.weights) return double(last - first);
    double m = 0;
    for (std::size_t i = first; i < last; i++) m += b.weights[i];
    return m;
}

// The place in [first, last) of the largest weight: its value is what moments subtracts, so that an outlier that
// hardly counts can't cancel the digits of the others.
inline std::size_t heaviest(const Batch& b, std::size_t first, std::size_t last) {
    std::size_t found = first;
    if (b.weights)
        for (std::size_t i = first; i < last; i++)
            if (b.weights[i] > b.weights[found]) found = i;
    return found;
}

// How many numbers of this size lie between an address and the next cache line.
inline std::size_t to_line(const void* at, std::size_t size) {
    constexpr std::size_t line = 64;
    return (line - reinterpret_cast<std::uintptr_t>(at) % line) % line / size;
}

// The factors of both maps for one channel. The gradient sums are zero while they are still being computed.
struct Factors {
    double m, mu, scale, beta, slope, through_mu, through_var;
    bool bends;  // the backward pass asks on which side of relu's kink x lies

    Factors(const Batch& b, std::size_t c, double mean, double var, double sum_dy, double sum_dy_xhat) {
        const double rstd = 1 / std::sqrt(var + b.eps);
        bends = b.dy.at && b.activation_grad == LEAKY_RELU_FROM_X;
        m = b.m;
        mu = mean;
        scale = (b.gamma ? b.gamma[c] : 1) * rstd;
        beta = b.beta ? b.beta[c] : 0;
        slope = b.slope;
        through_mu = std::isinf(b.m) ? 0 : scale * (sum_dy / b.m);
        // From the right: scale rstd may be infinite in a constant channel, where the sum is zero.
        through_var = std::isinf(b.m) ? 0 : scale * (rstd * (sum_dy_xhat / b.divisor));
    }

    // Float arithmetic is right while nothing comes near the ends of its range. (NaN and infinity stay what they
    // are in any arithmetic.)
    bool fits_float() const {
        return !beyond(beta, 1e30) && !beyond(slope, 1e30) && moderate(m) && moderate(mu) && moderate(scale) &&
               moderate(through_mu) && moderate(through_var);
    }

  private:
    static bool beyond(double v, double limit) { return std::fabs(v) > limit && std::fabs(v) < INFINITY; }
    static bool moderate(double v) { return !beyond(v, 1e30) && (v == 0 || !(std::fabs(v) < 1e-30)); }
};

// The factors of many channels or columns in the arithmetic type of a kernel; `space` holds FACTORS * count.
constexpr std::size_t FACTORS = 7;

template <class A> struct FactorArrays {
    A* space;
    std::size_t count;

    // The factors of a channel at places [first, first + n).
    void set(std::size_t first, std::size_t n, const Factors& f) const {
        const A hi = A(f.mu), lo = A(f.mu - double(hi)), scale = A(f.scale), beta = A(f.beta);
        const A bend = f.bends ? kink(hi, lo, scale, beta) : A(0);
        const A factors[FACTORS] = {hi, lo, scale, beta, bend, A(f.through_mu), A(f.through_var)};
        for (std::size_t k = 0; k < FACTORS; k++) std::fill_n(at(k) + first, n, factors[k]);
    }
    // From the first place on, or a later one.
    Terms terms(std::size_t i = 0) const { return {at(0) + i, at(1) + i, at(2) + i, at(3) + i, at(4) + i, at(5) + i, at(6) + i}; }

  private:
    A* at(std::size_t k) const { return space + k * count; }
};

// Room for the factors of `count` columns in either type, and up to LANES more, of which those of column `first` begin a
// cache line.
class FactorSpace {
  public:
    FactorSpace(std::size_t count, std::size_t first)
        : width_((count + LANES - 1) / LANES * LANES), before_((LANES - first % LANES) % LANES),
          space_(new double[FACTORS * width_ + 2 * LANES]) {}
    template <class A> FactorArrays<A> of() const {
        return {reinterpret_cast<A*>(space_.get() + to_line(space_.get(), sizeof(double))) + before_, width_};
    }

  private:
    std::size_t width_, before_;
    std::unique_ptr<double[]> space_;
};

}  // namespace xhat
