// What the CUDA operators share: streams, devices, errors and types.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/dtype.h"
#include "cuda/runtime_api.h"
#include "ops/tensors.h"

// Under the emulation the same operators exist for CPU tensors, under another name.
#ifdef DASR_EMULATION
#define DASR_CUDA_NAMESPACE dasr_ops_emulated
#define DASR_CUDA_KEY CPU
#else
#define DASR_CUDA_NAMESPACE dasr_ops
#define DASR_CUDA_KEY CUDA
#endif

#ifndef DASR_EMULATION
// Exported by CUDA builds of torch alone; weak, so that one binary loads beside CPU builds too.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace dasr {

#ifdef DASR_EMULATION

struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};
inline cudaStream_t current_stream(const Tensor&) { return nullptr; }
inline int multiprocessors(const Tensor&) { return 132; }
inline int compute_capability(const Tensor&) { return 90; }

#else

// Makes the tensor's device current.
struct DeviceGuard : torch::stable::accelerator::DeviceGuard {
  explicit DeviceGuard(const Tensor& tensor)
      : torch::stable::accelerator::DeviceGuard(tensor.get_device_index()) {}
};

inline cudaStream_t current_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "dasr_ops: this torch does not export the current CUDA stream");
  void* stream = nullptr;
  check_status(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream),
               "aoti_torch_get_current_cuda_stream");
  return static_cast<cudaStream_t>(stream);
}

inline int attribute(const Tensor& tensor, cudaDeviceAttr which, int otherwise) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, tensor.get_device_index());
  return error == cudaSuccess ? value : otherwise;
}
inline int multiprocessors(const Tensor& tensor) {
  return attribute(tensor, cudaDevAttrMultiProcessorCount, 132);
}
// 90 for 9.0
inline int compute_capability(const Tensor& tensor) {
  return 10 * attribute(tensor, cudaDevAttrComputeCapabilityMajor, 0) +
         attribute(tensor, cudaDevAttrComputeCapabilityMinor, 0);
}

#endif

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "dasr_ops: CUDA: ", cudaGetErrorString(error));
}

inline DType dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "dasr_ops: expected a floating-point tensor");
  }
}
inline DType dtype_of(const Tensor& tensor) { return dtype_of(tensor.scalar_type()); }

}  // namespace dasr
