// The Python module around the emulated kernels. Addresses travel as integers: Python keeps the
// arrays alive and builds the params structs, whose layout comes from the headers themselves.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../csrc/cuda/aggregate_experts.h"
#include "probes.h"

namespace py = pybind11;
using namespace dasr;

namespace {

template <class Class, class Owner, class Pointer>
void def_address(Class& cls, const char* name, Pointer Owner::* member) {
  using T = typename Class::type;
  cls.def_property(
      name, [member](const T& self) { return reinterpret_cast<uintptr_t>(self.*member); },
      [member](T& self, uintptr_t address) { self.*member = reinterpret_cast<Pointer>(address); });
}

template <class T>
py::class_<T> params(py::module_& m, const char* name) {
  py::class_<T> cls(m, name, py::module_local());
  cls.def(py::init<>());
  return cls;
}

template <class Class>
void def_sizes(Class& cls) {
  using T = typename Class::type;
  cls.def_readwrite("batch", &T::batch).def_readwrite("experts", &T::experts);
  cls.def_readwrite("numel", &T::numel);
  cls.def_readwrite("weight_type", &T::weight_type);
  cls.def_readwrite("routing_type", &T::routing_type);
  def_address(cls, "weight", &T::weight);
  def_address(cls, "routing", &T::routing);
}

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::kFloat32)
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBFloat16)
      .value("float64", DType::kFloat64);

  auto forward = params<AggregateExpertsParams>(m, "AggregateExpertsParams");
  def_sizes(forward);
  def_address(forward, "out", &AggregateExpertsParams::out);
  forward.def_readwrite("out_type", &AggregateExpertsParams::out_type);

  auto backward = params<AggregateExpertsBackwardParams>(m, "AggregateExpertsBackwardParams");
  def_sizes(backward);
  def_address(backward, "grad", &AggregateExpertsBackwardParams::grad);
  backward.def_readwrite("grad_type", &AggregateExpertsBackwardParams::grad_type);
  def_address(backward, "grad_weight", &AggregateExpertsBackwardParams::grad_weight);
  def_address(backward, "grad_routing", &AggregateExpertsBackwardParams::grad_routing);
  def_address(backward, "workspace", &AggregateExpertsBackwardParams::workspace);

  m.def("aggregate_experts",
        [](const AggregateExpertsParams& p) { check(aggregate_experts(p, nullptr)); });
  m.def("aggregate_experts_backward_workspace_size", &aggregate_experts_backward_workspace_size);
  m.def("aggregate_experts_backward", [](const AggregateExpertsBackwardParams& p) {
    check(aggregate_experts_backward(p, nullptr));
  });

  m.def("probe_names", &probe_names);
  m.def(
      "run_probe",
      [](const std::string& name, uintptr_t in, uintptr_t out, int a, int b, int c,
         std::vector<unsigned> grid, std::vector<unsigned> block, size_t shared,
         int shared_attribute) {
        Launch launch;
        for (size_t i = 0; i < grid.size() && i < 3; ++i) launch.grid[i] = grid[i];
        for (size_t i = 0; i < block.size() && i < 3; ++i) launch.block[i] = block[i];
        launch.shared = shared;
        launch.shared_attribute = shared_attribute;
        check(run_probe(name,
                        {reinterpret_cast<const void*>(in), reinterpret_cast<void*>(out), a, b, c},
                        launch));
      },
      py::arg("name"), py::arg("input"), py::arg("output"), py::arg("a") = 0, py::arg("b") = 0,
      py::arg("c") = 0, py::arg("grid") = std::vector<unsigned>{1},
      py::arg("block") = std::vector<unsigned>{32}, py::arg("shared") = 0,
      py::arg("shared_attribute") = -1);

  m.def("set_shared_limit", [](size_t bytes) { emulation_settings().shared_limit = bytes; });
  m.def(
      "set_order",
      [](const std::string& order, uint32_t seed) {
        using emulation::Order;
        emulation_settings().order = order == "forward"   ? Order::kForward
                                     : order == "reverse" ? Order::kReverse
                                                          : Order::kShuffled;
        emulation_settings().seed = seed;
      },
      py::arg("order"), py::arg("seed") = 0);
  m.def("statistics", [] {
    const emulation::Statistics s = emulation_statistics();
    return py::make_tuple(s.launches, s.blocks, s.switches);
  });
}
