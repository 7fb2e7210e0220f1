// Helpers of the bind_*.cpp files, each of which adds the launchers of one kernel to the module.
// Addresses travel as integers: Python keeps the arrays alive and builds the params structs, whose
// layout comes from the kernels' headers themselves.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "../../csrc/cuda/runtime_api.h"

namespace py = pybind11;

using Bind = void (*)(py::module_&);

inline std::vector<Bind>& bindings() {
  static std::vector<Bind> all;
  return all;
}

// A static object of this type in a bind_*.cpp file registers its function.
struct Binding {
  explicit Binding(Bind bind) { bindings().push_back(bind); }
};

template <class Class, class Owner, class Pointer>
void def_address(Class& cls, const char* name, Pointer Owner::* member) {
  using T = typename Class::type;
  cls.def_property(
      name, [member](const T& self) { return reinterpret_cast<uintptr_t>(self.*member); },
      [member](T& self, uintptr_t address) { self.*member = reinterpret_cast<Pointer>(address); });
}

// An array member, as a list.
template <class Class, class Owner, class T, size_t kN>
void def_array(Class& cls, const char* name, T (Owner::*member)[kN]) {
  using Self = typename Class::type;
  cls.def_property(
      name, [member](const Self& self) { return std::vector<T>(self.*member, self.*member + kN); },
      [member](Self& self, const std::vector<T>& values) {
        if (values.size() != kN) throw std::runtime_error("wrong number of values");
        for (size_t i = 0; i < kN; ++i) (self.*member)[i] = values[i];
      });
}

template <class T>
py::class_<T> params(py::module_& m, const char* name) {
  py::class_<T> cls(m, name, py::module_local());
  cls.def(py::init<>());
  return cls;
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
