// Products that multiply bfloat16 and add in float32: on AMX tiles where the processor has them, by AVX512-BF16's dot
// products, or by shifts and float32.
//
// A pair is two bfloat16 in one 32-bit word, the even one in the low half: what the dot-product units read. The left
// side of a product is rows of bfloat16, so its pairs lie along the row; the right side is rows of pairs.
#pragma once
#include "tiles.h"

typedef uint32_t pair;
INLINE int64_t up32(int64_t n) { return (n + 31) / 32 * 32; }

// every thread holds its own tiles: eight of 16 rows of 64 bytes
static void tiles_on(void) {
#ifdef AMX
  if (!amx) return;
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } setting = {.palette = 1};
  for (int i = 0; i < 8; i++) setting.bytes[i] = 64, setting.rows[i] = 16;
  SETTLED;
  _tile_loadconfig(&setting);
#endif
}
static void tiles_off(void) {
#ifdef AMX
  if (amx) _tile_release();
#endif
}

#ifdef AMX
INLINE void product_on_tiles(int64_t M, int64_t N, int64_t K, const uint16_t *A, int64_t lda, const pair *B, int64_t ldb,
                             float *C, int64_t ldc, int add) {
  SETTLED;
  for (int64_t n = 0; n < N; n += 32)
    for (int64_t m = 0; m < M; m += 32) {
      float *c = C + m * ldc + n;
      if (add) {
        _tile_loadd(0, c, ldc * 4);
        _tile_loadd(1, c + 16, ldc * 4);
        _tile_loadd(2, c + 16 * ldc, ldc * 4);
        _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t k = 0; k < K; k += 16) {
        _tile_loadd(4, A + m * lda + 2 * k, lda * 2);
        _tile_loadd(5, A + (m + 16) * lda + 2 * k, lda * 2);
        _tile_loadd(6, B + k * ldb + n, ldb * 4);
        _tile_loadd(7, B + k * ldb + n + 16, ldb * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, c, ldc * 4);
      _tile_stored(1, c + 16, ldc * 4);
      _tile_stored(2, c + 16 * ldc, ldc * 4);
      _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
    }
  SETTLED;
}
#endif

// Whether shifts and float32 are faster than the dot products of the processor: Intel's take more than two cycles each
// (Emerald Rapids)
static int shifts = 1;
#if defined(__AVX512BF16__) && defined(__GNUC__)
__attribute__((constructor)) static void ask_who_made_it(void) {
  __builtin_cpu_init();
  shifts = __builtin_cpu_is("intel") != 0;
}
#endif
INLINE vec dot(vec acc, uvec a, uvec b, int by_shifts) {
#ifdef __AVX512BF16__
  if (!by_shifts) return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#endif
  acc += (vec)(a << 16) * (vec)(b << 16);
  return acc + (vec)(a & 0xffff0000u) * (vec)(b & 0xffff0000u);
}

#define TILE_ROWS 32  // rows of a product that a caller lays out at once
// rows that a product of `rows`, at most TILE_ROWS, reads and writes: a tile is always whole
INLINE int64_t rows_of_product(int64_t rows) {
#ifdef AMX
  if (amx) return TILE_ROWS;
#endif
  return rows;
}

// R rows of C by two vectors, all in registers
#define ROWS(R, BY_SHIFTS) { \
    vec acc[R][2]; \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) acc[i][j] = add ? *(vec *)(C + (m + i) * ldc + n + j * LANES) : (vec){}; \
    for (int64_t k = 0; k < K; k++) { \
      if (R < 8 && m == 0) \
        for (int j = 0; j < 2; j++) __builtin_prefetch((const char *)(B + k * ldb + n) + AHEAD + 64 * j); \
      uvec b0 = *(const uvec *)(B + k * ldb + n), b1 = *(const uvec *)(B + k * ldb + n + LANES); \
      for (int i = 0; i < R; i++) { \
        pair two; \
        memcpy(&two, A + (m + i) * lda + 2 * k, 4); \
        uvec a = (uvec){} + two; \
        acc[i][0] = dot(acc[i][0], a, b0, BY_SHIFTS), acc[i][1] = dot(acc[i][1], a, b1, BY_SHIFTS); \
      } \
    } \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) *(vec *)(C + (m + i) * ldc + n + j * LANES) = acc[i][j]; \
  }

#define ALL_ROWS(BY_SHIFTS) \
  for (int64_t n = 0; n < N; n += 2 * LANES) { \
    int64_t m = 0; \
    for (; m + 8 <= M; m += 8) ROWS(8, BY_SHIFTS) \
    if (m + 4 <= M) { \
      ROWS(4, BY_SHIFTS) \
      m += 4; \
    } \
    for (; m < M; m++) ROWS(1, BY_SHIFTS) \
  }
// C (M, N) (+)= A (M, 2 K) B (2 K, N); N is a multiple of 32, and on tiles M too and K of 16
static void product(int64_t M, int64_t N, int64_t K, const uint16_t *A, int64_t lda, const pair *B, int64_t ldb, float *C,
                    int64_t ldc, int add) {
#ifdef AMX
  if (amx) {
    product_on_tiles(M, N, K, A, lda, B, ldb, C, ldc, add);
    return;
  }
#endif
  if (shifts) ALL_ROWS(1) else ALL_ROWS(0)
}
#undef ALL_ROWS
#undef ROWS
