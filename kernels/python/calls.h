// Calls that were made before. The first one of its kind goes through the gate, which then tells what it found: sizes,
// strides, options. A later one whose arrays have the same types, dtypes, shapes and strides, and whose options are the
// same, would find it again: it is run from here, with addresses and memory of its own.
//
// Nothing is refused here. What is not as it was, or can't be told at once, is left to the gate, which knows the words:
// an array that is no plain one, or lies askew; a result that is read-only, or touches an input; a negative variance.
#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "python/binding.h"

namespace xhat {

using Anything = nb::typed<nb::tuple, nb::any, nb::ellipsis>;  // for who reads types: tuple[Any, ...]

// What never changes: NumPy's array, the dtypes by their number, and how memory is asked for.
struct Numpy {
    nb::object array;
    std::array<nb::object, 3> dtypes;  // not bfloat16: its arrays export no buffer
    nb::object empty, empty_like;
    nb::object dtype = nb::steal<nb::object>(PyUnicode_InternFromString("dtype"));  // the attribute's name
};

class Calls {
  public:
    explicit Calls(Numpy numpy) : numpy_(std::move(numpy)) {}

    // (x, mean, var, gamma, beta, residual, out, then options) -> (y, statistics, form, whether y is over x), or None.
    std::optional<Anything> forward(const Anything& asked);
    // (dy, x, extra, dx, dresidual, statistics), form -> (dx, dgamma, dbeta, dresidual), or None.
    std::optional<Anything> backward(const Anything& asked, nb::handle form);

    // The same, and a batch of it without addresses. The first form of a kind is that of all.
    void remember_forward(const nb::tuple& asked, nb::object form, nb::object statistics_shape, const Call& batch);
    void remember_backward(const nb::tuple& asked, nb::object form, nb::object channels, nb::object gamma_dtype,
                           nb::object beta_dtype, bool residual, const Call& batch);

  private:
    struct Forward { Call batch; nb::object form, statistics_shape; };
    struct Backward { Call batch; nb::object form, channels, gamma_dtype, beta_dtype; bool residual; };

    nb::object gradient(const double* sums, std::size_t count, nb::handle shape, nb::handle dtype) const;

    Numpy numpy_;
    std::unordered_map<std::string, Forward> forwards_;
    std::unordered_map<std::string, Backward> backwards_;
    std::unordered_set<PyObject*> forms_;  // those of `forwards_`
};

}  // namespace xhat
