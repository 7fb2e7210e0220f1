// Helpers over the LibTorch stable ABI that the operators share.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "ops/status.h"

namespace dasr {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type that sums over experts are formed in: float64 if any operand is.
inline ScalarType accumulate_type(std::initializer_list<ScalarType> types) {
  for (ScalarType type : types) {
    if (type == ScalarType::Double) return ScalarType::Double;
  }
  return ScalarType::Float;
}

// Calls f with a zero of the type that a kernel computes in, float64 or float32.
template <typename F>
void dispatch_float_or_double(ScalarType type, const F& f) {
  if (type == ScalarType::Double) {
    f(double{});
  } else {
    f(float{});
  }
}

// The format of an output: channels_last if the channel stride of the input is 1.
inline bool is_channels_last(const Tensor& input) {
  return input.stride(1) == 1 && input.size(1) > 1 && (input.size(2) > 1 || input.size(3) > 1);
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor cast(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

inline std::optional<Tensor> cast(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor) return std::nullopt;
  return cast(*tensor, type);
}

// torch::stable::contiguous looks an operator up by its name: that costs more than a small kernel.
inline Tensor to_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor contiguous(const Tensor& tensor, ScalarType type) {
  return to_contiguous(cast(tensor, type));
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor, ScalarType type) {
  if (!tensor) return std::nullopt;
  return contiguous(*tensor, type);
}

// Memory strides of a dense tensor; channels_last is for four dimensions.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& size, bool channels_last) {
  if (channels_last) {
    return {size[1] * size[2] * size[3], 1, size[1] * size[3], size[1]};
  }
  std::vector<int64_t> strides(size.size());
  int64_t step = 1;
  for (size_t d = size.size(); d-- > 0;) {
    strides[d] = step;
    step *= std::max<int64_t>(size[d], 1);
  }
  return strides;
}

// Of the shim's own functions this one needs no operator to be looked up, as torch::stable::empty
// does.
inline Tensor empty_like_device(const Tensor& like, const std::vector<int64_t>& size,
                                ScalarType type, bool channels_last = false) {
  const std::vector<int64_t> strides = dense_strides(size, channels_last);
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device = 0;
  check_status(aoti_torch_get_device_type(like.get(), &device), "aoti_torch_get_device_type");
  AtenTensorHandle result = nullptr;
  check_status(
      aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), strides.data(),
                               dtype, device, like.get_device_index(), &result),
      "aoti_torch_empty_strided");
  return Tensor(result);
}

// A contiguous tensor with another shape.
inline Tensor reshaped(const Tensor& tensor, const std::vector<int64_t>& size) {
  return torch::stable::view(tensor, size);
}

inline Tensor zeros_like_device(const Tensor& like, const std::vector<int64_t>& size,
                                ScalarType type, bool channels_last = false) {
  Tensor result = empty_like_device(like, size, type, channels_last);
  if (result.is_cpu()) {
    std::memset(result.mutable_data_ptr(), 0, result.numel() * result.element_size());
  } else {
    torch::stable::zero_(result);
  }
  return result;
}

inline std::vector<int64_t> size_vector(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// aten operators without a wrapper in torch/csrc/stable/ops.h; every argument has its exact type.
template <typename... Outputs, typename... Args>
std::tuple<Outputs...> call_aten(const char* op, const char* overload, const Args&... args) {
  constexpr size_t slots = std::max(sizeof...(Outputs), sizeof...(Args));
  std::array<StableIValue, slots> stack{torch::stable::detail::from(args)...};
  check_status(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION), op);
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return std::tuple<Outputs...>(torch::stable::detail::to<Outputs>(stack[I])...);
  }(std::index_sequence_for<Outputs...>{});
}

}  // namespace dasr
