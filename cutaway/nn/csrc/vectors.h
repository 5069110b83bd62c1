// What every kernel shares: a vector of 16 floats, bfloat16 in and out of it, exp. Plain C with GCC/Clang vector
// extensions: the compiler turns a vector into one AVX-512 register, two AVX ones or four of SSE/NEON. Tensors are
// float32 or bfloat16 (flag `bf`), sums are float32, and every function is checked against PyTorch in tests/parity.
//
// B rows, T tokens, H query heads, G key/value heads, D head size.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t half16 __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t bytes16 __attribute__((vector_size(LANES), aligned(1)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4)));
#ifdef __AVX512F__
#define WIDE 16  // floats of one register, for sums that must not leave it
#else
#define WIDE 8
#endif
typedef float reg __attribute__((vector_size(4 * WIDE), aligned(4)));
#define INLINE static inline __attribute__((always_inline))

// scratch of a thread, on a cache line's border
static void *scratch(size_t bytes) {
  void *p = aligned_alloc(64, bytes / 64 * 64 + 64);
  if (p) return p;
  fputs("cutaway: no memory is left for a kernel\n", stderr);
  abort();
}
INLINE int64_t up16(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
INLINE float one_in(const void *p, int64_t i, int bf) {
  if (!bf) return ((const float *)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
INLINE uint16_t to_bf16(float f) {  // round to nearest even; NaN stays NaN
  uint32_t b;
  memcpy(&b, &f, 4);
  if (f != f) return (uint16_t)((b >> 16) | 0x40);
  return (uint16_t)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
INLINE void one_out(void *p, int64_t i, float f, int bf) {
  if (bf) ((uint16_t *)p)[i] = to_bf16(f);
  else ((float *)p)[i] = f;
}
INLINE vec vec_in(const void *p, int64_t i, int bf) {
  if (!bf) return *(const vec *)((const float *)p + i);
  uvec bits = __builtin_convertvector(*(const half16 *)((const uint16_t *)p + i), uvec) << 16;
  return (vec)bits;
}
INLINE reg reg_in(const void *p, int64_t i, int bf) {
  if (!bf) return *(const reg *)((const float *)p + i);
#if WIDE == 16
  return (reg)vec_in(p, i, 1);
#else
  typedef uint16_t half8 __attribute__((vector_size(16), aligned(2)));
  typedef uint32_t bits8 __attribute__((vector_size(32), aligned(4)));
  return (reg)(__builtin_convertvector(*(const half8 *)((const uint16_t *)p + i), bits8) << 16);
#endif
}
// a * b + c in one rounding wherever there is an instruction for it: left to the compiler, one of two loops had it
INLINE reg reg_fma(reg a, reg b, reg c) {
#if defined(__AVX512F__)
  return (reg)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (reg)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
INLINE half16 narrow(vec v) {  // to bfloat16, as to_bf16
#ifdef __AVX512BF16__
  return (half16)_mm512_cvtneps_pbh((__m512)v);
#else
  uvec b = (uvec)v, nan = (uvec)(v != v);
  uvec r = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  return __builtin_convertvector((r & ~nan) | (((b >> 16) | 0x40) & nan), half16);
#endif
}
INLINE void vec_out(void *p, int64_t i, vec v, int bf) {
  if (bf) *(half16 *)((uint16_t *)p + i) = narrow(v);
  else *(vec *)((float *)p + i) = v;
}
#ifdef __AVX512F__
INLINE float vec_sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float vec_most(vec v) { return _mm512_reduce_max_ps((__m512)v); }
// y where one of them is NaN
INLINE vec vec_max(vec x, vec y) { return (vec)_mm512_max_ps((__m512)x, (__m512)y); }
INLINE vec vec_min(vec x, vec y) { return (vec)_mm512_min_ps((__m512)x, (__m512)y); }
INLINE vec if_below(vec x, float limit, vec then, vec other) {
  return (vec)_mm512_mask_mov_ps((__m512)other, _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(limit), _CMP_LT_OQ),
                                 (__m512)then);
}
INLINE vec vec_scale2(vec x, vec n) { return (vec)_mm512_scalef_ps((__m512)x, (__m512)n); }
#else
INLINE float vec_sum(vec v) {
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}
INLINE float vec_most(vec v) {
  float most = v[0];
  for (int i = 1; i < LANES; i++)
    if (v[i] > most) most = v[i];
  return most;
}
INLINE vec picked(ivec where, vec then, vec other) { return (vec)(((ivec)then & where) | ((ivec)other & ~where)); }
INLINE vec vec_max(vec x, vec y) { return picked(x > y, x, y); }
INLINE vec vec_min(vec x, vec y) { return picked(x < y, x, y); }
INLINE vec if_below(vec x, float limit, vec then, vec other) { return picked(x < limit, then, other); }
INLINE vec vec_scale2(vec x, vec n) { return (vec)((ivec)x + (__builtin_convertvector(n, ivec) << 23)); }
#endif
// exp to 2 ulp (Cephes' polynomial); NaN passes through, below -87.3 it is 0, above 88.3 exp(88.3)
INLINE vec vec_exp(vec x) {
  vec c = vec_min((vec){} + 88.3f, vec_max((vec){} - 87.3f, x));
  vec n = c * 1.44269504f + 12582912.0f - 12582912.0f;  // to the nearest whole number
  vec r = c - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return if_below(x, -87.3f, (vec){}, vec_scale2(p, n));
}
// 1 / x for x of at least 1; for a result in bfloat16 an estimate and one step of Newton's are cheaper and enough
INLINE vec vec_inverse(vec x, int bf) {
#ifdef __AVX512F__
  if (bf) {
    vec y = (vec)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
  }
#endif
  return 1.0f / x;
}
// whether token s of a row of documents may be read for token t; documents may be NULL
INLINE int reads(const int32_t *documents, int64_t steps, int64_t t, int64_t s) {
  return s >= 0 && s < steps && (!documents || documents[s] == documents[t]);
}
