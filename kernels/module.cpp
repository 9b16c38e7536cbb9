// Python's way in: addresses, sizes and strides, already checked by xhat.ops. Nothing is checked here but what
// would corrupt memory, and the interpreter's lock is released while the kernels run.
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

#include "batch.h"
#include "threads.h"

namespace nb = nanobind;
using namespace xhat;

namespace {

using Sizes = std::array<std::ptrdiff_t, 3>;

// An int is an address (a torch tensor's data_ptr); None is no array; else the buffer that the object exports.
// The caller keeps the object alive, and alone writes to it, during the call.
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
        place_ = address(object), dtype_ = checked(code);
        copy_.resize(count);
        kernels().of[dtype_].widen(place_, 1, count, copy_.data());
        at_ = copy_.data();
    }
    double* at() const { return at_; }
    void store() const {
        if (place_) kernels().of[dtype_].narrow(copy_.data(), place_, 1, copy_.size());
    }
    static Dtype checked(int code) {
        if (code < 0 || code >= DTYPES) throw nb::value_error("unknown dtype code");
        return Dtype(code);
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

Batch batch(int dtype, const Sizes& shape, nb::handle x, nb::handle weights) {
    Batch b{};
    b.dtype = Numbers::checked(dtype);
    b.outer = std::size_t(shape[0]), b.channels = std::size_t(shape[1]), b.inner = std::size_t(shape[2]);
    b.x = array(x);
    b.weights = static_cast<double*>(address(weights));
    b.m = b.divisor = INFINITY;
    return b;
}

template <class F> void run(F pass, const Batch& b) {
    const int threads = max_threads();
    nb::gil_scoped_release release;
    pass(b, threads);
}

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "The compiled kernels. Arrays are (address or buffer, strides in elements); xhat.ops is their only caller.";

    m.def("forward",
          [](bool reduce, bool map, int dtype, Sizes shape, nb::handle x, nb::handle weights, nb::handle gamma,
             nb::handle beta, nb::handle residual, nb::handle y, nb::handle mean, nb::handle var, double divisor,
             double eps, int activation, double slope) {
              if (activation < 0 || activation >= ACTIVATIONS) throw nb::value_error("unknown activation code");
              Batch b = batch(dtype, shape, x, weights);
              b.reduce = reduce, b.map = map;
              const Numbers g(gamma, b.channels), h(beta, b.channels), mu(mean, b.channels), v(var, b.channels);
              b.gamma = g.at(), b.beta = h.at();
              b.extra = array(residual), b.out = array(y);
              b.mean = mu.at(), b.var = v.at();
              b.divisor = divisor, b.eps = eps;
              b.activation = Activation(activation), b.slope = slope;
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
             int side, double slope) {
              if (side < 0 || side >= SIDES) throw nb::value_error("unknown side code");
              Batch b = batch(dtype, shape, x, weights);
              b.reduce = reduce, b.map = map;
              const Numbers g(gamma, b.channels), h(beta, b.channels), mu(mean, b.channels), v(var, b.channels);
              const Numbers s(sum_dy, b.channels), t(sum_dy_xhat, b.channels);
              b.gamma = g.at(), b.beta = h.at();
              b.dy = array(dy), b.extra = array(extra), b.out = array(dx), b.dresidual = array(dresidual);
              b.mean = mu.at(), b.var = v.at();
              b.sum_dy = s.at(), b.sum_dy_xhat = t.at();
              b.m = count, b.divisor = divisor, b.eps = eps;
              b.side = Side(side), b.slope = slope;
              run(backward, b);
              s.store(), t.store();
          },
          nb::arg("reduce"), nb::arg("map"), nb::arg("dtype"), nb::arg("shape"), nb::arg("x"),
          nb::arg("weights").none(), nb::arg("gamma").none(), nb::arg("beta").none(), nb::arg("dy"),
          nb::arg("extra").none(), nb::arg("dx").none(), nb::arg("dresidual").none(), nb::arg("mean"), nb::arg("var"),
          nb::arg("sum_dy"), nb::arg("sum_dy_xhat"), nb::arg("count"), nb::arg("divisor"), nb::arg("eps"),
          nb::arg("side"), nb::arg("slope"),
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
