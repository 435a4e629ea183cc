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
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace {

// Tokens that are worth handing to another thread.
constexpr int64_t GRAIN = 8;

// The heads of a kind of layers, and their width.
struct Heads {
  int64_t query, kv, width;
  bool operator==(const Heads&) const = default;
};

struct Sizes {
  int64_t hidden, intermediate, per_layer;
  Heads full, sliding;
  bool norms_values;
  double eps, attention_scale, embedding_scale, per_layer_eps;
};

// Numbers in oneDNN's own layout, or those of a quantised matrix.
struct Matrix {
  Tensor numbers;
  const float* scales;
  const int32_t* sums;
  const float* inverses;
};

// What a layer makes of the embeddings, where it has such an input.
struct PerLayer {
  Matrix gate, inputs, out;
  float factor;
  const float *norm, *post;
};

struct Layer {
  Matrix qkv, out, gate_up, down;
  std::optional<PerLayer> own;
  const float *head_gain, *pre_attention, *post_attention, *pre_mlp, *post_mlp, *cos, *sin;
  int64_t window;  // the largest visible |i - j|; -1 where all is visible
};

// Neighbouring texts of a batch that are computed together; `x` is the residual stream of their tokens. Matmuls read and
// return T.
template <typename T, typename Attention, bool INT8 = false>
class Part {
 public:
  Part(const Sizes& sizes, const int64_t* lengths, int64_t texts, const int32_t* positions, float* x)
      : s(sizes), positions(positions), x(x) {
    for (int64_t text = 0; text < texts; ++text) tokens += lengths[text];
    rows = INT8 ? tokens : round_up(tokens, tokens <= 256 ? 8 : 32);  // oneDNN keeps a kernel for each number of rows
    normed = zeros<T>(rows, s.hidden);
    gated = empty<T>({rows, s.intermediate});
    kinds.push_back(kind(s.sliding, lengths, texts));
    if (s.full != s.sliding) kinds.push_back(kind(s.full, lengths, texts));
    if (s.per_layer) embedded = zeros<T>(rows, s.hidden), own = empty<T>({rows, s.per_layer});
  }

  // `x` becomes the final norm's result.
  void run(const std::vector<Layer>& layers, const float* final_gain) {
    const int64_t n = s.hidden;
    T* out = data<T>(normed);
    T* kept = embedded ? data<T>(*embedded) : nullptr;
    each(tokens, [&](int64_t t) {
      for (int64_t i = t * n; i < (t + 1) * n; i += STEP) {
        store(x + i, load(x + i) * float(s.embedding_scale));
        if (kept) store(kept + i, load(x + i));
      }
      norm(x + t * n, layers.front().pre_attention, s.eps, n, out + t * n);
    });
    for (size_t i = 0; i + 1 < layers.size(); ++i) run(layers[i], layers[i + 1].pre_attention, out);
    run(layers.back(), final_gain, x);
  }

 private:
  // Layers with the same heads share an object for each key/value head, and the rows that these write.
  struct Kind {
    Heads heads;
    std::vector<Attention> attention;
    Tensor mixed;
  };

  Kind kind(const Heads& heads, const int64_t* lengths, int64_t texts) const {
    Kind made{heads, {}, zeros<T>(rows, heads.query * heads.width)};
    for (int64_t i = 0; i < heads.kv; ++i)
      made.attention.emplace_back(heads.query / heads.kv, heads.width, s.attention_scale, lengths, texts);
    return made;
  }

  // One layer; `out` gets the next norm of the residual stream.
  template <typename Out>
  void run(const Layer& layer, const float* next_gain, Out* out) {
    Kind& kind = layer.window < 0 ? kinds.back() : kinds.front();
    const int64_t stride = kind.heads.query * kind.heads.width;
    rotate(product(normed, layer.qkv), layer, kind);
    for (size_t i = 0; i < kind.attention.size(); ++i)
      kind.attention[i].run(layer.window, data<T>(kind.mixed) + i * stride / kind.heads.kv, stride);
    add(product(kind.mixed, layer.out), layer.post_attention, layer.pre_mlp, 1, data<T>(normed));
    gate(layer.gate_up);
    if (!layer.own) return add(product(gated, layer.down), layer.post_mlp, next_gain, 1, out);
    add(product(gated, layer.down), layer.post_mlp, nullptr, 1, data<T>(normed));
    add_own(*layer.own, next_gain, out);
  }

  // The layer's own input, gated by the residual stream, which `normed` holds here without a norm.
  template <typename Out>
  void add_own(const PerLayer& layer, const float* next_gain, Out* out) {
    const int64_t n = s.per_layer;
    const Tensor gates = product(normed, layer.gate), inputs = product(*embedded, layer.inputs);
    const T *gate = data<T>(gates), *input = data<T>(inputs);
    T* mixed = data<T>(*own);
    each(rows, [&](int64_t t) { gate_norm(gate + t * n, input + t * n, layer.norm, s.per_layer_eps, n, mixed + t * n); });
    add(product(*own, layer.out), layer.post, next_gain, layer.factor, out);
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
    each(rows, [&](int64_t t) { quantise(data<T>(x) + t * n, matrix.inverses, quantised, t); });
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
  void add(const Tensor& y, const float* post, const float* pre, float factor, Out* out) {
    const int64_t n = s.hidden;
    const T* added = data<T>(y);
    each(tokens, [&](int64_t t) { add_norm(x + t * n, added + t * n, post, pre, s.eps, factor, n, out + t * n); });
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

  void rotate(const Tensor& qkv, const Layer& layer, Kind& kind) {
    const auto [query, kv, d] = kind.heads;
    const int64_t group = query / kv;
    const T* all = data<T>(qkv);
    each(tokens, [&](int64_t t) {
      const int64_t angles = positions[t] * (d / 2);
      const T* in = all + t * (query + 2 * kv) * d;
      const float* gain = layer.head_gain;
      for (int64_t head = 0; head < query + kv; ++head, in += d, gain += d) {
        auto* out = head < query ? kind.attention[head / group].queries(t) + head % group * d
                                 : kind.attention[head - query].keys(t);
        norm_rotate(in, gain, layer.cos + angles, layer.sin + angles, s.eps, d, out);
      }
      for (Attention& attention : kind.attention) {
        auto* out = attention.values(t);
        if (s.norms_values)
          norm(in, std::exchange(gain, gain + d), s.eps, d, out);
        else
          for (int64_t i = 0; i < d; i += STEP) store(out + i, load(in + i));
        in += d;
      }
    });
  }

  const Sizes& s;
  const int32_t* positions;
  float* x;
  int64_t tokens = 0, rows;
  std::vector<Kind> kinds;  // sliding, then full layers if these differ
  Tensor normed, gated;
  std::optional<Tensor> embedded, own;
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

// A layer's tensors are its four matrices, with an input of its own seven, each followed by scales, sums and inverses if it
// is quantised, and its five or seven gains. Angles are cos and sin of full layers, then of sliding ones.
std::vector<Layer> layers_of(const std::vector<Tensor>& tensors, const std::vector<int64_t>& windows,
                             const std::vector<Tensor>& angles, const std::vector<double>& factors, bool int8) {
  const size_t of_matrix = int8 ? 4 : 1, of_layer = factors.empty() ? 4 * of_matrix + 5 : 7 * of_matrix + 7;
  if (tensors.size() != of_layer * windows.size() || angles.size() != 4 ||
      !(factors.empty() || factors.size() == windows.size()))
    throw std::invalid_argument("the layers' tensors, factors or angles are not as many as expected");
  std::vector<Layer> layers;
  const Tensor* next = tensors.data();
  const auto matrix = [&] {
    const Tensor* t = std::exchange(next, next + of_matrix);
    return int8 ? Matrix{t[0], data<float>(t[1]), data<int32_t>(t[2]), data<float>(t[3])} : Matrix{t[0]};
  };
  const auto gain = [&] { return data<float>(*next++); };
  for (int64_t window : windows) {  // braces evaluate in order
    const Tensor* angle = &angles[window < 0 ? 0 : 2];
    const auto own = [&] { return PerLayer{matrix(), matrix(), matrix(), float(factors[layers.size()])}; };
    layers.push_back({matrix(), matrix(), matrix(), matrix(), factors.empty() ? std::nullopt : std::optional(own()),
                      gain(), gain(), gain(), gain(), gain(), data<float>(angle[0]), data<float>(angle[1]), window});
    if (auto& made = layers.back().own) made->norm = gain(), made->post = gain();
  }
  return layers;
}

// Float32 means [vectors, hidden] of the final norm. `x` [tokens, hidden], float32, holds the embeddings and is
// overwritten; texts parts[i] to parts[i + 1] are a part. `sizes` and `scalars` are the fields of Sizes, and `factors`
// what each layer multiplies the residual stream by, if layers have inputs of their own.
Tensor encode(Tensor x, Tensor positions, std::vector<int64_t> lengths, std::vector<int64_t> parts, Tensor starts,
              Tensor ends, std::vector<Tensor> tensors, std::vector<int64_t> windows, std::vector<Tensor> angles,
              Tensor final_gain, std::vector<int64_t> sizes, std::vector<double> scalars, std::vector<double> factors,
              bool bfloat16, bool int8) {
  const Sizes s{sizes.at(0), sizes.at(1), sizes.at(2), {sizes.at(3), sizes.at(4), sizes.at(5)},
                {sizes.at(6), sizes.at(7), sizes.at(8)}, sizes.at(9) != 0,
                scalars.at(0), scalars.at(1), scalars.at(2), scalars.at(3)};
  const std::vector<Layer> layers = layers_of(tensors, windows, angles, factors, int8);
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
// its panels, scales, sums and inverses.
Tensor linear_int8(Tensor x, std::vector<Tensor> matrix, int64_t instructions) {
  const int64_t rows = x.size(0), n = x.size(1), columns = matrix.at(0).size(0) * PANEL;
  QuantisedRows quantised(all_instructions().at(instructions), rows, n);
  for (int64_t row = 0; row < rows; ++row) quantise(data<float>(x) + row * n, data<float>(matrix.at(3)), quantised, row);
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
      "Tensor[] tensors, int[] windows, Tensor[] angles, Tensor final_gain, int[] sizes, float[] scalars, float[] factors, "
      "bool bfloat16, bool int8) -> Tensor");
  library.def("linear_int8(Tensor x, Tensor[] matrix, int instructions) -> Tensor");
  library.def("int8_levels() -> int[]");  // of each set of instructions, the fastest first
}

STABLE_TORCH_LIBRARY_IMPL(embeddinggemma, CompositeExplicitAutograd, library) {
  library.impl("encode", TORCH_BOX(&encode));
  library.impl("linear_int8", TORCH_BOX(&linear_int8));
  library.impl("int8_levels", TORCH_BOX(&int8_levels));
}
