#include "../../csrc/cuda/conv_wgmma.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
  m.def("conv_wgmma_serves", &conv_wgmma_serves);
  m.def("conv_wgmma", [](const ConvGemmParams& p) { check(conv_wgmma(p, nullptr)); });
}

const Binding binding(bind);

}  // namespace
