#include "../../csrc/cuda/pack_experts.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
  auto layer = params<PackExpertsLayer>(m, "PackExpertsLayer");
  def_address(layer, "weight", &PackExpertsLayer::weight);
  layer.def_readwrite("weight_type", &PackExpertsLayer::weight_type);
  layer.def_readwrite("dense", &PackExpertsLayer::dense);
  def_address(layer, "out", &PackExpertsLayer::out);
  layer.def_readwrite("batch_stride", &PackExpertsLayer::batch_stride);
  layer.def_readwrite("tap_stride", &PackExpertsLayer::tap_stride);
  layer.def_readwrite("row_stride", &PackExpertsLayer::row_stride);
  layer.def_readwrite("out_channels", &PackExpertsLayer::out_channels);
  layer.def_readwrite("group_in", &PackExpertsLayer::group_in);
  layer.def_readwrite("groups", &PackExpertsLayer::groups);
  layer.def_readwrite("taps", &PackExpertsLayer::taps);

  auto pack = params<PackExpertsParams>(m, "PackExpertsParams");
  def_address(pack, "routing", &PackExpertsParams::routing);
  pack.def_readwrite("routing_type", &PackExpertsParams::routing_type);
  pack.def_readwrite("batch", &PackExpertsParams::batch);
  pack.def_readwrite("experts", &PackExpertsParams::experts);
  pack.def_readwrite("out_type", &PackExpertsParams::out_type);
  pack.def_readwrite("transposed", &PackExpertsParams::transposed);

  m.def("pack_experts", [](PackExpertsParams p, const std::vector<PackExpertsLayer>& layers) {
    p.layers = layers.data();
    p.n_layers = static_cast<int64_t>(layers.size());
    check(pack_experts(p, nullptr));
  });
}

const Binding binding(bind);

}  // namespace
