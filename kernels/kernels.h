// What a kernel sees (a tile), and the table of kernels that every instruction set fills.
//
// A kernel sees one tile and no thread, no shape, no layout. Two traversals cover every layout:
//   lanes     `width` consecutive numbers belong to one channel (NCHW); sums run in LANES fixed lanes
//   columns   `width` consecutive numbers are columns with a term each (NHWC, (N, C)); a sum per column
#pragma once
#include <cstddef>

namespace xhat {

constexpr std::size_t LANES = 16;

// Rows, and channels within a row, of `width` consecutive numbers; strides count elements.
struct Source { const void* at; std::ptrdiff_t row, channel; };
struct Target { void* at; std::ptrdiff_t row, channel; };

// Per channel (lanes) or per column: xhat's two halves of the mean, and the factors of both maps.
// Each points to numbers of the arithmetic type.
struct Terms {
    const void *mu_hi, *mu_lo;  // mu = mu_hi + mu_lo
    const void *scale, *beta;   // gamma rstd, beta
    const void* kink;           // kink.h; backward behind leaky_relu alone
    const void *through_mu;     // scale sum_dy / m
    const void *through_var;    // scale rstd sum_dy_xhat / (m - c)
};

struct Tile {
    std::size_t rows, channels, width;
    Source x, dy, extra;           // extra: the residual, or y where its sign tells the activation's side
    Target out, dresidual;         // out: y or dx
    const double* weights;         // of each number of a row (lanes) or of each row (columns)
    std::ptrdiff_t weights_row;
    const double* origin;          // what is subtracted before summing: per channel or column
    double *sum, *sum_product;     // running sums: LANES per channel, or one per column
    Terms terms;
    double slope;                  // of leaky_relu below zero
    bool staged;                   // write through a buffer: `out` may be `x` or `dy` itself
    bool stream;                   // and past the caches
    bool near;                     // all arrays of the pass are in the caches: nothing is asked for
    bool cached;                   // lanes: what a map reads was read a moment ago
    std::size_t following;         // lanes: so many channels on is the block that is reduced next; 0: none
};

// The codes that Python passes are the values of these enums; module.cpp exports them under the names beside them.
enum Activation { IDENTITY, LEAKY_RELU, SILU, ACTIVATIONS };
constexpr const char* ACTIVATION_NAMES[ACTIVATIONS] = {"none", "leaky_relu", "silu"};

// act'(pre) in the backward pass, and the arrays from which it is recomputed. pre itself is not saved.
enum ActivationGrad {
    NO_ACTIVATION,
    LEAKY_RELU_FROM_X,         // pre = scale (x - mu) + beta
    LEAKY_RELU_FROM_Y,         // with a residual: y has the sign of pre
    SILU_FROM_X,               // pre = scale (x - mu) + beta
    SILU_FROM_X_AND_RESIDUAL,  // pre = scale (x - mu) + beta + residual
    ACTIVATION_GRADS
};
constexpr const char* ACTIVATION_GRAD_NAMES[ACTIVATION_GRADS] = {
    "none", "leaky_relu_from_x", "leaky_relu_from_y", "silu_from_x", "silu_from_x_and_residual"};

// Of whom mu and var are the moments, and so what of dx goes through them: all numbers alike, each by its weight, or none.
enum Paths { EVERY_NUMBER, WEIGHTED, CONSTANT, PATHS };

using Kernel = void (*)(const Tile&);

struct RawKernels {  // sums about zero; null but for float32
    Kernel moments[2];
    Kernel gradient_sums[2][ACTIVATION_GRADS];
};

struct KernelsOf {  // the kernels of one dtype; first index: 0 lanes, 1 columns
    Kernel moments[2][2];                       // [weighted]
    Kernel moments_alone[2];                    // in double from the start, without weights
    RawKernels raw;
    Kernel normalize[2][ACTIVATIONS][2];        // [activation][residual]
    Kernel gradient_sums[2][ACTIVATION_GRADS][2];          // [activation_grad][weighted]
    Kernel input_gradient[2][ACTIVATION_GRADS][PATHS];     // [activation_grad][paths]
    void (*widen)(const void* from, std::ptrdiff_t stride, std::size_t count, double* to);
    void (*narrow)(const double* from, void* to, std::ptrdiff_t stride, std::size_t count);
};

enum Dtype { FLOAT64, FLOAT32, FLOAT16, BFLOAT16, DTYPES };
constexpr const char* DTYPE_NAMES[DTYPES] = {"float64", "float32", "float16", "bfloat16"};
constexpr std::size_t SIZE_OF[DTYPES] = {8, 4, 2, 2};

struct Kernels { KernelsOf of[DTYPES]; };

// dispatch.cpp
const Kernels& kernels();                 // the table in use
const char* isa_in_use();
std::size_t isa_count();                  // those this machine can run, best first
const char* isa_name(std::size_t index);
bool use_isa(const char* name);           // false: unknown, or this machine can't run it

}  // namespace xhat
