// The module xhat._kernels: converts the arguments of a call, and runs it without the interpreter's lock.
//
// xhat.ops has checked everything already. Here only codes are checked, which would otherwise index beyond a table.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/call.h"
#include "engine/threads.h"

namespace nb = nanobind;
using namespace xhat;

namespace {

using Sizes = std::array<std::ptrdiff_t, 3>;

// An int is an address (a torch tensor's data_ptr), None is no array; anything else exports a buffer. The caller
// keeps the object alive, and nothing else may write to it during the call.
void* address(nb::handle h) {
    if (h.is_none()) return nullptr;
    if (PyLong_Check(h.ptr())) {
        void* p = PyLong_AsVoidPtr(h.ptr());
        if (!p && PyErr_Occurred()) throw nb::python_error();
        return p;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(h.ptr(), &view, PyBUF_STRIDES) != 0) throw nb::python_error();
    void* p = view.buf;
    PyBuffer_Release(&view);
    return p;
}

Dtype dtype_of(int code) {
    if (code < 0 || code >= DTYPES) throw nb::value_error("unknown dtype code");
    return Dtype(code);
}

// A vector with one element per channel: float64 in place or, given as (address, dtype), converted to a float64 copy.
// `store` writes the copy back, rounded.
class ChannelVector {
  public:
    ChannelVector(nb::handle h, std::size_t count) {
        if (!PyTuple_Check(h.ptr())) {
            at_ = static_cast<double*>(address(h));
            return;
        }
        const auto [object, code] = nb::cast<std::pair<nb::object, int>>(h);
        original_ = address(object), dtype_ = dtype_of(code);
        copy_.resize(count);
        kernels().of[dtype_].widen(original_, 1, count, copy_.data());
        at_ = copy_.data();
    }
    double* at() const { return at_; }
    void store() const {
        if (original_) kernels().of[dtype_].narrow(copy_.data(), original_, 1, copy_.size());
    }

  private:
    double* at_ = nullptr;
    void* original_ = nullptr;
    Dtype dtype_ = FLOAT64;
    std::vector<double> copy_;
};

// From (address or buffer, strides), or None.
Array array(nb::handle h) {
    if (h.is_none()) return {nullptr, 0, 0, 0};
    const auto [object, strides] = nb::cast<std::pair<nb::object, Sizes>>(h);
    return {address(object), strides[0], strides[1], strides[2]};
}

Activation activation_of(int code) {
    if (code < 0 || code >= ACTIVATIONS) throw nb::value_error("unknown activation code");
    return Activation(code);
}

ActivationGrad activation_grad_of(int code) {
    if (code < 0 || code >= ACTIVATION_GRADS) throw nb::value_error("unknown activation_grad code");
    return ActivationGrad(code);
}

Call call_on(int dtype, const Sizes& shape, const Array& x, nb::handle weights) {
    Call call{};
    call.dtype = dtype_of(dtype);
    call.outer = std::size_t(shape[0]), call.channels = std::size_t(shape[1]), call.inner = std::size_t(shape[2]);
    call.x = x;
    call.weights = static_cast<double*>(address(weights));
    call.m = call.divisor = INFINITY;
    return call;
}

// The codes of an enum, by name.
template <std::size_t n> nb::dict codes(const char* const (&names)[n]) {
    nb::dict codes;
    for (std::size_t code = 0; code < n; code++) codes[names[code]] = code;
    return codes;
}

// ------------------------------------------------------------------------------------------------- docstrings

constexpr const char* MODULE = R"(The compiled kernels. xhat.ops is their only caller, and has checked all arguments.

Arrays share a view of shape (outer, channels, inner). Each is given as a pair (address or buffer, strides), where the
strides are those of the view's three axes, counted in elements. A vector has one element per channel: an address or
buffer of float64, or a pair (address or buffer, dtype code). The caller keeps all of them alive during the call.)";

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
    Call call = call_on(dtype, shape, array(x), weights);
    call.reduce = reduce, call.map = map;
    const ChannelVector g(gamma, call.channels), b(beta, call.channels), mu(mean, call.channels), v(var, call.channels);
    call.gamma = g.at(), call.beta = b.at();
    call.saved = array(residual), call.out = array(y);
    call.mean = mu.at(), call.var = v.at();
    call.divisor = divisor, call.eps = eps;
    call.activation = activation_of(activation), call.slope = slope;
    run(forward, call);
}

void run_backward(bool reduce, bool map, int dtype, Sizes shape, nb::handle x, nb::handle weights, nb::handle gamma,
                  nb::handle beta, nb::handle dy, nb::handle saved, nb::handle dx, nb::handle dresidual, nb::handle mean,
                  nb::handle var, nb::handle sum_dy, nb::handle sum_dy_xhat, double count, double divisor, double eps,
                  int activation_grad, double slope) {
    const DefaultFloatMode mode;
    Call call = call_on(dtype, shape, array(x), weights);
    call.reduce = reduce, call.map = map;
    const ChannelVector g(gamma, call.channels), b(beta, call.channels), mu(mean, call.channels), v(var, call.channels);
    const ChannelVector s(sum_dy, call.channels), t(sum_dy_xhat, call.channels);
    call.gamma = g.at(), call.beta = b.at();
    call.dy = array(dy), call.saved = array(saved), call.out = array(dx), call.dresidual = array(dresidual);
    call.mean = mu.at(), call.var = v.at();
    call.sum_dy = s.at(), call.sum_dy_xhat = t.at();
    call.m = count, call.divisor = divisor, call.eps = eps;
    call.activation_grad = activation_grad_of(activation_grad), call.slope = slope;
    run(backward, call);
    s.store(), t.store();
}

void track(std::size_t channels, nb::handle mean, nb::handle var, nb::handle batches, nb::handle batch, double weight,
           double factor) {
    const ChannelVector mu(mean, channels), v(var, channels);
    const double* found = static_cast<double*>(address(batch));
    for (std::size_t c = 0; c < channels; c++) {
        mu.at()[c] += weight * (found[c] - mu.at()[c]);
        v.at()[c] += weight * (factor * found[channels + c] - v.at()[c]);
    }
    mu.store(), v.store();
    if (void* count = address(batches)) ++*static_cast<std::int64_t*>(count);
}

std::vector<std::string> isa_available() {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < isa_count(); i++) names.emplace_back(isa_name(i));
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
