// Matmuls of 8-bit integers: rows are quantised, their products with a matrix are summed in 32 bits, and the scales are
// applied to the sums. engine/int8.py defines what is computed, and packs the matrices.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "processor.h"
#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

namespace {

// Columns of a matrix that lie together: [columns / PANEL, inputs / 4, PANEL, 4].
constexpr int64_t PANEL = 64;
// Rows that share a load of the panel.
constexpr int64_t TILE_ROWS = 6;

using Tile = void (*)(const uint8_t* x, int64_t stride, const int8_t* panel, int64_t steps, int32_t* sums);

#if defined(__x86_64__)
#ifdef __AVX512F__
#define TILES avx512_vnni
#define TARGET __attribute__((target("avx512vnni")))
#define BYTES 64
#define VECTORS 4
#define DOT(sums, row, columns) _mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(row), (__m512i)(columns))
#include "int8_tile.h"
#endif

#define TILES avx_vnni
#define TARGET __attribute__((target("avxvnni")))
#define BYTES 32
#define VECTORS 2
#define DOT(sums, row, columns) _mm256_dpbusd_avx_epi32((__m256i)(sums), (__m256i)(row), (__m256i)(columns))
#include "int8_tile.h"

// Pairs of products are added in 16 bits, which hold them if a row's numbers have 7 bits.
#define TILES avx2
#define TARGET
#define BYTES 32
#define VECTORS 2
#define DOT(sums, row, columns)                                                                      \
  _mm256_add_epi32((__m256i)(sums), _mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(row), (__m256i)(columns)), \
                                                      _mm256_set1_epi16(1)))
#include "int8_tile.h"
#elif defined(__aarch64__)
#define TILES dot_product
#define TARGET __attribute__((target("+dotprod")))
#define BYTES 16
#define VECTORS 4
#define DOT(sums, row, columns) vdotq_s32((int32x4_t)(sums), (int8x16_t)(row), (int8x16_t)(columns))
#include "int8_tile.h"
#endif

// How a processor multiplies: a row's numbers are whole, from -levels to levels, with `zero` added to each.
struct Instructions {
  const char* name;
  const Tile* tiles;  // by the number of rows less one
  int32_t levels, zero;
};

// What this processor has, the fastest first.
inline const std::vector<Instructions>& all_instructions() {
  static const std::vector<Instructions> all = [] {
    std::vector<Instructions> found;
#if defined(__x86_64__)
#ifdef __AVX512F__
    if (__builtin_cpu_supports("avx512vnni")) found.push_back({"AVX512-VNNI", avx512_vnni::BY_ROWS, 127, 128});
#endif
    if (has_avx_vnni()) found.push_back({"AVX-VNNI", avx_vnni::BY_ROWS, 127, 128});
    found.push_back({"AVX2", avx2::BY_ROWS, 63, 64});
#elif defined(__aarch64__)
    constexpr unsigned long DOT_PRODUCT = 1 << 20;  // HWCAP_ASIMDDP
    if (getauxval(AT_HWCAP) & DOT_PRODUCT) found.push_back({"dot product", dot_product::BY_ROWS, 127, 0});
#endif
    return found;
  }();
  return all;
}

// Rows of whole numbers for some instructions, with a scale for each.
struct QuantisedRows {
  QuantisedRows(const Instructions& by, int64_t rows, int64_t columns)
      : by(by), columns(columns), numbers(new uint8_t[rows * columns]), scales(new float[rows]) {}

  const Instructions& by;
  int64_t columns;
  std::unique_ptr<uint8_t[]> numbers;
  std::unique_ptr<float[]> scales;
};

inline Floats fused_multiply_add(Floats x, float factor, float term) {
  for (int64_t i = 0; i < STEP; ++i) x[i] = __builtin_fmaf(x[i], factor, term);
  return x;
}

// Round y / scale to whole numbers, y being x * inverses and the scale the largest |y| over the levels. The scale of a row
// with infinity or NaN is NaN, and so is all that is computed of it.
template <typename T>
void quantise(const T* x, const float* inverses, QuantisedRows& rows, int64_t row) {
  typedef uint8_t Bytes __attribute__((vector_size(STEP)));
  const int64_t n = rows.columns, levels = rows.by.levels;
  Floats largest{}, none{};
  for (int64_t i = 0; i < n; i += STEP) {
    const Floats number = load(x + i) * load(inverses + i), size = number < 0.0f ? -number : number;
    largest = size > largest ? size : largest;
    none += number * 0.0f;
  }
  float most = 0;
  for (int64_t i = 0; i < STEP; ++i) most = std::max(most, largest[i]);
  const float lift = most < 0x1p-60f ? 0x1p60f : 1.0f;  // keeps the inverse finite
  const float inverse = most > 0 ? float(levels) / (most * lift) : 0.0f;
  rows.scales[row] = most / float(levels) + sum(none);
  const float round = 12582912.0f + float(rows.by.zero);  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  for (int64_t i = 0; i < n; i += STEP) {
    const Words bits = (Words)fused_multiply_add(load(x + i) * load(inverses + i) * lift, inverse, round);
    const Bytes bytes = __builtin_convertvector(bits & 0xffu, Bytes);
    std::memcpy(&rows.numbers[row * n + i], &bytes, sizeof bytes);
  }
}

struct QuantisedMatrix {
  const int8_t* panels;
  const float* scales;  // of each column
  const int32_t* sums;  // of each column's numbers
};

// Call write(row, first, numbers) with the product's numbers [PANEL] of each row and panel, for the panels
// [first_panel, end_panel).
template <typename Write>
void multiply(const QuantisedRows& x, int64_t rows, const QuantisedMatrix& matrix, int64_t first_panel, int64_t end_panel,
              const Write& write) {
  int32_t sums[TILE_ROWS * PANEL];
  float numbers[PANEL];
  for (int64_t first = first_panel * PANEL; first < end_panel * PANEL; first += PANEL) {
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
      const int64_t count = std::min(TILE_ROWS, rows - row);
      x.by.tiles[count - 1](&x.numbers[row * x.columns], x.columns, matrix.panels + first * x.columns, x.columns / 4, sums);
      for (int64_t r = 0; r < count; ++r) {
        const float scale = x.scales[row + r];
        for (int64_t i = 0; i < PANEL; ++i) {
          const int32_t whole = sums[r * PANEL + i] - x.by.zero * matrix.sums[first + i];
          numbers[i] = float(whole) * (matrix.scales[first + i] * scale);
        }
        write(row + r, first, numbers);
      }
    }
  }
}

}  // namespace
