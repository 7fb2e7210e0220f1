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

  auto reduce = params<ReduceSplitsParams>(m, "ReduceSplitsParams");
  def_address(reduce, "partial", &ReduceSplitsParams::partial);
  reduce.def_readwrite("partial_type", &ReduceSplitsParams::partial_type);
  reduce.def_readwrite("splits", &ReduceSplitsParams::splits);
  reduce.def_readwrite("numel", &ReduceSplitsParams::numel);
  def_address(reduce, "out", &ReduceSplitsParams::out);
  reduce.def_readwrite("out_type", &ReduceSplitsParams::out_type);
  m.def("reduce_splits", [](const ReduceSplitsParams& p) { check(reduce_splits(p, nullptr)); });
}

const Binding binding(bind);

}  // namespace
