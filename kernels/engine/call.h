// One call from Python: arrays that share a view (outer, channel, inner), and the two passes over them.
#pragma once
#include "isa/table.h"

namespace xhat {

// The address of the first element (null: there is no such array), and the strides of the view in elements.
struct Array { void* at; std::ptrdiff_t outer, channel, inner; };

struct Call {
    Dtype dtype;                         // of all arrays of the view
    std::size_t outer, channels, inner;  // the shape of the view
    bool reduce, map;                    // which halves to run. Without `reduce`, its results are inputs of the map

    Array x, dy;
    Array saved;           // forward: the residual. Backward: what act' needs besides x: y or the residual
    Array out, dresidual;  // out: y or dx
    const double* weights; // w: outer * inner elements, contiguous; null: all 1

    // One element per channel; gamma and beta may be null, for 1 and 0.
    const double *gamma, *beta;
    double *mean, *var;           // results of the forward reduction; inputs of everything else
    double *sum_dy, *sum_dy_xhat; // results of the backward reduction: dbeta and dgamma
    double* rest;                 // of the mean, beyond double (moments.h). Forward: a result; backward: an input. Or null

    double m, divisor;  // m = sum w, and m - correction. Infinite: mean and var are constants (evaluation)
    double eps;
    Activation activation;          // forward
    ActivationGrad activation_grad; // backward
    double slope;                   // of leaky_relu below zero

    std::size_t size() const { return outer * channels * inner; }
};

// moments, normalize, or both (see Call::reduce). The reduction divides m2 by `divisor` to get var.
void forward(const Call& call, int threads);
// gradient_sums, input_gradient, or both.
void backward(const Call& call, int threads);

}  // namespace xhat
