// From running sums to moments, once per channel and in double: when sums are accurate, and how they are merged.
//
// There are three precisions of sums (Precision in pass.h). The fast ones are cheaper by a half, and accurate for
// ordinary data: float32 sums are taken about zero, without a shift, and 16-bit formats add eight terms in float
// before they widen. Each has a condition that bounds its error, which is checked here from the sums themselves. If
// it does not hold, the engine computes the sums again with more precision.
#pragma once
#include <cmath>

namespace xhat {

// Uncentered sums cancel if x is far from zero: m2 = sum x^2 - (sum x)^2 / m, and likewise sum g (x - mu) = sum g x -
// mu sum g. Up to mu^2 = 15 var, cancellation costs at most four of a double's 53 bits. False for NaN and infinity.
constexpr double NEAR_ZERO = 15;
inline bool near_zero(double mu, double var) { return mu * mu <= NEAR_ZERO * var; }

// Two sums of a piece of a channel: sum w (x - shift) and sum w (x - shift)^2, or sum g and sum g (x - shift).
struct Sums {
    double sum = 0, product = 0;

    // sum g (x - mu)
    double product_about(double mu, double shift) const {
        return mu == shift ? product : product - (mu - shift) * sum;
    }

    // near_zero of mu = sum / m and var = product / m - mu^2, multiplied by m^2 to avoid divisions.
    bool accurate_uncentered_moments(double m) const {
        return (1 + NEAR_ZERO) * sum * sum <= NEAR_ZERO * m * product && product < INFINITY;
    }

    // Float partial sums (16-bit formats). With u = 2^-24, each term is off by u (x - shift), 2 u (g (x - mu)) or 3 u
    // ((x - shift)^2), and the pairwise addition of eight by 3 u; rounding x and dy to 16 bits did far more. So m2 =
    // product - sum^2 / m is accurate unless
    //   - most of the squares cancel; if a third is left, the error is at most 18 u = 1.1e-6 of m2;
    //   - a square overflowed, or was lost below the range of float.
    // If all squares are zero, so is every x - shift, provided that shift itself is within float's range.
    bool accurate_moments(double m, double shift) const {
        if (sum == 0 && product == 0) return shift == 0 || std::fabs(shift) > 1e-15;
        return product > 1e-30 * m && product < 1e35 && product - sum * (sum / m) >= product / 3;
    }
    // The same for sum g and sum g (x - mu). A zero product is right in a constant channel, or if all g are zero.
    bool accurate_gradients(double m, double var) const {
        if (product == 0) return sum == 0 || var == 0;
        return std::fabs(product) > 1e-30 * m && std::fabs(product) < 1e35 && std::fabs(sum) < 1e35;
    }
    // Centered moments: whether more than 6 of a double's 53 bits cancel, because the shift is an outlier.
    bool cancels(double m) const { return product - sum * (sum / m) < product / 64; }
};

// m = sum w, mu + rest = sum w x / m and m2 = sum w (x - mu)^2 of a part of a channel. `rest` is what rounding the mean
// to a double has left over. m2 is NaN if a square overflowed.
struct Moments {
    double m = 0, mu = 0, m2 = 0, rest = 0;

    static Moments from(double m, double shift, const Sums& s) {
        if (m == 0) return {};
        const double delta = s.sum / m;
        const double m2 = s.product - s.sum * delta;
        Moments found{m, shift, m2 < 0 ? 0 : finite(m2)};
        found.move(delta);
        return found;
    }
    // Chan, Golub and LeVeque 1979. The order of merges is part of the result.
    void merge(const Moments& b) {
        if (b.m == 0) return;
        if (m == 0) { *this = b; return; }
        const double total = m + b.m, delta = b.mu - mu;
        rest += (b.rest - rest) * (b.m / total);
        move(delta * (b.m / total));
        m2 = finite(m2 + (b.m2 + delta * delta * (m * (b.m / total))));
        m = total;
    }

  private:
    static double finite(double m2) { return m2 < INFINITY ? m2 : NAN; }
    // Adds to the mean; what is lost by rounding is added to the rest (Knuth's exact sum).
    void move(double delta) {
        const double sum = mu + delta, added = sum - mu;
        rest += (mu - (sum - added)) + (delta - added);
        mu = sum;
    }
};

// From this many deviations from zero on, rounding the mean to a double costs digits of dx, if dy is far from zero too:
// sum g (x - mu) is off by the rest of the mean times sum g.
inline bool far_from_zero(double mu, double var) { return mu * mu > 1e6 * var; }

}  // namespace xhat
