// Attention in bfloat16 by torch's FlashAttention for CPUs, which multiplies by AMX where there is one.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "torch_calls.h"

namespace {

// oneDNN's small matmuls take up to three times as long for keys that are not a multiple of 16.
constexpr int64_t KEY_STEP = 16;
// Queries in one block of a long sliding-window text.
constexpr int64_t QUERIES = 128;

// Texts of like length. Their queries, keys and values lie in rows of their own with zeros up to an equal number of
// rows, so that one call attends within all of them; a mask hides the zeros.
struct Group {
  int64_t token, row, padded;
  std::vector<int64_t> lengths;
  std::map<std::array<int64_t, 3>, Tensor> masks;  // by text, first query and window
};

// The queries, keys and values of some texts, which `run` mixes, for query heads that share keys and values.
class FlashAttention {
 public:
  using Number = BFloat16;

  FlashAttention(int64_t heads, int64_t head_dim, double scale, const int64_t* lengths, int64_t texts)
      : heads(heads), d(head_dim), scale(scale) {
    int64_t rows = 0, tokens = 0;
    for (int64_t text = 0; text < texts;) {
      Group group{tokens, rows, round_up(lengths[text], KEY_STEP), {}, {}};
      for (; text < texts && round_up(lengths[text], KEY_STEP) == group.padded; ++text) {
        for (int64_t i = 0; i < lengths[text]; ++i) row_of_token.push_back(rows + i);
        group.lengths.push_back(lengths[text]);
        tokens += lengths[text];
        rows += group.padded;
      }
      groups.push_back(std::move(group));
    }
    q = zeros<BFloat16>(rows, heads * d);
    k = zeros<BFloat16>(rows, d);
    v = zeros<BFloat16>(rows, d);
  }

  BFloat16* queries(int64_t token) { return data<BFloat16>(q) + row_of_token[token] * heads * d; }
  BFloat16* keys(int64_t token) { return data<BFloat16>(k) + row_of_token[token] * d; }
  BFloat16* values(int64_t token) { return data<BFloat16>(v) + row_of_token[token] * d; }

  // Write [tokens, heads * head_dim] into rows of `stride`; of a window that is not negative, |i - j| is at most it.
  void run(int64_t window, BFloat16* mixed, int64_t stride) {
    for (Group& group : groups) attend(group, window, mixed + group.token * stride, stride);
  }

 private:
  // Copy rows and return where the next one goes.
  BFloat16* copy(const BFloat16* in, int64_t rows, BFloat16* out, int64_t stride) const {
    for (int64_t row = 0; row < rows; ++row, out += stride) std::copy_n(in + row * heads * d, heads * d, out);
    return out;
  }

  void attend(Group& group, int64_t window, BFloat16* out, int64_t stride) {
    if (window < 0 || group.padded <= window + 1) {
      const Tensor result = attend(group, 0, group.lengths.size(), 0, group.padded, -1);
      const BFloat16* in = data<BFloat16>(result);
      for (int64_t length : group.lengths) {
        out = copy(in, length, out, stride);
        in += group.padded * heads * d;
      }
      return;
    }
    for (size_t text = 0; text < group.lengths.size(); ++text)
      for (int64_t first = 0; first < group.lengths[text]; first += QUERIES) {
        const int64_t end = std::min(first + QUERIES, group.lengths[text]);
        const Tensor result = attend(group, text, 1, first, end, window);
        out = copy(data<BFloat16>(result), end - first, out, stride);
      }
  }

  // Queries [first, end) of `count` texts against the keys that one of them may see. All heads of all queries are rows
  // of one matmul, [texts, 1, queries * heads, head_dim], as they share keys and values.
  Tensor attend(Group& group, int64_t text, int64_t count, int64_t first, int64_t end, int64_t window) {
    const int64_t width = heads * d, row = group.row + text * group.padded;
    const int64_t first_key = window < 0 ? 0 : std::max<int64_t>(0, first - window);
    const int64_t end_key = window < 0 ? group.padded : std::min(group.padded, round_up(end + window, KEY_STEP));
    const std::vector<int64_t> queries{count, 1, (end - first) * heads, d}, keys{count, 1, end_key - first_key, d};
    const std::vector<int64_t> strides{group.padded * d, d, d, 1};
    std::optional<Tensor> mask;
    if (window >= 0 || hides(group)) mask = this->mask(group, text, count, first, end, first_key, end_key, window);
    return flash_attention(strided(q, queries, {group.padded * width, d, d, 1}, (row + first) * width),
                     strided(k, keys, strides, (row + first_key) * d), strided(v, keys, strides, (row + first_key) * d),
                     mask, scale);
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
    const int64_t rows = window < 0 ? 1 : (end - first) * heads, keys = end_key - first_key;
    const Tensor flat = zeros<BFloat16>(count * rows, keys);
    BFloat16* number = data<BFloat16>(flat);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t query = 0; query < rows; ++query)
        for (int64_t key = first_key; key < end_key; ++key, ++number) {
          const int64_t distance = window < 0 ? -1 : std::abs(first + query / heads - key);
          if (key >= group.lengths[text + i] || distance > window) number->bits = 0xff80;
        }
    return place->second = strided(flat, {count, 1, rows, keys}, {rows * keys, keys, keys, 1}, 0);
  }

  int64_t heads, d;
  double scale;
  std::vector<Group> groups;
  std::vector<int64_t> row_of_token;
  Tensor q, k, v;
};

}  // namespace
