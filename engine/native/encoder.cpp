// The network's layers and mean pooling on a CPU, with matmuls in float32, bfloat16 or 8-bit integers. engine/model.py
// defines what is computed; the residual stream, norms, rotation and gate are float32 in every format.
//
// torch's oneDNN multiplies, or int8.h; attention.h or flash_attention.h attends; what lies between is in rows.h. Texts
// are cut into parts, a thread for each; a single part has its operators share the threads.
//
// Written against torch's stable ABI, so one binary serves every torch from TORCH_TARGET_VERSION on.

#include <torch/csrc/stable/library.h>

#include "attention.h"
#include "flash_attention.h"
#include "int8.h"
#include "processor.h"
#include "rows.h"
#include "torch_calls.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace {

// Tokens that are worth handing to another thread.
constexpr int64_t GRAIN = 8;

struct Sizes {
  int64_t hidden, heads, head_dim, intermediate;
  double eps, attention_scale, embedding_scale;
};

// Numbers in oneDNN's own layout, or those of a quantised matrix.
struct Matrix {
  Tensor numbers;
  const float* scales;
  const int32_t* sums;
};

struct Layer {
  Matrix qkv, out, gate_up, down;
  const float *qk_gain, *pre_attention, *post_attention, *pre_mlp, *post_mlp, *cos, *sin;
  int64_t window;  // the largest visible |i - j|; -1 where all is visible
};

// Neighbouring texts of a batch that are computed together; `x` is the residual stream of their tokens. Matmuls read and
// return T.
template <typename T, typename Attention, bool INT8 = false>
class Part {
 public:
  Part(const Sizes& sizes, const int64_t* lengths, int64_t texts, const int32_t* positions, float* x)
      : s(sizes), positions(positions), x(x), attention(s.heads, s.head_dim, s.attention_scale, lengths, texts) {
    for (int64_t text = 0; text < texts; ++text) tokens += lengths[text];
    rows = INT8 ? tokens : round_up(tokens, tokens <= 256 ? 8 : 32);  // oneDNN keeps a kernel for each number of rows
    normed = zeros<T>(rows, s.hidden);
    mixed = zeros<T>(rows, s.heads * s.head_dim);
    gated = empty<T>({rows, s.intermediate});
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
    rotate(product(normed, layer.qkv), layer);
    attention.run(layer.window, data<T>(mixed));
    add(product(mixed, layer.out), layer.post_attention, layer.pre_mlp, data<T>(normed));
    gate(layer.gate_up);
    add(product(gated, layer.down), layer.post_mlp, next_gain, out);
  }

  Tensor product(const Tensor& x, const Matrix& matrix) {
    if constexpr (!INT8) return linear(x, matrix.numbers);
    const int64_t columns = matrix.numbers.size(0) * PANEL;
    const Tensor result = empty<T>({rows, columns});
    T* out = data<T>(result);
    multiply_quantised(x, matrix, [&](int64_t row, int64_t first, const float* numbers) {
      for (int64_t i = 0; i < PANEL; i += STEP) store(out + row * columns + first + i, load(numbers + i));
    });
    return result;
  }

  template <typename Write>
  void multiply_quantised(const Tensor& x, const Matrix& matrix, const Write& write) {
    const int64_t n = x.size(1);
    QuantisedRows quantised(all_instructions().front(), rows, n);
    each(rows, [&](int64_t t) { quantise(data<T>(x) + t * n, quantised, t); });
    const QuantisedMatrix all{data<int8_t>(matrix.numbers), matrix.scales, matrix.sums};
    const int64_t grain = std::max<int64_t>(1, GRAIN * n / rows / PANEL);
    torch::stable::parallel_for(0, matrix.numbers.size(0), grain, [&](int64_t first, int64_t end) {
      multiply(quantised, rows, all, first, end, write);
    });
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

  void gate(const Matrix& gate_up) {
    const int64_t n = s.intermediate;
    T* out = data<T>(gated);
    if constexpr (INT8) {  // each panel has the columns of some gates, then those of their ups
      multiply_quantised(normed, gate_up, [&](int64_t row, int64_t first, const float* numbers) {
        geglu(numbers, numbers + PANEL / 2, PANEL / 2, out + row * n + first / 2);
      });
      return;
    }
    const Tensor both = linear(normed, gate_up.numbers);
    const T* in = data<T>(both);
    each(rows, [&](int64_t t) { geglu(in + 2 * t * n, in + (2 * t + 1) * n, n, out + t * n); });
  }

  void rotate(const Tensor& qkv, const Layer& layer) {
    const int64_t d = s.head_dim, width = s.heads * d;
    const T* all = data<T>(qkv);
    each(tokens, [&](int64_t t) {
      const int64_t angles = positions[t] * (d / 2);
      const T* in = all + t * (width + 2 * d);
      for (int64_t i = 0; i <= width; i += d) {
        auto* out = i < width ? attention.queries(t) + i : attention.keys(t);
        norm_rotate(in + i, layer.qk_gain + i, layer.cos + angles, layer.sin + angles, s.eps, d, out);
      }
      for (int64_t i = 0; i < d; i += STEP) store(attention.values(t) + i, load(in + width + d + i));
    });
  }

  const Sizes& s;
  const int32_t* positions;
  float* x;
  int64_t tokens = 0, rows;
  Attention attention;
  Tensor normed, mixed, gated;
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

// A layer's tensors are its four matrices, each followed by scales and sums if it is quantised, and its five gains.
// Angles are cos and sin of full layers, then of sliding ones.
std::vector<Layer> layers_of(const std::vector<Tensor>& tensors, const std::vector<int64_t>& windows,
                             const std::vector<Tensor>& angles, bool int8) {
  const size_t of_matrix = int8 ? 3 : 1, of_layer = 4 * of_matrix + 5;
  if (tensors.size() != of_layer * windows.size() || angles.size() != 4)
    throw std::invalid_argument("the layers' tensors or the angles are not as many as expected");
  std::vector<Layer> layers;
  const Tensor* next = tensors.data();
  const auto matrix = [&] {
    const Tensor* t = std::exchange(next, next + of_matrix);
    return int8 ? Matrix{t[0], data<float>(t[1]), data<int32_t>(t[2])} : Matrix{t[0], nullptr, nullptr};
  };
  const auto gain = [&] { return data<float>(*next++); };
  for (int64_t window : windows) {  // braces evaluate in order
    const Tensor* angle = &angles[window < 0 ? 0 : 2];
    layers.push_back({matrix(), matrix(), matrix(), matrix(), gain(), gain(), gain(), gain(), gain(),
                      data<float>(angle[0]), data<float>(angle[1]), window});
  }
  return layers;
}

// Float32 means [vectors, hidden] of the final norm. `x` [tokens, hidden], float32, holds the embeddings and is
// overwritten; texts parts[i] to parts[i + 1] are a part.
Tensor encode(Tensor x, Tensor positions, std::vector<int64_t> lengths, std::vector<int64_t> parts, Tensor starts,
              Tensor ends, std::vector<Tensor> tensors, std::vector<int64_t> windows, std::vector<Tensor> angles,
              Tensor final_gain, std::vector<int64_t> sizes, std::vector<double> scalars, bool bfloat16, bool int8) {
  const Sizes s{sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3), scalars.at(0), scalars.at(1), scalars.at(2)};
  const std::vector<Layer> layers = layers_of(tensors, windows, angles, int8);
  std::vector<int64_t> tokens{0};
  for (int64_t length : lengths) tokens.push_back(tokens.back() + length);
  const auto compute_part = [&]<typename Part>(int64_t i) {
    const int64_t first = parts[i], token = tokens.at(first);
    Part part(s, &lengths[first], parts[i + 1] - first, data<int32_t>(positions) + token, data<float>(x) + token * s.hidden);
    part.run(layers, data<float>(final_gain));
  };
  const auto compute = [&](int64_t i) {
    if (int8) return compute_part.operator()<Part<float, TiledAttention, true>>(i);
    if (!bfloat16) return compute_part.operator()<Part<float, TiledAttention>>(i);
    if (has_amx()) return compute_part.operator()<Part<BFloat16, FlashAttention>>(i);
    compute_part.operator()<Part<BFloat16, TiledAttention>>(i);
  };
  const int64_t count = parts.size() - 1, threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  std::atomic<int64_t> next = 0;  // a thread that has done its part takes another
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next++) < count;) compute(i);
  });
  return pool(x, starts, ends);
}

// Float32 x @ matrix.T, quantised, by one of the processor's sets of instructions: float32 `x` [rows, columns], `matrix`
// its panels, scales and sums.
Tensor linear_int8(Tensor x, std::vector<Tensor> matrix, int64_t instructions) {
  const int64_t rows = x.size(0), n = x.size(1), columns = matrix.at(0).size(0) * PANEL;
  QuantisedRows quantised(all_instructions().at(instructions), rows, n);
  for (int64_t row = 0; row < rows; ++row) quantise(data<float>(x) + row * n, quantised, row);
  const Tensor result = empty<float>({rows, columns});
  const QuantisedMatrix all{data<int8_t>(matrix[0]), data<float>(matrix.at(1)), data<int32_t>(matrix.at(2))};
  multiply(quantised, rows, all, 0, columns / PANEL, [&](int64_t row, int64_t first, const float* numbers) {
    std::copy_n(numbers, PANEL, data<float>(result) + row * columns + first);
  });
  return result;
}

std::vector<int64_t> int8_levels() {
  std::vector<int64_t> levels;
  for (const Instructions& each : all_instructions()) levels.push_back(each.levels);
  return levels;
}

}  // namespace

STABLE_TORCH_LIBRARY(embeddinggemma, library) {
  library.def(
      "encode(Tensor(a!) x, Tensor positions, int[] lengths, int[] parts, Tensor starts, Tensor ends, "
      "Tensor[] tensors, int[] windows, Tensor[] angles, Tensor final_gain, int[] sizes, float[] scalars, bool bfloat16, "
      "bool int8) -> Tensor");
  library.def("linear_int8(Tensor x, Tensor[] matrix, int instructions) -> Tensor");
  library.def("int8_levels() -> int[]");  // of each set of instructions, the fastest first
}

STABLE_TORCH_LIBRARY_IMPL(embeddinggemma, CompositeExplicitAutograd, library) {
  library.impl("encode", TORCH_BOX(&encode));
  library.impl("linear_int8", TORCH_BOX(&linear_int8));
  library.impl("int8_levels", TORCH_BOX(&int8_levels));
}
