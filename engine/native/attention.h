// Attention in float32, text by text, by products of small tiles: softmax(q k^T * scale) v, for the query heads of a token
// that share its keys and values. torch's own is twice as slow where oneDNN and MKL have no fast kernel for it.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "rows.h"

namespace {

// A tile of sums fills the vector registers: 32 of AVX-512 and NEON, 16 of AVX2.
constexpr int64_t SUM_ROWS = 6, SUM_VECTORS = STEP == 16 ? 4 : 2;
// Query rows that read keys and values while they are in the cache. It does not hold all of a text of LONG_TEXT tokens,
// so fewer, larger blocks read them; but not within a window, as larger blocks would compute more of what it hides.
constexpr int64_t BLOCK_ROWS = 4 * SUM_ROWS, LARGE_BLOCK_ROWS = 16 * SUM_ROWS, LONG_TEXT = 1024;
// Keys whose values are added to a block's sums before the next keys' are read.
constexpr int64_t DEPTH = 512;

// The distances between rows of two matrices and of their product, and between every STEP columns of the second.
struct Strides {
  int64_t a, b, b_columns, out;
};

// out[r][c] = the sum over k < depth of a[r][k] * b[k][c], for r < ROWS and c < VECTORS * STEP; `add` adds it instead.
template <int64_t ROWS, int64_t VECTORS>
void sum_tile(const float* a, const float* b, const Strides& strides, int64_t depth, bool add, float* out) {
  const auto [a_row, b_row, b_columns, out_row] = strides;
  Floats all[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int64_t r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) all[r][v] = add ? load(out + r * out_row + v * STEP) : Floats{};
  for (int64_t k = 0; k < depth; ++k) {
    Floats columns[VECTORS];
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) columns[v] = load(b + k * b_row + v * b_columns);
#pragma GCC unroll 8
    for (int64_t r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int64_t v = 0; v < VECTORS; ++v) all[r][v] += a[r * a_row + k] * columns[v];
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int64_t v = 0; v < VECTORS; ++v) store(out + r * out_row + v * STEP, all[r][v]);
}

template <int64_t ROWS>
void sum_rows(const float* a, const float* b, const Strides& strides, int64_t depth, int64_t columns, bool add,
              float* out) {
  if (columns >= SUM_VECTORS * STEP) return sum_tile<ROWS, SUM_VECTORS>(a, b, strides, depth, add, out);
  for (int64_t c = 0; c < columns; c += STEP)
    sum_tile<ROWS, 1>(a, b + c / STEP * strides.b_columns, strides, depth, add, out + c);
}

// The product of a [rows, depth] and b [depth, columns]; columns are a multiple of STEP.
inline void multiply(const float* a, const float* b, const Strides& strides, int64_t rows, int64_t depth,
                     int64_t columns, float* out) {
  using Sum = void (*)(const float*, const float*, const Strides&, int64_t, int64_t, bool, float*);
  static constexpr Sum BY_ROWS[] = {sum_rows<1>, sum_rows<2>, sum_rows<3>, sum_rows<4>, sum_rows<5>, sum_rows<6>};
  for (int64_t k = 0; k < depth; k += DEPTH)
    for (int64_t c = 0; c < columns; c += SUM_VECTORS * STEP)
      for (int64_t r = 0; r < rows; r += SUM_ROWS)
        BY_ROWS[std::min(SUM_ROWS, rows - r) - 1](
            a + r * strides.a + k, b + k * strides.b + c / STEP * strides.b_columns, strides,
            std::min(DEPTH, depth - k), columns - c, k > 0, out + r * strides.out + c);
}

// Turn the scores [first, end) of a row into weights that sum to 1, and the others of its `n` into 0.
inline void softmax(float* scores, int64_t first, int64_t end, int64_t n, float scale) {
  std::fill(scores, scores + first, -INFINITY);
  std::fill(scores + end, scores + n, -INFINITY);
  Floats largest = load(scores), total{};
  for (int64_t i = STEP; i < n; i += STEP) {
    const Floats x = load(scores + i);
    largest = x > largest ? x : largest;
  }
  float most = largest[0];
  for (int64_t i = 1; i < STEP; ++i) most = std::max(most, largest[i]);
  for (int64_t i = 0; i < n; i += STEP) store(scores + i, exponential((load(scores + i) - most) * scale));
  std::fill(scores, scores + first, 0.0f);
  std::fill(scores + end, scores + n, 0.0f);
  for (int64_t i = 0; i < n; i += STEP) total += load(scores + i);
  const float inverse = 1.0f / sum(total);
  for (int64_t i = 0; i < n; i += STEP) store(scores + i, load(scores + i) * inverse);
}

// The queries, keys and values of some texts, which `run` mixes.
class TiledAttention {
 public:
  using Number = float;

  TiledAttention(int64_t heads, int64_t head_dim, double scale, const int64_t* lengths, int64_t texts)
      : heads(heads), d(head_dim), scale(scale), lengths(lengths, lengths + texts) {
    int64_t tokens = 0, longest = 0;
    for (int64_t length : this->lengths) tokens += length, longest = std::max(longest, length);
    q.resize(tokens * heads * d);
    k.resize(tokens * d);
    v.resize(tokens * d);
    transposed.resize(d * rounded(longest));
  }

  float* queries(int64_t token) { return &q[token * heads * d]; }
  float* keys(int64_t token) { return &k[token * d]; }
  float* values(int64_t token) { return &v[token * d]; }

  // Write [tokens, heads * head_dim] into rows of `stride`; of a window that is not negative, |i - j| is at most it.
  template <typename T>
  void run(int64_t window, T* mixed, int64_t stride) {
    int64_t token = 0;
    for (int64_t length : lengths) {
      transpose(token, length);
      const bool large = window < 0 && length >= LONG_TEXT;
      const int64_t rows = length * heads, of_block = large ? LARGE_BLOCK_ROWS : BLOCK_ROWS;
      torch::stable::parallel_for(0, (rows + of_block - 1) / of_block, 1, [&](int64_t first, int64_t end) {
        for (int64_t row = first * of_block; row < std::min(rows, end * of_block); row += of_block)
          mix(token, length, row, std::min(of_block, rows - row), window, mixed, stride);
      });
      token += length;
    }
  }

 private:
  static int64_t rounded(int64_t n) { return (n + STEP - 1) / STEP * STEP; }

  // transposed[j / STEP][i][j % STEP] = the number i of key j; zeros beyond the last key. Rows of all keys, where they
  // are a power of two apart, would share few places of the cache.
  void transpose(int64_t token, int64_t length) {
    torch::stable::parallel_for(0, rounded(length) / STEP, 4, [&](int64_t first, int64_t end) {
      float* out = &transposed[first * d * STEP];
      for (int64_t j = first * STEP; j < end * STEP; j += STEP)
        for (int64_t i = 0; i < d; ++i)
          for (int64_t l = 0; l < STEP; ++l) *out++ = j + l < length ? k[(token + j + l) * d + i] : 0.0f;
    });
  }

  // A block of rows, each a query head of a token, against the keys that one of them may see.
  template <typename T>
  void mix(int64_t token, int64_t length, int64_t row, int64_t rows, int64_t window, T* mixed, int64_t out_stride) {
    const int64_t reach = window < 0 ? length : window;
    const int64_t first_key = std::max<int64_t>(0, row / heads - reach) / STEP * STEP;
    const int64_t end_key = std::min(length, (row + rows - 1) / heads + reach + 1);
    const int64_t stride = rounded(end_key - first_key);
    thread_local std::vector<float> scores, result;
    scores.resize(rows * stride);
    result.resize(rows * d);
    multiply(&q[(token * heads + row) * d], &transposed[first_key * d], {d, STEP, d * STEP, stride}, rows, d, stride,
             scores.data());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = (row + r) / heads;
      softmax(&scores[r * stride], std::max<int64_t>(0, i - reach - first_key),
              std::min(length, i + reach + 1) - first_key, stride, scale);
    }
    multiply(scores.data(), &v[(token + first_key) * d], {stride, d, STEP, d}, rows, end_key - first_key, d,
             result.data());
    for (int64_t r = 0; r < rows; ++r) {
      T* out = mixed + (token + (row + r) / heads) * out_stride + (row + r) % heads * d;
      for (int64_t i = 0; i < d; i += STEP) store(out + i, load(&result[r * d + i]));
    }
  }

  int64_t heads, d;
  float scale;
  std::vector<int64_t> lengths;
  std::vector<float> q, k, v;     // [tokens, heads, d], [tokens, d] twice
  std::vector<float> transposed;  // [keys / STEP, d, STEP] of the text at hand
};

}  // namespace
