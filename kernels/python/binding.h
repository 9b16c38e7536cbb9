// Conversions from Python objects to addresses, and calls without the interpreter's lock.
#pragma once
#include <nanobind/nanobind.h>

#include <array>

#include "engine/call.h"
#include "engine/threads.h"

namespace xhat {

namespace nb = nanobind;

using Sizes = std::array<std::ptrdiff_t, 3>;

// An int is an address (a torch tensor's data_ptr), None is no array; anything else exports a buffer. The caller keeps the
// object alive, and nothing else may write to it during the call.
inline void* address(nb::handle h) {
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

inline Dtype dtype_of(int code) {
    if (code < 0 || code >= DTYPES) throw nb::value_error("unknown dtype code");
    return Dtype(code);
}

template <class F> void run(F pass, const Call& call) {
    const int threads = max_threads();
    nb::gil_scoped_release release;
    pass(call, threads);
}

}  // namespace xhat
