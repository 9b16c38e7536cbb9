// From statistics to the coefficients of the equations: the arithmetic that is done once per channel, in double.
#pragma once
#include "cache_line.h"
#include "engine/call.h"

#include <algorithm>
#include <cmath>
#include <memory>

namespace xhat {

// The coefficients of one channel (table.h has their equations). While the gradient sums are still being computed, they
// are given as 0.
struct ChannelCoefficients {
    double m, mu, scale, beta, slope, mean_g, through_var;

    ChannelCoefficients(const Call& call, std::size_t c, double mean, double var, double sum_dy, double sum_dy_xhat) {
        const double rstd = 1 / std::sqrt(var + call.eps);
        m = call.m;
        mu = mean;
        scale = (call.gamma ? call.gamma[c] : 1) * rstd;
        beta = call.beta ? call.beta[c] : 0;
        slope = call.slope;
        mean_g = std::isinf(call.m) ? 0 : sum_dy / call.m;
        // scale * rstd may be infinite in a constant channel, where sum_dy_xhat is 0: multiply from the right.
        through_var = std::isinf(call.m) ? 0 : scale * (rstd * (sum_dy_xhat / call.divisor));
    }

    // Whether float arithmetic is accurate: no coefficient comes near the ends of float's range. NaN and infinity pass,
    // since they are the same in any arithmetic.
    bool fits_float() const {
        return pre_fits_float(mu, scale, beta, slope) && moderate(m) && moderate(mean_g) && moderate(through_var);
    }
    // The same for the coefficients of the forward pass, which alone decide in which arithmetic pre is evaluated, in
    // both passes: an element of relu is on the same side in both.
    static bool pre_fits_float(double mu, double scale, double beta, double slope) {
        return !exceeds(beta, 1e30) && !exceeds(slope, 1e30) && moderate(mu) && moderate(scale);
    }

  private:
    static bool exceeds(double v, double limit) { return std::fabs(v) > limit && std::fabs(v) < INFINITY; }
    static bool moderate(double v) { return !exceeds(v, 1e30) && (v == 0 || !(std::fabs(v) < 1e-30)); }
};

constexpr std::size_t COEFFICIENTS = 7;  // arrays of Coefficients

// The coefficients of `count` channels or columns in the arithmetic type of a kernel, as COEFFICIENTS arrays in
// `space`.
template <class A> struct CoefficientArrays {
    A* space;
    std::size_t count;

    // Sets places [first, first + n) to the coefficients of one channel.
    void set(std::size_t first, std::size_t n, const ChannelCoefficients& c) const {
        const A hi = A(c.mu), lo = A(c.mu - double(hi));
        const A g_hi = A(c.mean_g);
        const double low_terms = c.through_var * (c.mu - double(hi)) - c.scale * (c.mean_g - double(g_hi));
        const A values[COEFFICIENTS] = {hi, lo, A(c.scale), A(c.beta), g_hi, A(c.through_var), A(low_terms)};
        for (std::size_t k = 0; k < COEFFICIENTS; k++) {
            if (n == 1) array(k)[first] = values[k];
            else std::fill_n(array(k) + first, n, values[k]);
        }
    }
    // What a kernel reads, from place i on.
    Coefficients from(std::size_t i = 0) const {
        return {array(0) + i, array(1) + i, array(2) + i, array(3) + i, array(4) + i, array(5) + i, array(6) + i};
    }

  private:
    A* array(std::size_t k) const { return space + k * count; }
};

// Memory for the coefficients of `count` columns in either arithmetic type, aligned such that those of column `first`
// begin a cache line.
class CoefficientBuffer {
  public:
    CoefficientBuffer(std::size_t count, std::size_t first)
        : width_((count + LANES - 1) / LANES * LANES), before_((LANES - first % LANES) % LANES),
          space_(new double[COEFFICIENTS * width_ + 2 * LANES]) {}
    template <class A> CoefficientArrays<A> of() const {
        double* const aligned = space_.get() + bytes_to_line(space_.get()) / sizeof(double);
        return {reinterpret_cast<A*>(aligned) + before_, width_};
    }

  private:
    std::size_t width_, before_;
    std::unique_ptr<double[]> space_;
};

}  // namespace xhat
