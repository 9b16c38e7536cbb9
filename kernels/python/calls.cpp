// How a call is recognized, and run again.
#include "python/calls.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace xhat {

namespace {

using std::size_t;

constexpr size_t MOST = 4096;   // kinds of calls, of each pass; past that, all are forgotten
constexpr size_t WORDS = 128;   // of a key; longer ones are rare

enum { X, MEAN, VAR, GAMMA, BETA, RESIDUAL, OUT, FORWARD_ARRAYS };
enum { DY, CONTEXT_X, EXTRA, DX, DRESIDUAL, CONTEXT_STATISTICS, BACKWARD_ARRAYS };

// Where an array lies: its first number, and the bytes from its lowest to behind its highest. Null: None was given.
struct Seen {
    char *at = nullptr, *low = nullptr, *high = nullptr;
    Dtype dtype = FLOAT64;
    bool writable = true, contiguous = true;

    bool apart(const Seen& other) const { return !at || !other.at || high <= other.low || other.high <= low; }
};

// What is asked, as words: equal ones for what the gate, addresses aside, can't tell apart.
class Question {
  public:
    explicit Question(const Numpy& numpy) : numpy_(numpy) {}

    Seen array(PyObject* o);
    void option(PyObject* o, bool inside = false);
    void word(std::intptr_t w) {
        if (count_ < WORDS) words_[count_++] = w;
        else known_ = false;
    }
    // Whether all of it could be told in words.
    bool known() const { return known_; }
    std::string key() const { return {reinterpret_cast<const char*>(words_.data()), count_ * sizeof words_[0]}; }

    Seen unknown() {
        PyErr_Clear();
        known_ = false;
        return {};
    }

  private:
    const Numpy& numpy_;
    std::array<std::intptr_t, WORDS> words_;
    size_t count_ = 0;
    bool known_ = true;
};

Seen Question::array(PyObject* o) {
    if (o == Py_None) {
        word(-1);
        return {};
    }
    if (!known_ || Py_TYPE(o) != reinterpret_cast<PyTypeObject*>(numpy_.array.ptr())) return unknown();
    const nb::object dtype = nb::steal<nb::object>(PyObject_GetAttr(o, numpy_.dtype.ptr()));
    const auto code = std::find_if(numpy_.dtypes.begin(), numpy_.dtypes.end(), [&](auto& d) { return d.is(dtype); });
    Py_buffer view;
    if (code == numpy_.dtypes.end() || PyObject_GetBuffer(o, &view, PyBUF_STRIDES) != 0) return unknown();
    Seen seen;
    seen.dtype = Dtype(code - numpy_.dtypes.begin());
    seen.at = seen.low = seen.high = static_cast<char*>(view.buf);
    seen.writable = !view.readonly;
    word(seen.dtype), word(view.ndim);
    std::ptrdiff_t dense = view.itemsize;
    for (int a = view.ndim - 1; a >= 0; a--) {
        const std::ptrdiff_t size = view.shape[a], stride = view.strides[a];
        word(size), word(stride);
        (stride < 0 ? seen.low : seen.high) += (size - 1) * stride;
        seen.contiguous &= size == 1 || stride == dense;
        dense *= size;
    }
    seen.high += view.itemsize;
    PyBuffer_Release(&view);
    // Empty batches need no haste.
    const bool askew = reinterpret_cast<std::uintptr_t>(seen.at) % SIZE_OF[seen.dtype] != 0;
    return askew || dense == 0 ? unknown() : seen;
}

// Numbers and names, by type and value: 1, 1.0 and True are three. Tuples of them.
void Question::option(PyObject* o, bool inside) {
    word(reinterpret_cast<std::intptr_t>(Py_TYPE(o)));
    if (Py_TYPE(o) == &PyLong_Type) {
        word(PyLong_AsSsize_t(o));
        if (PyErr_Occurred()) unknown();
    } else if (Py_TYPE(o) == &PyFloat_Type) {
        const double value = PyFloat_AsDouble(o);
        std::int64_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        word(bits);
    } else if (Py_TYPE(o) == &PyUnicode_Type) {
        Py_ssize_t size = 0;
        const char* letters = PyUnicode_AsUTF8AndSize(o, &size);
        word(size);
        for (Py_ssize_t i = 0; letters && i < size; i++) word(letters[i]);
        if (!letters) unknown();
    } else if (Py_TYPE(o) == &PyTuple_Type && !inside) {
        word(PyTuple_Size(o));
        for (Py_ssize_t i = 0; i < PyTuple_Size(o); i++) option(PyTuple_GetItem(o, i), true);
    } else if (o != Py_None) {
        unknown();
    }
}

template <size_t N> std::array<Seen, N> arrays_of(Question& question, const nb::tuple& asked) {
    if (asked.size() < N) throw nb::value_error("too few arrays");
    std::array<Seen, N> seen;
    for (size_t i = 0; i < N; i++) seen[i] = question.array(PyTuple_GetItem(asked.ptr(), Py_ssize_t(i)));
    return seen;
}

std::array<Seen, FORWARD_ARRAYS> forward_question(Question& question, const nb::tuple& asked) {
    const auto seen = arrays_of<FORWARD_ARRAYS>(question, asked);
    for (Py_ssize_t i = FORWARD_ARRAYS; i < PyTuple_Size(asked.ptr()); i++) question.option(PyTuple_GetItem(asked.ptr(), i));
    for (int i : {MEAN, VAR, GAMMA, BETA})
        if (!seen[size_t(i)].contiguous) question.unknown();
    return seen;
}

std::array<Seen, BACKWARD_ARRAYS> backward_question(Question& question, const nb::tuple& asked, nb::handle form) {
    const auto seen = arrays_of<BACKWARD_ARRAYS>(question, asked);
    question.word(reinterpret_cast<std::intptr_t>(form.ptr()));
    if (!seen[CONTEXT_STATISTICS].at || !seen[CONTEXT_STATISTICS].contiguous) question.unknown();
    return seen;
}

bool exactly_over(const Seen& out, const Array& out_steps, const Seen& in, const Array& in_steps) {
    return out.at == in.at && out_steps.outer == in_steps.outer && out_steps.channel == in_steps.channel &&
           out_steps.inner == in_steps.inner;
}

// A result where it was asked for, or like x.
nb::object place(const Numpy& numpy, const nb::tuple& asked, size_t out, size_t x, const Seen& seen, Array& result) {
    nb::object array = seen.at ? nb::borrow<nb::object>(asked[out]) : nb::object(numpy.empty_like(asked[x]));
    result.at = seen.at ? seen.at : address(array);
    return array;
}

}  // namespace

std::optional<Anything> Calls::forward(const Anything& asked) {
    Question question(numpy_);
    const auto seen = forward_question(question, asked);
    const auto found = question.known() ? forwards_.find(question.key()) : forwards_.end();
    if (found == forwards_.end()) return std::nullopt;
    // A copy: while memory is asked for, another thread may have all forgotten.
    const Forward call = found->second;
    Call b = call.batch;
    const Seen& out = seen[OUT];
    const bool over = out.at && exactly_over(out, b.out, seen[X], b.x);
    if (!out.writable || !(over || out.apart(seen[X])) || !out.apart(seen[RESIDUAL])) return std::nullopt;
    const nb::object statistics = numpy_.empty(call.statistics_shape);
    double* row = static_cast<double*>(address(statistics));
    double* rows[4];  // mean, var, gamma, beta
    for (size_t i = 0; i < 4; i++, row += b.channels) {
        const Seen& given = seen[MEAN + i];
        rows[i] = row;
        if (given.at) kernels().of[given.dtype].widen(given.at, 1, b.channels, row);
    }
    if (seen[VAR].at && std::any_of(rows[1], rows[1] + b.channels, [](double var) { return var < 0; })) return std::nullopt;
    const nb::object y = place(numpy_, asked, OUT, X, out, b.out);
    b.x.at = seen[X].at, b.saved.at = seen[RESIDUAL].at;
    b.mean = rows[0], b.var = rows[1];
    b.gamma = seen[GAMMA].at ? rows[2] : nullptr, b.beta = seen[BETA].at ? rows[3] : nullptr;
    run(xhat::forward, b);
    return Anything(nb::make_tuple(y, statistics, call.form, over));
}

void Calls::remember_forward(const nb::tuple& asked, nb::object form, nb::object statistics_shape, const Call& batch) {
    Question question(numpy_);
    forward_question(question, asked);
    if (!question.known()) return;
    if (forwards_.size() >= MOST) forwards_.clear(), forms_.clear();
    const bool first = forwards_.try_emplace(question.key(), Forward{batch, form, statistics_shape}).second;
    if (first) forms_.insert(form.ptr());
}

std::optional<Anything> Calls::backward(const Anything& asked, nb::handle form) {
    Question question(numpy_);
    const auto seen = backward_question(question, asked, form);
    const auto found = question.known() ? backwards_.find(question.key()) : backwards_.end();
    if (found == backwards_.end()) return std::nullopt;
    const Backward call = found->second;
    Call b = call.batch;
    const Seen &out = seen[DX], &second = seen[DRESIDUAL];
    const bool over = out.at && exactly_over(out, b.out, seen[DY], b.dy);
    if (!out.writable || !(over || out.apart(seen[DY])) || !second.writable || !second.apart(seen[DY])) return std::nullopt;
    if (!out.apart(second)) return std::nullopt;
    for (const Seen* other : {&seen[CONTEXT_X], &seen[EXTRA], &seen[CONTEXT_STATISTICS]})
        if (!out.apart(*other) || !second.apart(*other)) return std::nullopt;
    const nb::object dx = place(numpy_, asked, DX, CONTEXT_X, out, b.out);
    nb::object dresidual = nb::none();
    if (call.residual) dresidual = place(numpy_, asked, DRESIDUAL, CONTEXT_X, second, b.dresidual);
    double* const row = reinterpret_cast<double*>(seen[CONTEXT_STATISTICS].at);
    std::vector<double> sums(2 * b.channels);
    b.x.at = seen[CONTEXT_X].at, b.dy.at = seen[DY].at, b.saved.at = seen[EXTRA].at;
    b.mean = row, b.var = row + b.channels;
    b.gamma = call.gamma_dtype.is_none() ? nullptr : row + 2 * b.channels;
    b.beta = call.beta_dtype.is_none() ? nullptr : row + 3 * b.channels;
    b.sum_dy = sums.data(), b.sum_dy_xhat = sums.data() + b.channels;
    run(xhat::backward, b);
    // One after the other, so that what NumPy says of them comes in the gate's order.
    const nb::object dgamma = gradient(b.sum_dy_xhat, b.channels, call.channels, call.gamma_dtype);
    const nb::object dbeta = gradient(b.sum_dy, b.channels, call.channels, call.beta_dtype);
    return Anything(nb::make_tuple(dx, dgamma, dbeta, dresidual));
}

void Calls::remember_backward(const nb::tuple& asked, nb::object form, nb::object channels, nb::object gamma_dtype,
                              nb::object beta_dtype, bool residual, const Call& batch) {
    Question question(numpy_);
    backward_question(question, asked, form);
    if (!question.known() || !forms_.count(form.ptr())) return;
    if (backwards_.size() >= MOST) backwards_.clear();
    backwards_.try_emplace(question.key(), Backward{batch, form, channels, gamma_dtype, beta_dtype, residual});
}

// The sums in a parameter's dtype. Where float32 does not hold one, `astype` says so, in the way that NumPy was told to.
nb::object Calls::gradient(const double* sums, size_t count, nb::handle shape, nb::handle dtype) const {
    if (dtype.is_none()) return nb::none();
    const auto held = [](double sum) {
        return sum == 0 || !std::isfinite(sum) || (std::abs(sum) >= FLT_MIN && std::abs(sum) <= FLT_MAX);
    };
    const bool narrow = dtype.is(numpy_.dtypes[FLOAT32]) && std::all_of(sums, sums + count, held);
    const nb::object result = numpy_.empty(shape, narrow ? dtype : nb::handle(numpy_.dtypes[FLOAT64]));
    void* const at = address(result);
    if (narrow) std::transform(sums, sums + count, static_cast<float*>(at), [](double v) { return float(v); });
    else std::memcpy(at, sums, count * sizeof *sums);
    return narrow || dtype.is(numpy_.dtypes[FLOAT64]) ? result : nb::object(result.attr("astype")(dtype));
}

}  // namespace xhat
