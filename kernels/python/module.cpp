// The module xhat._kernels: converts the arguments of a call, and runs it without the interpreter's lock.
//
// xhat.ops and xhat.torch check what a user gives. This is the last gate, for plans, contexts and storages that were
// changed since: codes, which would index beyond a table, and every array against its memory (arguments.h).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "engine/call.h"
#include "engine/threads.h"
#include "python/arguments.h"

using namespace xhat;

namespace {

Activation activation_of(int code) {
    if (code < 0 || code >= ACTIVATIONS) throw nb::value_error("unknown activation code");
    return Activation(code);
}

ActivationGrad activation_grad_of(int code) {
    if (code < 0 || code >= ACTIVATION_GRADS) throw nb::value_error("unknown activation_grad code");
    return ActivationGrad(code);
}

Call call_on(int dtype, const Sizes& shape, nb::handle x, nb::handle weights) {
    double size = 1;
    for (const std::ptrdiff_t n : shape) {
        if (n < 0) refuse("shape", "has a negative size");
        size *= double(n);
    }
    if (size > 0x1p53) refuse("shape", "has more elements than any memory");
    Call call{};
    call.dtype = dtype_of(dtype);
    call.outer = std::size_t(shape[0]), call.channels = std::size_t(shape[1]), call.inner = std::size_t(shape[2]);
    call.x = array(x, call, "x");
    call.weights = static_cast<double*>(elements(weights, call.outer * call.inner, sizeof(double), "weights"));
    call.m = call.divisor = INFINITY;
    return call;
}

// Refuses a call without an array that its kernels would read or write.
void need(const Call& call, std::initializer_list<const void*> addresses) {
    for (const void* at : addresses)
        if (!at && call.size()) throw nb::index_error("an array is missing");
}

// The codes of an enum, by name.
template <std::size_t n> nb::dict codes(const char* const (&names)[n]) {
    nb::dict codes;
    for (std::size_t code = 0; code < n; code++) codes[names[code]] = code;
    return codes;
}

// ------------------------------------------------------------------------------------------------- docstrings

constexpr const char* MODULE = R"(The compiled kernels. Their callers, xhat.ops and xhat.torch.cpu, check what a user gives.

Arrays share a view of shape (outer, channels, inner). Each is given as (memory, strides), where the strides are those
of the view's three axes, counted in elements. A vector has one element per channel: a memory of float64, or
(memory, dtype code). A memory is an object that exports a buffer, a torch tensor, or (address, bytes). The caller keeps
it alive during the call. Raises IndexError, before anything is written, where a call would leave it.)";

constexpr const char* FORWARD = R"(moments, normalize, or both, of one batch.

    mean = sum w x / m      var = sum w (x - mean)^2 / divisor
    y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual])

reduce: compute mean and var from x; otherwise they are inputs. map: write y.
dtype: the code of the arrays' dtype, see DTYPES. shape: of the view (outer, channels, inner).
x: array. weights: w, outer * inner contiguous elements of float64; None: all 1.
gamma, beta: vectors; None: 1 and 0. residual: array or None. y: array, may be x; None without `map`.
mean, var: vectors of float64, written if `reduce` is true.
divisor: m - correction, where m = sum w; 1 gives m2 in place of var. eps: added to var.
activation: a code of ACTIVATIONS. slope: of leaky_relu below zero (0: relu).)";

constexpr const char* BACKWARD = R"(gradient_sums, input_gradient, or both, of one batch.

    g = dy act'(pre)      sum_dy = sum g      sum_dy_xhat = sum g xhat      dresidual = g
    dx = gamma rstd (g - w sum_dy / count - w xhat sum_dy_xhat / divisor)

reduce: compute sum_dy and sum_dy_xhat; otherwise they are inputs. map: write dx and dresidual.
dtype, shape, x, weights, gamma, beta, eps, slope: as in forward.
dy: array. saved: array that act' needs besides x, if any: y or the residual, see activation_grad.
dx: array, may be dy; None without `map`. dresidual: array, written if `saved` is given; else None.
mean, var: vectors, those of the forward pass. sum_dy, sum_dy_xhat: vectors, written if `reduce` is true.
count, divisor: m = sum w, and m - correction; infinite if mean and var are constants: then dx = gamma rstd g.
activation_grad: a code of ACTIVATION_GRADS: the activation, and the arrays from which act'(pre) is recomputed.)";

constexpr const char* TRACK = R"(Moves running statistics towards those of a batch.

    mean += weight (batch[0] - mean)      var += weight (factor batch[1] - var)      batches += 1

channels: their number C. mean, var: vectors. batches: one int64; None: not counted.
batch: (2, C) contiguous float64, mean and var of the batch. weight: of the batch, 0 to 1 (torch's momentum).
factor: what makes batch[1] the variance that is tracked, e.g. m / (m - 1).)";

template <class F> void run(F pass, const Call& call) {
    const int threads = max_threads();
    nb::gil_scoped_release release;
    pass(call, threads);
}

void run_forward(bool reduce, bool map, int dtype, Sizes shape, nb::handle x, nb::handle weights, nb::handle gamma,
                 nb::handle beta, nb::handle residual, nb::handle y, nb::handle mean, nb::handle var, double divisor,
                 double eps, int activation, double slope) {
    const DefaultFloatMode mode;
    Call call = call_on(dtype, shape, x, weights);
    call.reduce = reduce, call.map = map;
    const ChannelVector g(gamma, call.channels, "gamma"), b(beta, call.channels, "beta");
    const ChannelVector mu(mean, call.channels, "mean"), v(var, call.channels, "var");
    call.gamma = g.at(), call.beta = b.at();
    call.saved = array(residual, call, "residual"), call.out = array(y, call, "y", true);
    call.mean = mu.at(), call.var = v.at();
    call.divisor = divisor, call.eps = eps;
    call.activation = activation_of(activation), call.slope = slope;
    need(call, {call.x.at, call.mean, call.var});
    if (map) need(call, {call.out.at});
    run(forward, call);
}

void run_backward(bool reduce, bool map, int dtype, Sizes shape, nb::handle x, nb::handle weights, nb::handle gamma,
                  nb::handle beta, nb::handle dy, nb::handle saved, nb::handle dx, nb::handle dresidual, nb::handle mean,
                  nb::handle var, nb::handle sum_dy, nb::handle sum_dy_xhat, double count, double divisor, double eps,
                  int activation_grad, double slope) {
    const DefaultFloatMode mode;
    Call call = call_on(dtype, shape, x, weights);
    call.reduce = reduce, call.map = map;
    const ChannelVector g(gamma, call.channels, "gamma"), b(beta, call.channels, "beta");
    const ChannelVector mu(mean, call.channels, "mean"), v(var, call.channels, "var");
    const ChannelVector s(sum_dy, call.channels, "sum_dy"), t(sum_dy_xhat, call.channels, "sum_dy_xhat");
    call.gamma = g.at(), call.beta = b.at();
    call.dy = array(dy, call, "dy"), call.saved = array(saved, call, "saved");
    call.out = array(dx, call, "dx", true), call.dresidual = array(dresidual, call, "dresidual", true);
    call.mean = mu.at(), call.var = v.at();
    call.sum_dy = s.at(), call.sum_dy_xhat = t.at();
    call.m = count, call.divisor = divisor, call.eps = eps;
    call.activation_grad = activation_grad_of(activation_grad), call.slope = slope;
    need(call, {call.x.at, call.dy.at, call.mean, call.var, call.sum_dy, call.sum_dy_xhat});
    if (map) need(call, {call.out.at});
    if (reads_saved(call.activation_grad)) need(call, {call.saved.at, map ? call.dresidual.at : call.saved.at});
    run(backward, call);
    s.store(), t.store();
}

void track(std::size_t channels, nb::handle mean, nb::handle var, nb::handle batches, nb::handle batch, double weight,
           double factor) {
    const ChannelVector mu(mean, channels, "running_mean"), v(var, channels, "running_var");
    const auto* found = static_cast<double*>(elements(batch, 2 * channels, sizeof(double), "batch"));
    auto* count = static_cast<std::int64_t*>(elements(batches, 1, sizeof(std::int64_t), "num_batches_tracked"));
    if (channels && !(mu.at() && v.at() && found)) throw nb::index_error("an array is missing");
    for (std::size_t c = 0; c < channels; c++) {
        mu.at()[c] += weight * (found[c] - mu.at()[c]);
        v.at()[c] += weight * (factor * found[channels + c] - v.at()[c]);
    }
    mu.store(), v.store();
    if (count) ++*count;
}

std::vector<std::string> isa_available() {
    std::vector<std::string> names(isa_count());
    for (std::size_t i = 0; i < names.size(); i++) names[i] = isa_name(i);
    return names;
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = MODULE;

    m.attr("DTYPES") = codes(DTYPE_NAMES);
    m.attr("ACTIVATIONS") = codes(ACTIVATION_NAMES);
    m.attr("ACTIVATION_GRADS") = codes(ACTIVATION_GRAD_NAMES);

    m.def("forward", &run_forward, nb::arg("reduce"), nb::arg("map"), nb::arg("dtype"), nb::arg("shape"), nb::arg("x"),
          nb::arg("weights").none(), nb::arg("gamma").none(), nb::arg("beta").none(), nb::arg("residual").none(),
          nb::arg("y").none(), nb::arg("mean"), nb::arg("var"), nb::arg("divisor"), nb::arg("eps"),
          nb::arg("activation"), nb::arg("slope"), FORWARD);
    m.def("backward", &run_backward, nb::arg("reduce"), nb::arg("map"), nb::arg("dtype"), nb::arg("shape"), nb::arg("x"),
          nb::arg("weights").none(), nb::arg("gamma").none(), nb::arg("beta").none(), nb::arg("dy"),
          nb::arg("saved").none(), nb::arg("dx").none(), nb::arg("dresidual").none(), nb::arg("mean"), nb::arg("var"),
          nb::arg("sum_dy"), nb::arg("sum_dy_xhat"), nb::arg("count"), nb::arg("divisor"), nb::arg("eps"),
          nb::arg("activation_grad"), nb::arg("slope"), BACKWARD);
    m.def("track", &track, nb::arg("channels"), nb::arg("mean"), nb::arg("var"), nb::arg("batches").none(),
          nb::arg("batch"), nb::arg("weight"), nb::arg("factor"), TRACK);

    m.def("isa", [] { return std::string(isa_in_use()); }, "The instruction set in use.");
    m.def("isa_available", &isa_available, "The instruction sets that this machine can run, best first.");
    m.def("use_isa", [](const std::string& name) { return use_isa(name.c_str()); }, nb::arg("name"),
          "Forces an instruction set. False if the name is unknown or this machine can't run it.");
    m.def("threads", &max_threads, "How many threads the next call would use.");
}
