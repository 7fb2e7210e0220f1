#include "../../csrc/cuda/aggregate_experts.h"
#include "binding.h"

using namespace dasr;

namespace {

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

void bind(py::module_& m) {
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
}

const Binding binding(bind);

}  // namespace
