// A product with a weight that was laid out once: for reading, where a library would lay it out again at every call.
// A row's sums do not depend on the rows beside it. bfloat16 on AVX512-BF16 only: with AMX the library is faster.
#include "product.h"

#define PANEL 32        // outputs whose weights lie together: pair k of output n at k * PANEL + n
#define TOGETHER 64     // rows that pass by a panel while it lies in the nearest cache

// whether it is worth its while on this processor
int linear_packs(void) {
#if defined(AMX)
  return !amx;
#elif defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

// w (N, K) bfloat16 -> panels (up to PANEL, K / 2, PANEL), zeros behind the last output
void linear_pack(const uint16_t *w, int64_t N, int64_t K, uint32_t *out) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < (N + PANEL - 1) / PANEL; p++)
    for (int64_t k = 0; k < K / 2; k++)
      for (int64_t n = 0; n < PANEL; n++) {
        pair both = 0;
        if (p * PANEL + n < N) memcpy(&both, w + (p * PANEL + n) * K + 2 * k, 4);
        out[(p * (K / 2) + k) * PANEL + n] = both;
      }
}

// x (M, K) times the panels -> out (M, N)
void linear(const uint16_t *x, int64_t M, int64_t K, const uint32_t *panels, int64_t N, uint16_t *out) {
  int64_t columns = (N + PANEL - 1) / PANEL, blocks = (M + TOGETHER - 1) / TOGETHER;
#pragma omp parallel for schedule(static) if (M * N * K > 1 << 15)
  for (int64_t at = 0; at < columns * blocks; at++) {
    float sums[TILE_ROWS * PANEL] __attribute__((aligned(64)));
    int64_t n = at % columns * PANEL, last = at / columns * TOGETHER + TOGETHER, width = N - n < PANEL ? N - n : PANEL;
    for (int64_t m = last - TOGETHER; m < M && m < last; m += TILE_ROWS) {
      int64_t rows = M - m < TILE_ROWS ? M - m : TILE_ROWS;
      product(rows, PANEL, K / 2, x + m * K, K, panels + n / PANEL * (K / 2) * PANEL, PANEL, sums, PANEL, 0);
      for (int64_t r = 0; r < rows; r++) {
        int64_t i = 0, to = (m + r) * N + n;
        for (; i + LANES <= width; i += LANES) vec_out(out, to + i, *(vec *)(sums + r * PANEL + i), 1);
        for (; i < width; i++) one_out(out, to + i, sums[r * PANEL + i], 1);
      }
    }
  }
}
