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

INLINE int32_t block_sum(const uint8_t *bytes) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256((const __m256i *)bytes));
  __m256i eight = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

// R rows by V registers of 8 outputs: the products of a block fit into 16 bits (8 * 2 * 15 * 127)
#define ROWS(R, V) { \
    for (int64_t at = 0; at < PANEL; at += 8 * V) \
      for (int64_t g = 0; g < blocks; g++) { \
        const uint8_t *b = B + g * BLOCK_BYTES; \
        if (R == 1) \
          for (int j = 0; j < BLOCK_BYTES; j += 64) _mm_prefetch((const char *)b + AHEAD + j, _MM_HINT_T0); \
        __m256i two[R][V] = {}; \
        for (int64_t k = 0; k < 4; k++) { \
          __m256i low[V], high[V]; \
          for (int j = 0; j < V; j++) { \
            __m256i both = _mm256_loadu_si256((const __m256i *)(b + k * PANEL * 4 + (at + 8 * j) * 4)); \
            low[j] = _mm256_and_si256(both, _mm256_set1_epi8(15)); \
            high[j] = _mm256_and_si256(_mm256_srli_epi16(both, 4), _mm256_set1_epi8(15)); \
          } \
          for (int i = 0; i < R; i++) { \
            int32_t first, second; \
            memcpy(&first, A + (m + i) * K + g * BLOCK + k * 8, 4); \
            memcpy(&second, A + (m + i) * K + g * BLOCK + k * 8 + 4, 4); \
            for (int j = 0; j < V; j++) { \
              two[i][j] = _mm256_add_epi16(two[i][j], _mm256_maddubs_epi16(low[j], _mm256_set1_epi32(first))); \
              two[i][j] = _mm256_add_epi16(two[i][j], _mm256_maddubs_epi16(high[j], _mm256_set1_epi32(second))); \
            } \
          } \
        } \
        for (int j = 0; j < V; j++) { \
          const uint8_t *of = b + PANEL * 16 + (at + 8 * j) * 2; \
          __m256 d = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)of)); \
          __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(of + PANEL * 2))); \
          for (int i = 0; i < R; i++) { /* sums of blocks wait in memory: registers are few */ \
            float *c = C + (m + i) * PANEL + at + 8 * j; \
            __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(two[i][j], _mm256_set1_epi16(1))); \
            __m256 sum = g ? _mm256_loadu_ps(c) : _mm256_setzero_ps(); \
            sum = _mm256_fmadd_ps(low, _mm256_set1_ps(sums[(m + i) * blocks + g]), sum); \
            __m256 by = _mm256_mul_ps(d, _mm256_set1_ps(inputs[(m + i) * groups + g * BLOCK / GROUP])); \
            _mm256_storeu_ps(c, _mm256_fmadd_ps(by, whole, sum)); \
          } \
        } \
      } \
    m += R; \
  }
// C (M, PANEL) of a panel B: A (M, K) bytes with their scales `inputs` (M, groups) and `sums` (M, blocks), scaled
static void product_int4(int64_t M, int64_t K, const uint8_t *A, const float *inputs, const float *sums, const uint8_t *B,
                         float *C) {
  int64_t blocks = K / BLOCK, groups = (K + GROUP - 1) / GROUP, m = 0;
  while (m + 4 <= M) ROWS(4, 2)
  if (m + 2 <= M) ROWS(2, 2)
  if (m < M) ROWS(1, 4)
}
#undef ROWS
#endif
