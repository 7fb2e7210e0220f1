// The Python module around the emulated kernels.
#include "binding.h"

#include "../../csrc/cuda/conv.h"
#include "probes.h"

using namespace dasr;

namespace {

void bind_conv(py::module_& m) {
  auto shape = params<ConvShape>(m, "ConvShape");
  shape.def_readwrite("batch", &ConvShape::batch);
  const auto def = [&](const char* name, int ConvShape::* member) {
    shape.def_readwrite(name, member);
  };
  def("groups", &ConvShape::groups);
  def("in_channels", &ConvShape::in_channels);
  def("in_height", &ConvShape::in_height);
  def("in_width", &ConvShape::in_width);
  def("out_channels", &ConvShape::out_channels);
  def("out_height", &ConvShape::out_height);
  def("out_width", &ConvShape::out_width);
  def("kernel_h", &ConvShape::kernel_h);
  def("kernel_w", &ConvShape::kernel_w);
  def("stride_h", &ConvShape::stride_h);
  def("stride_w", &ConvShape::stride_w);
  def("pad_top", &ConvShape::pad_top);
  def("pad_left", &ConvShape::pad_left);
  def("dilation_h", &ConvShape::dilation_h);
  def("dilation_w", &ConvShape::dilation_w);

  auto tensor = params<ConvTensor>(m, "ConvTensor");
  def_address(tensor, "data", &ConvTensor::data);
  tensor.def_readwrite("type", &ConvTensor::type);
  def_array(tensor, "stride", &ConvTensor::stride);

  auto packed = params<PackedKernels>(m, "PackedKernels");
  def_address(packed, "data", &PackedKernels::data);
  packed.def_readwrite("type", &PackedKernels::type);
  packed.def_readwrite("batch_stride", &PackedKernels::batch_stride);
  packed.def_readwrite("tap_stride", &PackedKernels::tap_stride);
  packed.def_readwrite("row_stride", &PackedKernels::row_stride);

  auto bias = params<ConvBias>(m, "ConvBias");
  def_address(bias, "bias", &ConvBias::bias);
  def_address(bias, "routing", &ConvBias::routing);
  bias.def_readwrite("bias_type", &ConvBias::bias_type);
  bias.def_readwrite("routing_type", &ConvBias::routing_type);
  bias.def_readwrite("experts", &ConvBias::experts);

  auto epilogue = params<ConvEpilogue>(m, "ConvEpilogue");
  epilogue.def_readwrite("bias", &ConvEpilogue::bias);
  epilogue.def_readwrite("upscale", &ConvEpilogue::upscale);
  epilogue.def_readwrite("activation", &ConvEpilogue::activation);
  epilogue.def_readwrite("negative_slope", &ConvEpilogue::negative_slope);
  epilogue.def_readwrite("residual", &ConvEpilogue::residual);
  epilogue.def_readwrite("residual_scale", &ConvEpilogue::residual_scale);
  def_address(epilogue, "mask", &ConvEpilogue::mask);
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::kFloat32)
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBFloat16)
      .value("float64", DType::kFloat64);

  bind_conv(m);
  for (const Bind bind : bindings()) bind(m);

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
