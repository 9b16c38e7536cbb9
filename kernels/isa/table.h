// The interface between the engine and the kernels: a tile, and the table of kernels that each instruction set fills.
//
// A kernel processes one tile of a batch, whatever the threads, shapes and layouts. Two traversals cover every layout:
//
//   lanes     a contiguous run of `width` elements belongs to one channel (NCHW). Its coefficients are scalars, and its
//             sums run in LANES independent accumulators: element i is added to accumulator i % LANES.
//   columns   `width` contiguous elements are columns, each with its own coefficients and sums (NHWC, (N, C)).
//
// This header holds declarations, constants and `static constexpr` functions only. Without `static`, a function that is
// compiled once per instruction set would be a weak symbol (see number.h). The engine includes no other header of isa/.
#pragma once
#include <cstddef>

#include "tuning.h"

namespace xhat {

// ---------------------------------------------------------------------------------------------------- options
//
// Python passes these enums as integers. module.cpp exports the names beside them as dicts, so they are numbered here
// only.

enum Dtype { FLOAT64, FLOAT32, FLOAT16, BFLOAT16, DTYPES };
constexpr const char* DTYPE_NAMES[DTYPES] = {"float64", "float32", "float16", "bfloat16"};
constexpr std::size_t SIZE_OF[DTYPES] = {8, 4, 2, 2};
static_assert(DTYPE_NAMES[DTYPES - 1] && SIZE_OF[DTYPES - 1], "each Dtype has a name and a size");

enum Activation { IDENTITY, LEAKY_RELU, SILU, ACTIVATIONS };
constexpr const char* ACTIVATION_NAMES[ACTIVATIONS] = {"none", "leaky_relu", "silu"};
static_assert(ACTIVATION_NAMES[ACTIVATIONS - 1], "each Activation has a name");

// act'(pre) in the backward pass, and the arrays from which it is recomputed. pre itself is never stored. The loops of
// uncentered_sums.h, and reads_saved, also get ACTIVATION_GRADS, which stands for moments there (MOMENTS).
enum ActivationGrad {
    NO_ACTIVATION,
    LEAKY_RELU_FROM_X,         // pre = scale (x - mu) + beta
    LEAKY_RELU_FROM_Y,         // behind a residual: y has the sign of pre
    SILU_FROM_X,               // pre = scale (x - mu) + beta
    SILU_FROM_X_AND_RESIDUAL,  // pre = scale (x - mu) + beta + residual
    ACTIVATION_GRADS
};
constexpr const char* ACTIVATION_GRAD_NAMES[ACTIVATION_GRADS] = {
    "none", "leaky_relu_from_x", "leaky_relu_from_y", "silu_from_x", "silu_from_x_and_residual"};
static_assert(ACTIVATION_GRAD_NAMES[ACTIVATION_GRADS - 1], "each ActivationGrad has a name");

// Whether act or act' evaluates exp. This decides where g is computed: a loop that evaluates exp and also sums is not
// vectorized, so g is computed first (kernels.cpp), and is kept for the map where possible (Pass::keeps_g).
static constexpr bool takes_exp(Activation activation) { return activation == SILU; }
static constexpr bool takes_exp(ActivationGrad grad) { return grad == SILU_FROM_X || grad == SILU_FROM_X_AND_RESIDUAL; }

// Whether act' is recomputed from Tile::saved, beside x.
static constexpr bool reads_saved(ActivationGrad grad) {
    return grad == LEAKY_RELU_FROM_Y || grad == SILU_FROM_X_AND_RESIDUAL;
}

// Which terms dx has. BATCH: mu and var are moments of the batch, so dx has terms through both. MASKED, WEIGHTED: of
// the weighted batch, so these terms are multiplied by w, which is 0 or 1, or any number. CONSTANT: mu and var are given
// (evaluation); only the direct term is left.
enum Statistics { BATCH, MASKED, WEIGHTED, CONSTANT, STATISTICS };

// ------------------------------------------------------------------------------------------------------- tile

// Arrays of a tile: the first element, and the strides from row to row and from channel to channel, in elements.
struct Source { const void* at; std::ptrdiff_t row, channel; };
struct Target { void* at; std::ptrdiff_t row, channel; };

// Coefficients of the equations, one per channel (lanes) or per column (columns), as arrays of the arithmetic type.
struct Coefficients {
    const void *mu_hi, *mu_lo;  // mu = mu_hi + mu_lo
    const void *scale, *beta;   // scale = gamma rstd
    const void* g_hi;           // sum_dy / m = g_hi + g_lo, the mean of g
    const void* through_var;    // scale rstd sum_dy_xhat / (m - correction)
    const void* low_terms;      // through_var mu_lo - scale g_lo
};

// `rows` rows, in each of them `channels` channels (lanes; 1 for columns), of each `width` contiguous elements.
struct Tile {
    std::size_t rows, channels, width;
    Source x, dy;
    Source saved;               // forward: the residual. Backward: what act' needs besides x: y or the residual
    Target out, dresidual;      // out: y or dx
    const double* weights;      // w of each element of a row (lanes), or of each row (columns)
    std::ptrdiff_t weights_row;
    const double* shift;        // subtracted from x before it is summed; per channel or column
    double *sum, *sum_product;  // running sums: LANES per channel, or one per column
    Coefficients coefficients;
    double slope;               // of leaky_relu below zero
    bool via_buffer;            // write results through a buffer: they are streamed, or `out` may alias `x` or `dy`
    bool stream;                // write results by streaming stores
    bool fits_in_cache;         // all arrays fit in the last-level cache: skip prefetching
    bool input_is_hot;          // lanes: the map's inputs were read a moment ago, so they are in a cache
    // Lanes: the channel offset of the next block, which is prefetched while this one is written. 0: off.
    std::size_t prefetch_next_block;
};

// ------------------------------------------------------------------------------------------------------ table

using Kernel = void (*)(const Tile&);

struct UncenteredKernels {  // sums about zero, see uncentered_sums.h; null except for float32
    Kernel moments[2];
    Kernel gradient_sums[2][ACTIVATION_GRADS];
};

// The kernels of one dtype. The first index is the traversal: 0 lanes, 1 columns.
struct KernelsOf {
    Kernel moments[2][2];                                // [traversal][weighted]
    Kernel moments_in_double[2];                         // without float32 partial sums, without weights
    UncenteredKernels uncentered;
    Kernel normalize[2][ACTIVATIONS][2];                 // [traversal][activation][residual]
    Kernel gradient_sums[2][ACTIVATION_GRADS][2];        // [traversal][activation_grad][weighted]
    Kernel input_gradient[2][ACTIVATION_GRADS][STATISTICS];
    void (*widen)(const void* from, std::ptrdiff_t stride, std::size_t count, double* to);
    void (*narrow)(const double* from, void* to, std::ptrdiff_t stride, std::size_t count);
};

struct Kernels { KernelsOf of[DTYPES]; };

// dispatch.cpp
const Kernels& kernels();                // the table in use
const char* isa_in_use();
std::size_t isa_count();                 // instruction sets that this machine can run
const char* isa_name(std::size_t index); // best first
bool use_isa(const char* name);          // false if `name` is unknown or this machine can't run it

}  // namespace xhat
