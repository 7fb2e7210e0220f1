#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

namespace dasr {

// For calls into the stable C shim. (PyTorch's own macro has changed its name between releases.)
inline void check_status(AOTITorchError status, const char* call) {
  STD_TORCH_CHECK(status == AOTI_TORCH_SUCCESS, "dasr_ops: ", call, " failed");
}

}  // namespace dasr
