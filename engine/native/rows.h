// What lies between the matmuls, row by row, in float32: loads and stores convert from and to bfloat16.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// Numbers: STEP at once, in the vector types of GCC and Clang. Every row has a multiple of STEP.

struct BFloat16 {
  uint16_t bits;
};

#ifdef __AVX512F__
constexpr int64_t STEP = 16;
#else
constexpr int64_t STEP = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * STEP)));
typedef uint32_t Words __attribute__((vector_size(4 * STEP)));
typedef uint16_t Halves __attribute__((vector_size(2 * STEP)));

inline Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline Floats load(const BFloat16* from) {
  Halves x;
  std::memcpy(&x, from, sizeof x);
  return (Floats)(__builtin_convertvector(x, Words) << 16);
}

inline void store(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

inline void store(BFloat16* to, Floats x) {  // to nearest, ties to even; NaN stays NaN
  const Words bits = (Words)x, nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Halves halves = __builtin_convertvector(x != x ? (bits >> 16) | 0x40 : nearest, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

inline float sum(Floats x) {
  float total = 0;
  for (int64_t i = 0; i < STEP; ++i) total += x[i];
  return total;
}

// e^x to two units in the last place, by the polynomial of Cephes' expf; NaN stays NaN.
inline Floats exponential(Floats x) {
  const Floats round = Floats{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats most = Floats{} + 88.0f, least = Floats{} - 87.0f;
  x = x > most ? most : x;
  x = x < least ? least : x;
  const Floats shifted = x * 1.44269504088896341f + round, n = shifted - round;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (Floats)(((Words)shifted + 127u) << 23);
}

// Rows: what engine/kernels computes, for one token of `n` numbers.

inline float inverse_rms(Floats squares, int64_t n, double eps) {
  return 1.0f / std::sqrt(sum(squares) / float(n) + float(eps));
}

template <typename T, typename Out>
void norm(const T* x, const float* gain, double eps, int64_t n, Out* out) {
  Floats squares{};
  for (int64_t i = 0; i < n; i += STEP) squares += load(x + i) * load(x + i);
  const float scale = inverse_rms(squares, n, eps);
  for (int64_t i = 0; i < n; i += STEP) store(out + i, load(x + i) * scale * load(gain + i));
}

// x = (x + norm(y) by `post`) * factor; out = norm(x) by `pre`, or x where there is none.
template <typename T, typename Out>
void add_norm(float* x, const T* y, const float* post, const float* pre, double eps, float factor, int64_t n, Out* out) {
  Floats squares{}, sums{};
  for (int64_t i = 0; i < n; i += STEP) squares += load(y + i) * load(y + i);
  const float post_scale = inverse_rms(squares, n, eps);
  for (int64_t i = 0; i < n; i += STEP) {
    const Floats stream = (load(x + i) + load(y + i) * post_scale * load(post + i)) * factor;
    sums += stream * stream;
    store(x + i, stream);
  }
  const float pre_scale = pre ? inverse_rms(sums, n, eps) : 1.0f;
  for (int64_t i = 0; i < n; i += STEP) store(out + i, pre ? load(x + i) * pre_scale * load(pre + i) : load(x + i));
}

// One head: its norm, rotated. The first half of it pairs with the second.
template <typename T, typename Out>
void norm_rotate(const T* in, const float* gain, const float* cos, const float* sin, double eps, int64_t n, Out* out) {
  const int64_t half = n / 2;
  Floats squares{};
  for (int64_t i = 0; i < n; i += STEP) squares += load(in + i) * load(in + i);
  const float scale = inverse_rms(squares, n, eps);
  for (int64_t i = 0; i < half; i += STEP) {
    const Floats first = load(in + i) * scale * load(gain + i);
    const Floats second = load(in + half + i) * scale * load(gain + half + i);
    store(out + i, first * load(cos + i) - second * load(sin + i));
    store(out + half + i, second * load(cos + i) + first * load(sin + i));
  }
}

// gelu in its tanh form: (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)); 1.5957... is 2 sqrt(2 / pi).
inline Floats gelu(Floats g) {
  return g / (exponential((g * g * g * 0.044715f + g) * -1.5957691216057308f) + 1.0f);
}

// gelu(gate) * up.
template <typename T, typename Out>
void geglu(const T* gate, const T* up, int64_t n, Out* out) {
  for (int64_t i = 0; i < n; i += STEP) store(out + i, gelu(load(gate + i)) * load(up + i));
}

// gelu(gate) * norm(up).
template <typename T, typename Out>
void gate_norm(const T* gate, const T* up, const float* gain, double eps, int64_t n, Out* out) {
  Floats squares{};
  for (int64_t i = 0; i < n; i += STEP) squares += load(up + i) * load(up + i);
  const float scale = inverse_rms(squares, n, eps);
  for (int64_t i = 0; i < n; i += STEP) store(out + i, gelu(load(gate + i)) * (load(up + i) * scale * load(gain + i)));
}

}  // namespace
