// Products of int8 by int8 whose sums of a GROUP of inputs are exact: on AVX512-VNNI, or on AVX2 at half its pace and with
// the same whole numbers.
#pragma once
#include "vectors.h"
#if defined(__AVX512VNNI__)
#define INT8
#define ZERO 128  // what an input is raised by, for a unit that multiplies unsigned by signed
#elif defined(__AVX2__)
#define INT8
#define ZERO 0  // the sign of an input moves to the weight: 2 * 127 * 127 fit in 16 bits, 2 * 255 * 127 do not
#else
#define ZERO 0
#endif

#define PANEL 32        // outputs whose weights lie together: pair (or four) k of output n at k * PANEL + n
#define GROUP 64        // inputs that share a scale
#define AHEAD 2048       // bytes of weights that are on their way while one row passes by
#define ROWS_AT_ONCE 24  // rows whose sums exist at once, of which some are in registers

// to the nearest whole numbers, of two the even one
#if defined(__AVX512VNNI__)
INLINE ivec vec_round(vec v) { return (ivec)_mm512_cvtps_epi32((__m512)v); }
#elif defined(INT8)
INLINE ivec vec_round(vec v) {
  union { vec v; __m256 part[2]; } in = {v};
  union { __m256i part[2]; ivec v; } out = {{_mm256_cvtps_epi32(in.part[0]), _mm256_cvtps_epi32(in.part[1])}};
  return out.v;
}
#endif
// a row of x, from `at` on, as bytes around ZERO, filled up to `wide`, and the scale of each group
static void to_bytes(const void *x, int bf, int64_t at, int64_t K, int64_t wide, uint8_t *out, float *scales) {
  for (int64_t start = 0; start < K; start += GROUP) {
    int64_t end = K - start < GROUP ? K : start + GROUP, i = start;
    vec top = {}, none = {};
    float most = 0, strange = 0;  // becomes NaN by one that is no number
    for (; i + LANES <= end; i += LANES) {
      vec v = vec_in(x, at + i, bf);
      none += v * 0.0f;
      top = vec_max(top, (vec)((ivec)v & 0x7fffffff));
    }
    for (; i < end; i++) {
      most = fmaxf(most, fabsf(one_in(x, at + i, bf)));
      strange += one_in(x, at + i, bf) * 0.0f;
    }
    most = fmaxf(most, vec_most(top));
    scales[start / GROUP] = most / 127.0f + strange + vec_sum(none);
    float inverse = most > 0 ? 127.0f / most : 0;
    i = start;
#ifdef INT8
    for (; i + LANES <= end; i += LANES)
      *(bytes16 *)(out + i) = __builtin_convertvector(vec_round(vec_in(x, at + i, bf) * inverse) + ZERO, bytes16);
#endif
    for (; i < end; i++) {
      float q = one_in(x, at + i, bf) * inverse;
      out[i] = q == q ? (uint8_t)(lrintf(q) + ZERO) : ZERO;
    }
  }
  for (int64_t i = K; i < wide; i++) out[i] = ZERO;
}

// R rows of sums of a panel, by V vectors at a time: those of a group are whole numbers, and are scaled before they are
// added up
#if defined(__AVX512VNNI__)
#define ROWS(R, V) { \
    vec acc[R][2] = {}; \
    for (int64_t g = 0; g < groups; g++) { \
      __m512i whole[R][2], zero[2] = {_mm512_loadu_si512(sums + g * PANEL), _mm512_loadu_si512(sums + g * PANEL + LANES)}; \
      for (int i = 0; i < R; i++) whole[i][0] = zero[0], whole[i][1] = zero[1]; \
      int64_t until = (g + 1) * (GROUP / 4) < fours ? (g + 1) * (GROUP / 4) : fours; \
      for (int64_t k = g * (GROUP / 4); k < until; k++) { \
        __m512i b0 = _mm512_loadu_si512(B + k * PANEL), b1 = _mm512_loadu_si512(B + k * PANEL + LANES); \
        for (int i = 0; i < R; i++) { \
          int32_t four; \
          memcpy(&four, A + (m + i) * lda + 4 * k, 4); \
          __m512i a = _mm512_set1_epi32(four); \
          whole[i][0] = _mm512_dpbusd_epi32(whole[i][0], a, b0), whole[i][1] = _mm512_dpbusd_epi32(whole[i][1], a, b1); \
        } \
      } \
      for (int i = 0; i < R; i++) \
        for (int j = 0; j < 2; j++) \
          acc[i][j] += __builtin_convertvector((ivec)whole[i][j], vec) * inputs[(m + i) * groups + g]; \
    } \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) *(vec *)(C + (m + i) * PANEL + j * LANES) = acc[i][j] * *(vec *)(scales + j * LANES); \
    m += R; \
  }
#elif defined(__AVX2__)
#define ROWS(R, V) { \
    for (int64_t at = 0; at < PANEL; at += 8 * V) \
      for (int64_t g = 0; g < groups; g++) { \
        __m256i whole[R][V] = {}; \
        int64_t until = (g + 1) * (GROUP / 4) < fours ? (g + 1) * (GROUP / 4) : fours; \
        for (int64_t k = g * (GROUP / 4); k < until; k++) { \
          __m256i b[V], size[V]; \
          if (R == 1) \
            for (int j = 0; j < 2; j++) _mm_prefetch((const char *)(B + k * PANEL + at) + AHEAD + 64 * j, _MM_HINT_T0); \
          for (int j = 0; j < V; j++) { \
            b[j] = _mm256_loadu_si256((const __m256i *)(B + k * PANEL + at + 8 * j)); \
            size[j] = _mm256_abs_epi8(b[j]); \
          } \
          for (int i = 0; i < R; i++) { \
            int32_t four; \
            memcpy(&four, A + (m + i) * lda + 4 * k, 4); \
            __m256i a = _mm256_set1_epi32(four); \
            for (int j = 0; j < V; j++) { \
              __m256i two = _mm256_maddubs_epi16(size[j], _mm256_sign_epi8(a, b[j])); \
              whole[i][j] = _mm256_add_epi32(whole[i][j], _mm256_madd_epi16(two, _mm256_set1_epi16(1))); \
            } \
          } \
        } \
        for (int i = 0; i < R; i++) \
          for (int j = 0; j < V; j++) { /* sums of groups wait in memory: registers are few */ \
            float *c = C + (m + i) * PANEL + at + 8 * j; \
            __m256 of = (__m256)reg_fma((reg)_mm256_cvtepi32_ps(whole[i][j]), (reg){} + inputs[(m + i) * groups + g], \
                                        g ? *(reg *)c : (reg){}); \
            if (g + 1 == groups) of *= _mm256_loadu_ps(scales + at + 8 * j); \
            _mm256_storeu_ps(c, of); \
          } \
      } \
    m += R; \
  }
#else
#define ROWS(R, V) m += R;  // linear_packs says that this processor does not
#endif
// C (M, PANEL) of a panel: A (M, lda) bytes with their scales `inputs` (M, groups) by B (fours, PANEL) with `scales`;
// `sums` (groups, PANEL) is what ZERO adds
static void product_int8(int64_t M, int64_t K, const uint8_t *A, int64_t lda, const float *inputs, const int32_t *B,
                         const float *scales, const int32_t *sums, float *C) {
  int64_t m = 0;
#ifdef INT8
  int64_t fours = (K + 3) / 4, groups = (K + GROUP - 1) / GROUP;
#endif
#ifdef __AVX512VNNI__
  while (m + 4 <= M) ROWS(4, 2)
#endif
  while (m + 4 <= M) ROWS(4, 2)
  if (m + 2 <= M) ROWS(2, 2)
  if (m < M) ROWS(1, 4)
}
#undef ROWS
