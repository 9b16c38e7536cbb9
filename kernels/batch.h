// One call: a batch of arrays with one view (outer, channel, inner), and the two passes over it.
#pragma once
#include "kernels.h"

namespace xhat {

struct Array { void* at; std::ptrdiff_t outer, channel, inner; };  // strides count elements

struct Batch {
    Dtype dtype;
    std::size_t outer, channels, inner;
    Array x, dy, extra, out, dresidual;  // `at` is null where there is none; see Tile
    const double* weights;               // outer * inner, contiguous; null: all 1
    const double *gamma, *beta;          // null: 1, 0
    double m, divisor;                   // sum of weights; m - correction. Infinity: constant statistics
    double eps, slope;
    Activation activation;
    ActivationGrad activation_grad;
    double *mean, *var;                  // forward: written by the reduction, read by the map
    double *sum_dy, *sum_dy_xhat;        // backward: likewise
    bool reduce, map;                    // which halves to run
    std::size_t size() const { return outer * channels * inner; }
};

// moments -> normalize, or either of the two (then var is divided by `divisor`, or taken as it is).
void forward(const Batch& batch, int threads);
// gradient_sums -> input_gradient, or either of the two.
void backward(const Batch& batch, int threads);

}  // namespace xhat
