// Products of int8 inputs by weights of four bits: w = d q + m for each output and 32 inputs, q from 0 to 15, d and m in
// float16. Weights that lie on such a grid already (GGUF's Q4_0 and Q4_1) are kept as they are.
#pragma once
#include "int8.h"
#if defined(INT8) && defined(__F16C__) && defined(__FMA__)
#define INT4
#endif

#define BLOCK 32                      // inputs that share d and m
#define BLOCK_BYTES (PANEL * 16 + PANEL * 4)  // of a panel: 8 inputs (fours, low and high) by PANEL outputs, 4 times; d; m

#ifdef INT4
// the steps from the lowest weight to the highest: the fewest on which all lie, or 15
static int steps_of(const float *w, float low, float high) {
  float inverse = 1.0f / (high - low);
  for (int steps = 1; steps < 15; steps++) {
    int i = 0;
    for (; i < BLOCK; i++) {
      float at = (w[i] - low) * inverse * (float)steps;
      if (fabsf(at - rintf(at)) > 0.004f) break;
    }
    if (i == BLOCK) return steps;
  }
  return 15;
}
static void block_in(const float *w, uint8_t *q, uint16_t *d, uint16_t *m) {
  float low = w[0], high = w[0], strange = 0;
  for (int i = 0; i < BLOCK; i++) {
    low = fminf(low, w[i]), high = fmaxf(high, w[i]);
    strange += w[i] * 0.0f;  // becomes NaN by one that is no number
  }
  float scale = high > low ? (high - low) / (float)steps_of(w, low, high) : 0;
  *d = _cvtss_sh(scale + strange, 0), *m = _cvtss_sh(low + strange, 0);
  float step = _cvtsh_ss(*d), from = _cvtsh_ss(*m), inverse = step > 0 ? 1.0f / step : 0;
  for (int i = 0; i < BLOCK; i++) {
    float at = (w[i] - from) * inverse;
    at = at > 0 ? at : 0, at = at < 15 ? at : 15;
    q[i] = (uint8_t)(int)rintf(at);
  }
}

// output n of a panel's block from a file's, NULL: zeros; `even`: it has no m, which is -8 d (infinite where
// that is no float16, for weights of 65,504 and more)
INLINE void block_of(const uint8_t *from, int even, uint8_t *to, int64_t n) {
  uint16_t d = 0, m = 0;
  uint32_t w[4] = {0, 0, 0, 0}, low = 0x0f0f0f0f;
  if (from) {
    memcpy(&d, from, 2);
    if (even) m = _cvtss_sh(-8 * _cvtsh_ss(d), 0);
    else memcpy(&m, from + 2, 2);
    memcpy(w, from + (even ? 2 : 4), 16);
  }
  uint32_t *fours = (uint32_t *)to + n;
  for (int i = 0; i < 2; i++) {
    fours[i * PANEL] = (w[2 * i] & low) | (w[2 * i + 1] & low) << 4;
    fours[(2 + i) * PANEL] = (w[2 * i] >> 4 & low) | (w[2 * i + 1] & ~low);
  }
  uint16_t *scale = (uint16_t *)(to + PANEL * 16) + n;
  scale[0] = d, scale[PANEL] = m;
}
INLINE int32_t block_sum(const uint8_t *bytes) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)bytes));
  __m256i eight = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

#if defined(__AVX512VNNI__)
// the fours of inputs at `offset` of k's eight by their weights w
#define HALF(R, offset) \
  for (int i = 0; i < R; i++) { \
    int32_t four; \
    memcpy(&four, a + i * K + k * 8 + offset, 4); \
    __m512i x = _mm512_set1_epi32(four); \
    for (int j = 0; j < 2; j++) whole[i][j] = fours_by(whole[i][j], w[j], x); \
  }
// R rows by two registers of 16 outputs (V is AVX2's): a block's products are added up by the instruction that makes them
#define ROWS(R, V) { \
    const uint8_t *b = B, *a = A + m * K; \
    const float *by = scales + 2 * m; \
    __m512 sum[R][2] = {}; \
    for (int64_t g = 0; g < K / BLOCK; g++, b += BLOCK_BYTES, a += BLOCK, by += 2 * all) { \
      if (m == 0) \
        for (int j = 0; j < BLOCK_BYTES; j += 64) _mm_prefetch((const char *)b + AHEAD + j, _MM_HINT_T0); \
      __m512i whole[R][2] = {}; \
      for (int64_t k = 0; k < 4; k++) { \
        __m512i eight[2], w[2]; \
        for (int j = 0; j < 2; j++) { \
          eight[j] = _mm512_loadu_si512(b + k * PANEL * 4 + j * 64); \
          w[j] = _mm512_and_si512(eight[j], _mm512_set1_epi8(15)); \
        } \
        HALF(R, 0) \
        for (int j = 0; j < 2; j++) w[j] = _mm512_and_si512(_mm512_srli_epi32(eight[j], 4), _mm512_set1_epi8(15)); \
        HALF(R, 4) \
      } \
      for (int j = 0; j < 2; j++) { \
        const uint8_t *of = b + PANEL * 16 + j * 32; \
        __m512 d = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)of)); \
        __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(of + PANEL * 2))); \
        for (int i = 0; i < R; i++) { \
          sum[i][j] = _mm512_fmadd_ps(low, _mm512_set1_ps(by[2 * i + 1]), sum[i][j]); \
          sum[i][j] = _mm512_fmadd_ps(_mm512_mul_ps(d, _mm512_set1_ps(by[2 * i])), _mm512_cvtepi32_ps(whole[i][j]), sum[i][j]); \
        } \
      } \
    } \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) _mm512_storeu_ps(C + (m + i) * PANEL + 16 * j, sum[i][j]); \
    m += R; \
  }
#else
// Nothing that follows comes before `v` is what it was made: left to itself, the compiler begins all products of a block at
// once and runs out of registers (35 % slower).
#define HERE(v) __asm__ volatile("" : "+x"(v))
// the fours of inputs at `offset` of k's eight by their weights w
#define HALF(R, V, offset) \
  for (int i = 0; i < R; i++) { \
    int32_t four; \
    memcpy(&four, a + i * K + k * 8 + offset, 4); \
    __m256i x = _mm256_set1_epi32(four); \
    HERE(x); \
    for (int j = 0; j < V; j++) { \
      two[i][j] = _mm256_add_epi16(two[i][j], _mm256_maddubs_epi16(w[j], x)); \
      HERE(two[i][j]); \
    } \
  }
// R rows by V registers of 8 outputs: the products of a block fit into 16 bits (8 * 2 * 15 * 127)
#define ROWS(R, V) { \
    for (int64_t at = 0; at < PANEL; at += 8 * V) { \
      const uint8_t *b = B + at * 4, *a = A + m * K; \
      const float *by = scales + 2 * m; \
      __m256 sum[R][V] = {}; \
      for (int64_t g = 0; g < K / BLOCK; g++, b += BLOCK_BYTES, a += BLOCK, by += 2 * all) { \
        if (m == 0) \
          for (int j = 0; j < BLOCK_BYTES; j += 64) _mm_prefetch((const char *)b + AHEAD + j, _MM_HINT_T0); \
        __m256i two[R][V] = {}, w[V]; \
        _Pragma("GCC unroll 1") for (int64_t k = 0; k < 4; k++) { \
          const __m256i *eight = (const __m256i *)(b + k * PANEL * 4); \
          for (int j = 0; j < V; j++) { \
            w[j] = _mm256_and_si256(_mm256_loadu_si256(eight + j), _mm256_set1_epi8(15)); \
            HERE(w[j]); \
          } \
          HALF(R, V, 0) \
          for (int j = 0; j < V; j++) { \
            w[j] = _mm256_and_si256(_mm256_srli_epi16(_mm256_loadu_si256(eight + j), 4), _mm256_set1_epi8(15)); \
            HERE(w[j]); \
          } \
          HALF(R, V, 4) \
        } \
        for (int j = 0; j < V; j++) { \
          const uint8_t *of = b + PANEL * 16 + 16 * j - 2 * at; \
          __m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)of)); \
          __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(of + PANEL * 2))); \
          for (int i = 0; i < R; i++) { \
            __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(two[i][j], _mm256_set1_epi16(1))); \
            sum[i][j] = _mm256_fmadd_ps(low, _mm256_set1_ps(by[2 * i + 1]), sum[i][j]); \
            sum[i][j] = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(by[2 * i])), whole, sum[i][j]); \
          } \
        } \
      } \
      for (int i = 0; i < R; i++) \
        for (int j = 0; j < V; j++) _mm256_storeu_ps(C + (m + i) * PANEL + at + 8 * j, sum[i][j]); \
    } \
    m += R; \
  }
#endif
// C (M, PANEL) of a panel B: A (M, K) bytes with their `scales` (blocks, all, 2): an input's, and the block's scaled sum
static void product_int4(int64_t M, int64_t all, int64_t K, const uint8_t *A, const float *scales, const uint8_t *B, float *C) {
  int64_t m = 0;
#if defined(__AVX512VNNI__)
  while (m + 6 <= M) ROWS(6, 2)
#endif
  while (m + 4 <= M) ROWS(4, 2)
  if (m + 2 <= M) ROWS(2, 2)
  if (m < M) ROWS(1, 4)
}
#undef ROWS
#undef HALF
#undef HERE
#endif
