// Tensors by torch's stable ABI, and the operators of torch that are called.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "rows.h"

namespace {

using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
Tensor empty(std::vector<int64_t> sizes) {
  using torch::headeronly::ScalarType;
  return torch::stable::empty(sizes, std::is_same_v<T, float> ? ScalarType::Float : ScalarType::BFloat16);
}

template <typename T>
Tensor zeros(int64_t rows, int64_t columns) {
  const Tensor tensor = empty<T>({rows, columns});
  std::memset(tensor.data_ptr(), 0, rows * columns * sizeof(T));
  return tensor;
}

template <size_t N>
Tensor call(const char* name, std::array<StableIValue, N> stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_TARGET_VERSION));
  return to<Tensor>(stack[0]);
}

inline Tensor strided(const Tensor& x, std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t offset) {
  return call<4>("aten::as_strided", {from(x), from(sizes), from(strides), from(std::optional<int64_t>(offset))});
}

// x @ weight.T, the weight in oneDNN's own layout.
inline Tensor linear(const Tensor& x, const Tensor& weight) {
  const std::vector<std::optional<double>> scalars;
  const std::optional<std::string> algorithm;
  return call<6>("mkldnn::_linear_pointwise", {from(x), from(weight), from(std::optional<Tensor>()),
                                               from(std::string("none")), from(scalars), from(algorithm)});
}

inline Tensor flash_attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double scale) {
  std::array<StableIValue, 7> stack{from(q),     from(k),    from(v), from(0.0),
                                    from(false), from(mask), from(std::optional<double>(scale))};
  const char* name = "aten::_scaled_dot_product_flash_attention_for_cpu";
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_TARGET_VERSION));
  to<Tensor>(stack[1]);  // the sums of exponentials, which are freed here
  return to<Tensor>(stack[0]);
}

}  // namespace
