// Sums of products of 8-bit integers for some rows and a panel of columns. This file is included once for each set of
// instructions, which names its namespace TILES, its compiler's TARGET, the BYTES of its vectors, how many VECTORS of
// sums a row has at once, and DOT(sums, row, columns): 4 products added to each sum.

namespace TILES {

typedef int32_t Ints __attribute__((vector_size(BYTES)));
constexpr int64_t LANES = BYTES / 4;

// sums[r * PANEL + c] = the sum over k < 4 * steps of x[r * stride + k] * the panel's column c, for each r < ROWS.
template <int64_t ROWS>
TARGET void tile(const uint8_t* x, int64_t stride, const int8_t* panel, int64_t steps, int32_t* sums) {
  for (int64_t first = 0; first < PANEL; first += VECTORS * LANES) {
    Ints all[ROWS][VECTORS] = {};
    const int8_t* next = panel + 4 * first;
    for (int64_t k = 0; k < steps; ++k, next += 4 * PANEL) {
      Ints columns[VECTORS];
#pragma GCC unroll 8
      for (int64_t v = 0; v < VECTORS; ++v) std::memcpy(&columns[v], next + v * BYTES, BYTES);
#pragma GCC unroll 8
      for (int64_t r = 0; r < ROWS; ++r) {
        int32_t four;
        std::memcpy(&four, x + r * stride + 4 * k, 4);
        const Ints row = Ints{} + four;
#pragma GCC unroll 8
        for (int64_t v = 0; v < VECTORS; ++v) all[r][v] = (Ints)DOT(all[r][v], row, columns[v]);
      }
    }
    for (int64_t r = 0; r < ROWS; ++r)
      for (int64_t v = 0; v < VECTORS; ++v) std::memcpy(sums + r * PANEL + first + v * LANES, &all[r][v], BYTES);
  }
}

constexpr Tile BY_ROWS[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

}  // namespace TILES

#undef TILES
#undef TARGET
#undef BYTES
#undef VECTORS
#undef DOT
