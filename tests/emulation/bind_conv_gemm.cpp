#include "../../csrc/cuda/conv_gemm.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
  auto cls = params<ConvGemmParams>(m, "ConvGemmParams");
  cls.def_readwrite("shape", &ConvGemmParams::shape);
  cls.def_readwrite("transposed", &ConvGemmParams::transposed);
  cls.def_readwrite("allow_tf32", &ConvGemmParams::allow_tf32);
  cls.def_readwrite("source", &ConvGemmParams::source);
  cls.def_readwrite("kernels", &ConvGemmParams::kernels);
  cls.def_readwrite("epilogue", &ConvGemmParams::epilogue);
  def_address(cls, "out", &ConvGemmParams::out);
  def_array(cls, "out_stride", &ConvGemmParams::out_stride);
  cls.def_readwrite("first_sample", &ConvGemmParams::first_sample);
  cls.def_readwrite("multiprocessors", &ConvGemmParams::multiprocessors);
  m.def("conv_gemm_is_flat", &conv_gemm_is_flat);
  m.def("conv_gemm", [](const ConvGemmParams& p) { check(conv_gemm(p, nullptr)); });
}

const Binding binding(bind);

}  // namespace
