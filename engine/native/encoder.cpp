// The network's layers and mean pooling on a CPU, in float32 or with bfloat16 matmuls. engine/model.py defines what is
// computed; the residual stream, norms, rotation and gate are float32 in either format.
//
// torch's oneDNN multiplies and torch's FlashAttention for CPUs attends; what lies between is in rows.h. Texts are cut
// into parts, a thread for each; a single part has its operators share the threads.
//
// Written against torch's stable ABI, so one binary serves every torch from TORCH_TARGET_VERSION on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "rows.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;

// ---- Tensors, and the operators of torch that are called.

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

Tensor strided(const Tensor& x, std::vector<int64_t> sizes, std::vector<int64_t> strides, int64_t offset) {
  return call<4>("aten::as_strided", {from(x), from(sizes), from(strides), from(std::optional<int64_t>(offset))});
}

// x @ weight.T, the weight in oneDNN's own layout.
Tensor linear(const Tensor& x, const Tensor& weight) {
  const std::vector<std::optional<double>> scalars;
  const std::optional<std::string> algorithm;
  return call<6>("mkldnn::_linear_pointwise", {from(x), from(weight), from(std::optional<Tensor>()),
                                               from(std::string("none")), from(scalars), from(algorithm)});
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double scale) {
  std::array<StableIValue, 7> stack{from(q),     from(k),    from(v), from(0.0),
                                    from(false), from(mask), from(std::optional<double>(scale))};
  const char* name = "aten::_scaled_dot_product_flash_attention_for_cpu";
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_TARGET_VERSION));
  to<Tensor>(stack[1]);  // the sums of exponentials, which are freed here
  return to<Tensor>(stack[0]);
}

// ---- The network.

// oneDNN's small matmuls take up to three times as long for keys that are not a multiple of 16.
constexpr int64_t KEY_STEP = 16;
// Queries in one block of a long sliding-window text.
constexpr int64_t QUERIES = 128;
// Tokens that are worth handing to another thread.
constexpr int64_t GRAIN = 8;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Sizes {
  int64_t hidden, heads, head_dim, intermediate;
  double eps, attention_scale, embedding_scale;
};

struct Layer {
  Tensor qkv, out, gate_up, down;
  const float *qk_gain, *pre_attention, *post_attention, *pre_mlp, *post_mlp, *cos, *sin;
  int64_t window;  // the largest visible |i - j|; -1 where all is visible
};

// Texts of like length. Their queries, keys and values lie in rows of their own with zeros up to an equal number of
// rows, so that one call attends within all of them; a mask hides the zeros.
struct Group {
  int64_t token, row, padded;
  std::vector<int64_t> lengths;
  std::map<std::array<int64_t, 3>, Tensor> masks;  // by text, first query and window
};

// Neighbouring texts of a batch that are computed together; `x` is the residual stream of their tokens.
template <typename T>
class Part {
 public:
  Part(const Sizes& sizes, const int64_t* lengths, int64_t texts, const int32_t* positions, float* x)
      : s(sizes), positions(positions), x(x) {
    int64_t padded_rows = 0;
    for (int64_t text = 0; text < texts;) {
      Group group{tokens, padded_rows, round_up(lengths[text], KEY_STEP), {}, {}};
      for (; text < texts && round_up(lengths[text], KEY_STEP) == group.padded; ++text) {
        for (int64_t i = 0; i < lengths[text]; ++i) padded_row.push_back(padded_rows + i);
        group.lengths.push_back(lengths[text]);
        tokens += lengths[text];
        padded_rows += group.padded;
      }
      groups.push_back(std::move(group));
    }
    rows = round_up(tokens, tokens <= 256 ? 8 : 32);  // oneDNN keeps a kernel for each number of rows
    normed = zeros<T>(rows, s.hidden);
    mixed = zeros<T>(rows, s.heads * s.head_dim);
    gated = empty<T>({rows, s.intermediate});
    q = zeros<T>(padded_rows, s.heads * s.head_dim);
    k = zeros<T>(padded_rows, s.head_dim);
    v = zeros<T>(padded_rows, s.head_dim);
  }

  // `x` becomes the final norm's result.
  void run(const std::vector<Layer>& layers, const float* final_gain) {
    const int64_t n = s.hidden;
    T* out = data<T>(normed);
    each(tokens, [&](int64_t t) {
      for (int64_t i = t * n; i < (t + 1) * n; i += STEP) store(x + i, load(x + i) * float(s.embedding_scale));
      norm(x + t * n, layers.front().pre_attention, s.eps, n, out + t * n);
    });
    for (size_t i = 0; i + 1 < layers.size(); ++i) run(layers[i], layers[i + 1].pre_attention, out);
    run(layers.back(), final_gain, x);
  }

 private:
  // One layer; `out` gets the next norm of the residual stream.
  template <typename Out>
  void run(const Layer& layer, const float* next_gain, Out* out) {
    rotate(linear(normed, layer.qkv), layer);
    for (Group& group : groups) attend(group, layer.window);
    add(linear(mixed, layer.out), layer.post_attention, layer.pre_mlp, data<T>(normed));
    gate(linear(normed, layer.gate_up));
    add(linear(gated, layer.down), layer.post_mlp, next_gain, out);
  }

  template <typename F>
  void each(int64_t count, const F& f) {
    torch::stable::parallel_for(0, count, GRAIN, [&](int64_t first, int64_t end) {
      for (int64_t t = first; t < end; ++t) f(t);
    });
  }

  template <typename Out>
  void add(const Tensor& y, const float* post, const float* pre, Out* out) {
    const int64_t n = s.hidden;
    const T* added = data<T>(y);
    each(tokens, [&](int64_t t) { add_norm(x + t * n, added + t * n, post, pre, s.eps, n, out + t * n); });
  }

  void gate(const Tensor& gate_up) {
    const int64_t n = s.intermediate;
    const T* in = data<T>(gate_up);
    T* out = data<T>(gated);
    each(rows, [&](int64_t t) { geglu(in + 2 * t * n, in + (2 * t + 1) * n, n, out + t * n); });
  }

  void rotate(const Tensor& qkv, const Layer& layer) {
    const int64_t d = s.head_dim, width = s.heads * d;
    const T* all = data<T>(qkv);
    T *to_q = data<T>(q), *to_k = data<T>(k), *to_v = data<T>(v);
    each(tokens, [&](int64_t t) {
      const int64_t angles = positions[t] * (d / 2), row = padded_row[t];
      const T* in = all + t * (width + 2 * d);
      for (int64_t i = 0; i <= width; i += d) {
        T* out = i < width ? to_q + row * width + i : to_k + row * d;
        norm_rotate(in + i, layer.qk_gain + i, layer.cos + angles, layer.sin + angles, s.eps, d, out);
      }
      std::copy_n(in + width + d, d, to_v + row * d);
    });
  }

  void attend(Group& group, int64_t window) {
    const int64_t width = s.heads * s.head_dim;
    T* out = data<T>(mixed) + group.token * width;
    if (window < 0 || group.padded <= window + 1) {
      const Tensor result = attend(group, 0, group.lengths.size(), 0, group.padded, -1);
      const T* in = data<T>(result);
      for (int64_t length : group.lengths) {
        out = std::copy_n(in, length * width, out);
        in += group.padded * width;
      }
      return;
    }
    for (size_t text = 0; text < group.lengths.size(); ++text)
      for (int64_t first = 0; first < group.lengths[text]; first += QUERIES) {
        const int64_t end = std::min(first + QUERIES, group.lengths[text]);
        const Tensor result = attend(group, text, 1, first, end, window);
        out = std::copy_n(data<T>(result), (end - first) * width, out);
      }
  }

  // Queries [first, end) of `count` texts against the keys that one of them may see. All heads of all queries are rows
  // of one matmul, [texts, 1, queries * heads, head_dim], as they share keys and values.
  Tensor attend(Group& group, int64_t text, int64_t count, int64_t first, int64_t end, int64_t window) {
    const int64_t d = s.head_dim, width = s.heads * d, row = group.row + text * group.padded;
    const int64_t first_key = window < 0 ? 0 : std::max<int64_t>(0, first - window);
    const int64_t end_key = window < 0 ? group.padded : std::min(group.padded, round_up(end + window, KEY_STEP));
    const std::vector<int64_t> queries{count, 1, (end - first) * s.heads, d}, keys{count, 1, end_key - first_key, d};
    const std::vector<int64_t> strides{group.padded * d, d, d, 1};
    std::optional<Tensor> mask;
    if (window >= 0 || hides(group)) mask = this->mask(group, text, count, first, end, first_key, end_key, window);
    return attention(strided(q, queries, {group.padded * width, d, d, 1}, (row + first) * width),
                     strided(k, keys, strides, (row + first_key) * d), strided(v, keys, strides, (row + first_key) * d),
                     mask, s.attention_scale);
  }

  static bool hides(const Group& group) {
    const auto is_padded = [&](int64_t length) { return length < group.padded; };
    return std::any_of(group.lengths.begin(), group.lengths.end(), is_padded);
  }

  // 0 where visible, else -infinity: [texts, 1, queries * heads or 1, keys].
  Tensor mask(Group& group, int64_t text, int64_t count, int64_t first, int64_t end, int64_t first_key,
              int64_t end_key, int64_t window) {
    const auto [place, is_new] = group.masks.try_emplace({text, first, window});
    if (!is_new) return place->second;
    const int64_t rows = window < 0 ? 1 : (end - first) * s.heads, keys = end_key - first_key;
    const Tensor flat = zeros<T>(count * rows, keys);
    T* number = data<T>(flat);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t query = 0; query < rows; ++query)
        for (int64_t key = first_key; key < end_key; ++key, ++number) {
          const int64_t distance = window < 0 ? -1 : std::abs(first + query / s.heads - key);
          if (key >= group.lengths[text + i] || distance > window) hide(number);
        }
    return place->second = strided(flat, {count, 1, rows, keys}, {rows * keys, keys, keys, 1}, 0);
  }

  static void hide(float* number) { *number = -INFINITY; }
  static void hide(BFloat16* number) { number->bits = 0xff80; }

  const Sizes& s;
  const int32_t* positions;
  float* x;
  int64_t tokens = 0, rows;
  std::vector<Group> groups;
  std::vector<int64_t> padded_row;  // of each token
  Tensor normed, mixed, gated, q, k, v;
};

// The mean of rows [start, end) of x for each vector; zeros where there are none.
Tensor pool(const Tensor& x, const Tensor& starts, const Tensor& ends) {
  const int64_t n = x.size(1), vectors = starts.size(0);
  const Tensor means = zeros<float>(vectors, n);
  const float* rows = data<float>(x);
  const int32_t *first_rows = data<int32_t>(starts), *end_rows = data<int32_t>(ends);
  float* out = data<float>(means);
  torch::stable::parallel_for(0, vectors, GRAIN, [&](int64_t first, int64_t last) {
    for (int64_t v = first; v < last; ++v) {
      float* mean = out + v * n;
      for (int64_t t = first_rows[v]; t < end_rows[v]; ++t)
        for (int64_t i = 0; i < n; i += STEP) store(mean + i, load(mean + i) + load(rows + t * n + i));
      const float count = std::max(end_rows[v] - first_rows[v], 1);
      for (int64_t i = 0; i < n; i += STEP) store(mean + i, load(mean + i) / count);
    }
  });
  return means;
}

constexpr size_t TENSORS_OF_LAYER = 9;

// Angles are cos and sin of full layers, then of sliding ones.
std::vector<Layer> layers_of(const std::vector<Tensor>& tensors, const std::vector<int64_t>& windows,
                             const std::vector<Tensor>& angles) {
  if (tensors.size() != TENSORS_OF_LAYER * windows.size() || angles.size() != 4)
    throw std::invalid_argument("expected 9 tensors a layer and 4 of angles");
  std::vector<Layer> layers;
  for (size_t i = 0; i < windows.size(); ++i) {
    const Tensor* t = &tensors[TENSORS_OF_LAYER * i];
    const Tensor* angle = &angles[windows[i] < 0 ? 0 : 2];
    layers.push_back({t[0], t[1], t[2], t[3], data<float>(t[4]), data<float>(t[5]), data<float>(t[6]), data<float>(t[7]),
                      data<float>(t[8]), data<float>(angle[0]), data<float>(angle[1]), windows[i]});
  }
  return layers;
}

// Float32 means [vectors, hidden] of the final norm. `x` [tokens, hidden], float32, holds the embeddings and is
// overwritten; texts parts[i] to parts[i + 1] are a part.
Tensor encode(Tensor x, Tensor positions, std::vector<int64_t> lengths, std::vector<int64_t> parts, Tensor starts,
              Tensor ends, std::vector<Tensor> tensors, std::vector<int64_t> windows, std::vector<Tensor> angles,
              Tensor final_gain, std::vector<int64_t> sizes, std::vector<double> scalars, bool bfloat16) {
  const Sizes s{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), scalars.at(0), scalars.at(1), scalars.at(2)};
  const std::vector<Layer> layers = layers_of(tensors, windows, angles);
  std::vector<int64_t> tokens{0};
  for (int64_t length : lengths) tokens.push_back(tokens.back() + length);
  const auto compute = [&](auto number, int64_t i) {
    const int64_t first = parts[i], token = tokens.at(first);
    Part<decltype(number)> part(s, &lengths[first], parts[i + 1] - first, data<int32_t>(positions) + token,
                                data<float>(x) + token * s.hidden);
    part.run(layers, data<float>(final_gain));
  };
  const int64_t count = parts.size() - 1, threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  std::atomic<int64_t> next = 0;  // a thread that has done its part takes another
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next++) < count;) bfloat16 ? compute(BFloat16{}, i) : compute(float{}, i);
  });
  return pool(x, starts, ends);
}

}  // namespace

STABLE_TORCH_LIBRARY(embeddinggemma, library) {
  library.def(
      "encode(Tensor(a!) x, Tensor positions, int[] lengths, int[] parts, Tensor starts, Tensor ends, "
      "Tensor[] tensors, int[] windows, Tensor[] angles, Tensor final_gain, int[] sizes, float[] scalars, bool bfloat16) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(embeddinggemma, CompositeExplicitAutograd, library) {
  library.impl("encode", TORCH_BOX(&encode));
}
