// Products of int8 by int8 whose sums of a GROUP of inputs are exact: on AVX512-VNNI, or on AVX2 at half its pace and with
// the same whole numbers.
#pragma once
#include "vectors.h"
#if defined(__AVX512VNNI__)
#define INT8
#define ZERO 128  // what an input is raised by, for a unit that multiplies unsigned by signed
#elif defined(__AVX2__) && defined(__FMA__)
#define INT8
#define ZERO 0
#define TURNED  // where a weight is negative its magnitude meets -1 - x, and what is missing is added at the beginning
#else
#define ZERO 0
#endif

#define PANEL 32        // outputs whose weights lie together: pair (or four) k of output n at k * PANEL + n
#define GROUP 64        // inputs that share a scale
#define ROWS_AT_ONCE 24  // rows whose sums exist at once, of which some are in registers

// what a weight adds to the sum that its group begins with
INLINE int32_t missing(int8_t q) {
#ifdef TURNED
  return q < 0 ? -q : 0;
#else
  return -ZERO * q;
#endif
}

#ifdef INT8
INLINE ireg most_bits(ireg x, ireg y) {
#if WIDE == 16
  return (ireg)_mm512_max_epi32((__m512i)x, (__m512i)y);
#else
  return (ireg)_mm256_max_epi32((__m256i)x, (__m256i)y);
#endif
}
INLINE int beyond(ireg bits, int32_t limit) {  // whether any is larger
#if WIDE == 16
  return _mm512_cmpgt_epi32_mask((__m512i)bits, _mm512_set1_epi32(limit)) != 0;
#else
  return _mm256_movemask_epi8(_mm256_cmpgt_epi32((__m256i)bits, _mm256_set1_epi32(limit))) != 0;
#endif
}
// 32 numbers in bytes
INLINE void bytes_out(const reg *v, float inverse, int zero, uint8_t *out) {
#if WIDE == 16
  for (int j = 0; j < 2; j++)
    *(bytes16 *)(out + j * WIDE) = __builtin_convertvector((ireg)_mm512_cvtps_epi32((__m512)(v[j] * inverse)) + zero, bytes16);
#else
  __m256i q[4];
  for (int j = 0; j < 4; j++) q[j] = _mm256_cvtps_epi32((__m256)(v[j] * inverse));
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));  // packing goes by halves
  _mm256_storeu_si256((__m256i *)out, _mm256_add_epi8(bytes, _mm256_set1_epi8((char)zero)));
#endif
}
// `count` numbers, a multiple of 32 that is known where this is called, so that all are in registers
INLINE float group_of(const void *x, int bf, int64_t at, int count, int zero, uint8_t *out) {
  reg v[GROUP / WIDE];
  ireg top = {};  // magnitudes are ordered as the whole numbers of their bits, and what is no number is the largest
  for (int j = 0; j < count / WIDE; j++) {
    v[j] = reg_in(x, at + j * WIDE, bf);
    top = most_bits(top, (ireg)v[j] & 0x7fffffff);
  }
  float most = reg_most((reg)top), inverse = most > 0 ? 127.0f / most : 0;
  for (int j = 0; j < count / WIDE; j += 32 / WIDE) bytes_out(v + j, inverse, zero, out + j * WIDE);
  return beyond(top, 0x7f7fffff) ? NAN : most / 127.0f;
}
#endif

// inputs of a group as bytes around `zero`, to the nearest, of two the even one; its scale, NaN by one that is no number
static float group_in(const void *x, int bf, int64_t at, int64_t count, int zero, uint8_t *out) {
#ifdef INT8
  if (count == GROUP) return group_of(x, bf, at, GROUP, zero, out);
  if (count == GROUP / 2) return group_of(x, bf, at, GROUP / 2, zero, out);
#endif
  float most = 0, strange = 0;  // 0 times what is no number is none
  for (int64_t i = 0; i < count; i++) {
    most = fmaxf(most, fabsf(one_in(x, at + i, bf)));
    strange += one_in(x, at + i, bf) * 0.0f;
  }
  float inverse = most > 0 ? 127.0f / most : 0;
  for (int64_t i = 0; i < count; i++) {
    float q = one_in(x, at + i, bf) * inverse;
    out[i] = (uint8_t)(q == q ? lrintf(q) + zero : zero);
  }
  return most / 127.0f + strange;
}
// a row of x, from `at` on, as bytes around `zero`, filled up to `wide`, and the scale of each group
static void to_bytes(const void *x, int bf, int64_t at, int64_t K, int64_t wide, int zero, uint8_t *out, float *scales) {
  for (int64_t start = 0; start < K; start += GROUP) {
    int64_t count = K - start < GROUP ? K - start : GROUP;
    scales[start / GROUP] = group_in(x, bf, at + start, count, zero, out + start);
  }
  for (int64_t i = K; i < wide; i++) out[i] = (uint8_t)zero;
}

// R rows of sums of a panel, on AVX2 by V registers at a time, else by both: those of a group are whole numbers, and are
// scaled before they are added up
#if defined(__AVX512VNNI__)
// sum + the products of four unsigned bytes by four signed ones, in place: left to itself, the compiler copies every sum
// twice (a third slower)
INLINE __m512i fours_by(__m512i sum, __m512i u, __m512i s) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}
#define ROWS(R, V) { \
    __m512 acc[R][2] = {}; \
    for (int64_t g = 0; g < groups; g++) { \
      __m512i whole[R][2]; \
      for (int i = 0; i < R; i++) \
        for (int j = 0; j < 2; j++) whole[i][j] = _mm512_loadu_si512(sums + g * PANEL + j * LANES); \
      int64_t until = (g + 1) * (GROUP / 4) < fours ? (g + 1) * (GROUP / 4) : fours; \
      for (int64_t k = g * (GROUP / 4); k < until; k++) { \
        __m512i b[2] = {_mm512_loadu_si512(B + k * PANEL), _mm512_loadu_si512(B + k * PANEL + LANES)}; \
        if (m == 0) \
          for (int j = 0; j < 2; j++) _mm_prefetch((const char *)(B + k * PANEL) + AHEAD + 64 * j, _MM_HINT_T0); \
        for (int i = 0; i < R; i++) { \
          int32_t four; \
          memcpy(&four, A + (m + i) * lda + 4 * k, 4); \
          __m512i x = _mm512_set1_epi32(four); \
          for (int j = 0; j < 2; j++) whole[i][j] = fours_by(whole[i][j], x, b[j]); \
        } \
      } \
      for (int i = 0; i < R; i++) \
        for (int j = 0; j < 2; j++) \
          acc[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[i][j]), _mm512_set1_ps(inputs[(m + i) * groups + g]), acc[i][j]); \
    } \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) \
        _mm512_storeu_ps(C + (m + i) * PANEL + j * LANES, _mm512_mul_ps(acc[i][j], _mm512_loadu_ps(scales + j * LANES))); \
    m += R; \
  }
#elif defined(INT8)
// |w| by x where w is positive, else by -1 - x: giving x the sign of w would take the units that multiply. A row alone does
// that, for what it saves is shared by all rows. 2 * 127 * 128 fit into 16 bits, 2 * 127 * 255 of an unsigned x would not.
#define ROWS(R, V) { \
    for (int64_t at = 0; at < PANEL; at += 8 * V) \
      for (int64_t g = 0; g < groups; g++) { \
        __m256i whole[R][V] = {}; \
        for (int i = 0; i < R && R > 1; i++) \
          for (int j = 0; j < V; j++) whole[i][j] = _mm256_loadu_si256((const __m256i *)(sums + g * PANEL + at + 8 * j)); \
        int64_t until = (g + 1) * (GROUP / 4) < fours ? (g + 1) * (GROUP / 4) : fours; \
        for (int64_t k = g * (GROUP / 4); k < until; k++) { \
          __m256i size[V], sign[V]; \
          if (m == 0) \
            for (int j = 0; j < 2; j++) _mm_prefetch((const char *)(B + k * PANEL + at) + AHEAD + 64 * j, _MM_HINT_T0); \
          for (int j = 0; j < V; j++) { \
            __m256i w = _mm256_loadu_si256((const __m256i *)(B + k * PANEL + at + 8 * j)); \
            size[j] = _mm256_abs_epi8(w), sign[j] = R > 1 ? _mm256_cmpgt_epi8(_mm256_setzero_si256(), w) : w; \
          } \
          for (int i = 0; i < R; i++) { \
            int32_t four; \
            memcpy(&four, A + (m + i) * lda + 4 * k, 4); \
            __m256i x = _mm256_set1_epi32(four); \
            for (int j = 0; j < V; j++) { \
              __m256i by = R > 1 ? _mm256_xor_si256(x, sign[j]) : _mm256_sign_epi8(x, sign[j]); \
              __m256i two = _mm256_maddubs_epi16(size[j], by); \
              whole[i][j] = _mm256_add_epi32(whole[i][j], _mm256_madd_epi16(two, _mm256_set1_epi16(1))); \
            } \
          } \
        } \
        for (int i = 0; i < R; i++) \
          for (int j = 0; j < V; j++) { /* sums of groups wait in memory: registers are few */ \
            float *c = C + (m + i) * PANEL + at + 8 * j; \
            __m256 of = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i][j]), _mm256_set1_ps(inputs[(m + i) * groups + g]), \
                                        g ? _mm256_loadu_ps(c) : _mm256_setzero_ps()); \
            if (g + 1 == groups) of = _mm256_mul_ps(of, _mm256_loadu_ps(scales + at + 8 * j)); \
            _mm256_storeu_ps(c, of); \
          } \
      } \
    m += R; \
  }
#else
#define ROWS(R, V) m += R;  // linear_packs says that this processor does not
#endif
// C (M, PANEL) of a panel: A (M, lda) bytes with their scales `inputs` (M, groups) by B (fours, PANEL) with `scales`;
// `sums` (groups, PANEL) is what the form of an input takes away, see `missing`
static void product_int8(int64_t M, int64_t K, const uint8_t *A, int64_t lda, const float *inputs, const int32_t *B,
                         const float *scales, const int32_t *sums, float *C) {
  int64_t m = 0;
#ifdef INT8
  int64_t fours = (K + 3) / 4, groups = (K + GROUP - 1) / GROUP;
#endif
#if defined(__AVX512VNNI__)
  while (m + 6 <= M) ROWS(6, 2)
#endif
  while (m + 4 <= M) ROWS(4, 2)
  if (m + 2 <= M) ROWS(2, 2)
  if (m < M) ROWS(1, 4)
}
#undef ROWS
