// Arguments of Python as memory. Whatever a caller has done to strides, shapes or storages: no kernel gets an address
// from which it would leave the memory of that argument.
//
//   object             a NumPy array, by its buffer, or a torch tensor, by its methods
//   (address, bytes)   what xhat has allocated itself
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/call.h"

namespace xhat {

namespace nb = nanobind;

using Sizes = std::array<std::ptrdiff_t, 3>;

[[noreturn]] inline void refuse(const char* name, const char* why) {
    throw nb::index_error((std::string(name) + " " + why).c_str());
}

inline Dtype dtype_of(int code) {
    if (code < 0 || code >= DTYPES) throw nb::value_error("unknown dtype code");
    return Dtype(code);
}

// Bytes behind and before an address. In double, where no size times a stride overflows; below 2^53 it is exact, and no
// memory is larger.
struct Extent {
    double after = 0, before = 0;

    void add(double reach) { (reach < 0 ? before : after) += std::abs(reach); }
    bool holds(const Extent& other) const { return other.after <= after && other.before <= before; }
};

struct Memory { void* at = nullptr; Extent extent; };

inline Memory memory_of_buffer(nb::handle h, std::size_t size, const char* name) {
    Py_buffer view;
    if (PyObject_GetBuffer(h.ptr(), &view, PyBUF_STRIDES) != 0) throw nb::python_error();
    Memory memory{view.buf, {}};
    if (view.len > 0) {
        memory.extent.add(double(view.itemsize));
        for (int i = 0; i < view.ndim; i++) memory.extent.add(double(view.shape[i] - 1) * double(view.strides[i]));
    }
    const bool fits = std::size_t(view.itemsize) == size;
    PyBuffer_Release(&view);
    if (!fits) refuse(name, "has elements of another size");
    return memory;
}

// The storage of a tensor may have been resized, which its shape does not show: what counts is how far it reaches.
inline Memory memory_of_tensor(nb::handle tensor, std::size_t size) {
    static PyObject* const DATA_PTR = PyUnicode_InternFromString("data_ptr");
    static PyObject* const STORAGE = PyUnicode_InternFromString("untyped_storage");
    static PyObject* const OFFSET = PyUnicode_InternFromString("storage_offset");
    const auto call = [&](PyObject* method) {
        PyObject* self = tensor.ptr();
        const nb::object result = nb::steal(PyObject_VectorcallMethod(method, &self, 1, nullptr));
        if (!result.is_valid()) throw nb::python_error();
        return result;
    };
    void* at = PyLong_AsVoidPtr(call(DATA_PTR).ptr());
    const double bytes = double(PyObject_Size(call(STORAGE).ptr()));
    const double offset = double(PyLong_AsSsize_t(call(OFFSET).ptr()));
    if (PyErr_Occurred()) throw nb::python_error();
    return {at, {bytes - offset * double(size), 0}};
}

// The caller keeps an object alive, and nothing else may write to it during the call.
inline Memory memory_of(nb::handle h, std::size_t size, const char* name) {
    Memory memory;
    if (PyTuple_Check(h.ptr())) {
        const auto [address, bytes] = nb::cast<std::pair<std::uintptr_t, std::ptrdiff_t>>(h);
        memory = {reinterpret_cast<void*>(address), {double(bytes), 0}};
    } else if (PyObject_CheckBuffer(h.ptr())) {
        return memory_of_buffer(h, size, name);
    } else {
        memory = memory_of_tensor(h, size);
    }
    if (reinterpret_cast<std::uintptr_t>(memory.at) % size) refuse(name, "is not aligned");
    return memory;
}

// The address of what a kernel reaches, if it lies inside of this memory.
inline void* checked(const Memory& memory, const Extent& reached, const char* name) {
    if (!memory.at || !memory.extent.holds(reached)) refuse(name, "reaches beyond its memory");
    return memory.at;
}

// `count` adjacent elements of `size` bytes; None is no array.
inline void* elements(nb::handle h, std::size_t count, std::size_t size, const char* name) {
    if (h.is_none() || !count) return nullptr;
    return checked(memory_of(h, size, name), {double(count) * double(size), 0}, name);
}

// An array of a call's view: its memory and its strides; None is no array. One that is written has an element of its own
// for each of the view.
inline Array array(nb::handle h, const Call& call, const char* name, bool written = false) {
    if (h.is_none() || !call.size()) return {nullptr, 0, 0, 0};
    const auto [object, strides] = nb::cast<std::pair<nb::object, Sizes>>(h);
    const std::size_t size = SIZE_OF[call.dtype], sizes[] = {call.outer, call.channels, call.inner};
    Extent reached{double(size), 0};
    for (std::size_t i = 0; i < 3; i++) reached.add(double(sizes[i] - 1) * double(strides[i]) * double(size));
    const Memory memory = memory_of(object, size, name);
    // Then a view that is not the array's can't make a call endless either.
    if (written && double(call.size()) * double(size) > memory.extent.after + memory.extent.before)
        refuse(name, "has fewer elements than the view");
    return {checked(memory, reached, name), strides[0], strides[1], strides[2]};
}

// A vector with one element per channel: float64 in place or, given as (memory, dtype), converted to a float64 copy.
// `store` writes the copy back, rounded.
class ChannelVector {
  public:
    ChannelVector(nb::handle h, std::size_t count, const char* name) {
        if (!PyTuple_Check(h.ptr()) || PyTuple_Size(h.ptr()) != 2 || PyLong_Check(PyTuple_GetItem(h.ptr(), 0))) {
            at_ = static_cast<double*>(elements(h, count, sizeof(double), name));
            return;
        }
        const auto [object, code] = nb::cast<std::pair<nb::object, int>>(h);
        dtype_ = dtype_of(code);
        original_ = elements(object, count, SIZE_OF[dtype_], name);
        if (!original_) return;
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

}  // namespace xhat
