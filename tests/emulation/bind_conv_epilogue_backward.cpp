#include "../../csrc/cuda/conv_epilogue_backward.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
  using P = ConvEpilogueBackwardParams;
  auto cls = params<P>(m, "ConvEpilogueBackwardParams");
  cls.def_readwrite("batch", &P::batch);
  cls.def_readwrite("channels", &P::channels);
  cls.def_readwrite("height", &P::height);
  cls.def_readwrite("width", &P::width);
  cls.def_readwrite("upscale", &P::upscale);
  cls.def_readwrite("residual_scale", &P::residual_scale);
  cls.def_readwrite("grad_output", &P::grad_output);
  cls.def_readwrite("activation", &P::activation);
  cls.def_readwrite("negative_slope", &P::negative_slope);
  cls.def_readwrite("output", &P::output);
  def_address(cls, "mask", &P::mask);
  def_address(cls, "grad", &P::grad);
  cls.def_readwrite("grad_type", &P::grad_type);
  def_address(cls, "grad_bias", &P::grad_bias);
  def_address(cls, "workspace", &P::workspace);
  m.def("conv_epilogue_backward_workspace_size", &conv_epilogue_backward_workspace_size);
  m.def("conv_epilogue_backward", [](const P& p) { check(conv_epilogue_backward(p, nullptr)); });
}

const Binding binding(bind);

}  // namespace
