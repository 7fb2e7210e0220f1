#include "../../csrc/cuda/reduce_splits.h"
#include "binding.h"

using namespace dasr;

namespace {

void bind(py::module_& m) {
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
