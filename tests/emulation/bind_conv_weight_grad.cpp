#include "../../csrc/cuda/conv_weight_grad.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
  auto cls = params<ConvWeightGradParams>(m, "ConvWeightGradParams");
  cls.def_readwrite("shape", &ConvWeightGradParams::shape);
  cls.def_readwrite("allow_tf32", &ConvWeightGradParams::allow_tf32);
  cls.def_readwrite("grad", &ConvWeightGradParams::grad);
  cls.def_readwrite("input", &ConvWeightGradParams::input);
  def_address(cls, "partial", &ConvWeightGradParams::partial);
  cls.def_readwrite("splits", &ConvWeightGradParams::splits);
  cls.def_readwrite("first_sample", &ConvWeightGradParams::first_sample);
  m.def("conv_weight_grad_splits", &conv_weight_grad_splits);
  m.def("conv_weight_grad",
        [](const ConvWeightGradParams& p) { check(conv_weight_grad(p, nullptr)); });
}

const Binding binding(bind);

}  // namespace
