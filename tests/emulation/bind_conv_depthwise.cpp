#include "../../csrc/cuda/conv_depthwise.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
  using P = ConvDepthwiseParams;
  auto cls = params<P>(m, "ConvDepthwiseParams");
  cls.def_readwrite("shape", &P::shape);
  cls.def_readwrite("transposed", &P::transposed);
  cls.def_readwrite("source", &P::source);
  def_address(cls, "weight", &P::weight);
  cls.def_readwrite("weight_type", &P::weight_type);
  cls.def_readwrite("epilogue", &P::epilogue);
  def_address(cls, "out", &P::out);
  def_array(cls, "out_stride", &P::out_stride);
  m.def("conv_depthwise", [](const P& p) { check(conv_depthwise(p, nullptr)); });

  using W = ConvDepthwiseWeightParams;
  auto weight = params<W>(m, "ConvDepthwiseWeightParams");
  weight.def_readwrite("shape", &W::shape);
  weight.def_readwrite("input", &W::input);
  weight.def_readwrite("grad", &W::grad);
  def_address(weight, "grad_weight", &W::grad_weight);
  def_address(weight, "workspace", &W::workspace);
  m.def("conv_depthwise_weight_workspace_size", &conv_depthwise_weight_workspace_size);
  m.def("conv_depthwise_weight", [](const W& p) { check(conv_depthwise_weight(p, nullptr)); });
}

const Binding binding(bind);

}  // namespace
