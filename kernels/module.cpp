// Python's way in: addresses, sizes and strides, already checked by xhat.ops. Nothing is checked here but what
// would corrupt memory, and the interpreter's lock is released while the kernels run.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "calls.h"

using namespace xhat;

namespace {

// One number per channel: float64 where it lies, or, given as (address, dtype), of any dtype by way of a copy,
// which `store` rounds back into the result that it stands for.
class Numbers {
  public:
    Numbers(nb::handle h, std::size_t count) {
        if (!PyTuple_Check(h.ptr())) {
            at_ = static_cast<double*>(address(h));
            return;
        }
        const auto [object, code] = nb::cast<std::pair<nb::object, int>>(h);
        place_ = address(object), dtype_ = dtype_of(code);
        copy_.resize(count);
        kernels().of[dtype_].widen(place_, 1, count, copy_.data());
        at_ = copy_.data();
    }
    double* at() const { return at_; }
    void store() const {
        if (place_) kernels().of[dtype_].narrow(copy_.data(), place_, 1, copy_.size());
    }

  private:
    double* at_ = nullptr;
    void* place_ = nullptr;
    Dtype dtype_ = FLOAT64;
    std::vector<double> copy_;
};

// (object, strides), or None
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

Batch batch(int dtype, const Sizes& shape, const Array& x, nb::handle weights) {
    Batch b{};
    b.dtype = dtype_of(dtype);
    b.outer = std::size_t(shape[0]), b.channels = std::size_t(shape[1]), b.inner = std::size_t(shape[2]);
    b.x = x;
    b.weights = static_cast<double*>(address(weights));
    b.m = b.divisor = INFINITY;
    return b;
}

// The same for a call that is remembered: strides alone.
Array steps(nb::handle h) {
    if (h.is_none()) return {nullptr, 0, 0, 0};
    const Sizes s = nb::cast<Sizes>(h);
    return {nullptr, s[0], s[1], s[2]};
}

// The codes of an enum, by name.
template <std::size_t n> nb::typed<nb::dict, nb::str, nb::int_> codes(const char* const (&names)[n]) {
    nb::dict codes;
    for (std::size_t code = 0; code < n; code++) codes[names[code]] = code;
    return nb::borrow<nb::typed<nb::dict, nb::str, nb::int_>>(codes);
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "The compiled kernels. Arrays are (address or buffer, strides in elements); xhat.ops is their only caller.";

    m.attr("DTYPES") = codes(DTYPE_NAMES);
    m.attr("ACTIVATIONS") = codes(ACTIVATION_NAMES);
    m.attr("ACTIVATION_GRADS") = codes(ACTIVATION_GRAD_NAMES);

    m.def("forward",
          [](bool reduce, bool map, int dtype, Sizes shape, nb::handle x, nb::handle weights, nb::handle gamma,
             nb::handle beta, nb::handle residual, nb::handle y, nb::handle mean, nb::handle var, double divisor,
             double eps, int activation, double slope) {
              Batch b = batch(dtype, shape, array(x), weights);
              b.reduce = reduce, b.map = map;
              const Numbers g(gamma, b.channels), h(beta, b.channels), mu(mean, b.channels), v(var, b.channels);
              b.gamma = g.at(), b.beta = h.at();
              b.extra = array(residual), b.out = array(y);
              b.mean = mu.at(), b.var = v.at();
              b.divisor = divisor, b.eps = eps;
              b.activation = activation_of(activation), b.slope = slope;
              run(forward, b);
          },
          nb::arg("reduce"), nb::arg("map"), nb::arg("dtype"), nb::arg("shape"), nb::arg("x"),
          nb::arg("weights").none(), nb::arg("gamma").none(), nb::arg("beta").none(), nb::arg("residual").none(),
          nb::arg("y").none(), nb::arg("mean"), nb::arg("var"), nb::arg("divisor"), nb::arg("eps"),
          nb::arg("activation"), nb::arg("slope"),
          "moments (reduce: writes mean and m2 / divisor) and normalize (map: writes y).");

    m.def("backward",
          [](bool reduce, bool map, int dtype, Sizes shape, nb::handle x, nb::handle weights, nb::handle gamma,
             nb::handle beta, nb::handle dy, nb::handle extra, nb::handle dx, nb::handle dresidual, nb::handle mean,
             nb::handle var, nb::handle sum_dy, nb::handle sum_dy_xhat, double count, double divisor, double eps,
             int activation_grad, double slope) {
              Batch b = batch(dtype, shape, array(x), weights);
              b.reduce = reduce, b.map = map;
              const Numbers g(gamma, b.channels), h(beta, b.channels), mu(mean, b.channels), v(var, b.channels);
              const Numbers s(sum_dy, b.channels), t(sum_dy_xhat, b.channels);
              b.gamma = g.at(), b.beta = h.at();
              b.dy = array(dy), b.extra = array(extra), b.out = array(dx), b.dresidual = array(dresidual);
              b.mean = mu.at(), b.var = v.at();
              b.sum_dy = s.at(), b.sum_dy_xhat = t.at();
              b.m = count, b.divisor = divisor, b.eps = eps;
              b.activation_grad = activation_grad_of(activation_grad), b.slope = slope;
              run(backward, b);
              s.store(), t.store();
          },
          nb::arg("reduce"), nb::arg("map"), nb::arg("dtype"), nb::arg("shape"), nb::arg("x"),
          nb::arg("weights").none(), nb::arg("gamma").none(), nb::arg("beta").none(), nb::arg("dy"),
          nb::arg("extra").none(), nb::arg("dx").none(), nb::arg("dresidual").none(), nb::arg("mean"), nb::arg("var"),
          nb::arg("sum_dy"), nb::arg("sum_dy_xhat"), nb::arg("count"), nb::arg("divisor"), nb::arg("eps"),
          nb::arg("activation_grad"), nb::arg("slope"),
          "gradient_sums (reduce: writes both sums) and input_gradient (map: writes dx, and dresidual where extra is read).");

    m.def("track",
          [](std::size_t channels, nb::handle mean, nb::handle var, nb::handle batches, nb::handle batch, double weight,
             double factor) {
              const Numbers mu(mean, channels), v(var, channels);
              const double* found = static_cast<double*>(address(batch));
              for (std::size_t c = 0; c < channels; c++) {
                  mu.at()[c] += weight * (found[c] - mu.at()[c]);
                  v.at()[c] += weight * (factor * found[channels + c] - v.at()[c]);
              }
              mu.store(), v.store();
              if (void* count = address(batches)) ++*static_cast<std::int64_t*>(count);
          },
          nb::arg("channels"), nb::arg("mean"), nb::arg("var"), nb::arg("batches").none(), nb::arg("batch"),
          nb::arg("weight"), nb::arg("factor"),
          "track: mean += weight (batch mean - mean), var += weight (factor batch var - var), batches += 1.");

    nb::class_<Calls>(m, "Calls", "Calls that were made before, and are run again without the gate. None where one was not.")
        .def("__init__",
             [](Calls* self, nb::object array, std::array<nb::object, 3> dtypes, nb::object empty, nb::object empty_like) {
                 new (self) Calls({array, dtypes, empty, empty_like});
             },
             nb::arg("array"), nb::arg("dtypes"), nb::arg("empty"), nb::arg("empty_like"))
        .def("forward", &Calls::forward, nb::arg("asked"),
             "(x, mean, var, gamma, beta, residual, out, options...) -> (y, statistics, form, whether y is over x).")
        .def("backward", &Calls::backward, nb::arg("asked"), nb::arg("form"),
             "(dy, x, extra, dx, dresidual, statistics), form -> (dx, dgamma, dbeta, dresidual).")
        .def("remember_forward",
             [](Calls& self, Anything asked, nb::object form, nb::object statistics_shape, bool reduce, int dtype,
                Sizes shape, std::array<nb::object, 3> strides, double divisor, double eps, int activation, double slope) {
                 Batch b = batch(dtype, shape, steps(strides[0]), nb::none());
                 b.reduce = reduce, b.map = true;
                 b.extra = steps(strides[1]), b.out = steps(strides[2]);
                 b.divisor = divisor, b.eps = eps;
                 b.activation = activation_of(activation), b.slope = slope;
                 self.remember_forward(asked, form, statistics_shape, b);
             },
             nb::arg("asked"), nb::arg("form"), nb::arg("statistics_shape"), nb::arg("reduce"), nb::arg("dtype"),
             nb::arg("shape"), nb::arg("strides"), nb::arg("divisor"), nb::arg("eps"), nb::arg("activation"),
             nb::arg("slope"), "What the gate found of a call; strides on the view are those of x, residual and y.")
        .def("remember_backward",
             [](Calls& self, Anything asked, nb::object form, nb::object channels, nb::object gamma_dtype,
                nb::object beta_dtype, int dtype, Sizes shape, std::array<nb::object, 5> strides, double count,
                double divisor, double eps, int activation_grad, double slope) {
                 Batch b = batch(dtype, shape, steps(strides[0]), nb::none());
                 b.reduce = b.map = true;
                 b.dy = steps(strides[1]), b.extra = steps(strides[2]);
                 b.out = steps(strides[3]), b.dresidual = steps(strides[4]);
                 b.m = count, b.divisor = divisor, b.eps = eps;
                 b.activation_grad = activation_grad_of(activation_grad), b.slope = slope;
                 self.remember_backward(asked, form, channels, gamma_dtype, beta_dtype, !strides[4].is_none(), b);
             },
             nb::arg("asked"), nb::arg("form"), nb::arg("channels"), nb::arg("gamma_dtype").none(),
             nb::arg("beta_dtype").none(), nb::arg("dtype"), nb::arg("shape"), nb::arg("strides"),
             nb::arg("count"), nb::arg("divisor"), nb::arg("eps"), nb::arg("activation_grad"), nb::arg("slope"),
             "Likewise; strides are those of x, dy, extra, dx and dresidual.");

    m.def("isa", [] { return std::string(isa_in_use()); }, "The instruction set in use.");
    m.def("isa_available",
          [] {
              std::vector<std::string> names;
              for (std::size_t i = 0; i < isa_count(); i++) names.emplace_back(isa_name(i));
              return names;
          },
          "The instruction sets that this machine can run, best first.");
    m.def("use_isa", [](const std::string& name) { return use_isa(name.c_str()); }, nb::arg("name"),
          "Forces an instruction set; False where it is unknown or this machine can't run it.");
    m.def("threads", &max_threads, "How many threads the next call would use.");
}
