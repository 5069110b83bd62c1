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
typedef int32_t ireg __attribute__((vector_size(4 * WIDE), aligned(4)));
#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#define BF16_UNITS  // products of bfloat16 are an instruction
#endif
#define AHEAD 2048  // bytes of weights that are on their way while one row passes by
#define INLINE static inline __attribute__((always_inline))
#define ONCE __attribute__((noinline))  // where two callers must get the same bits: one copy is compiled one way

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
typedef uint16_t half_reg __attribute__((vector_size(2 * WIDE), aligned(2)));
typedef uint32_t ureg __attribute__((vector_size(4 * WIDE), aligned(4)));
INLINE reg reg_in(const void *p, int64_t i, int bf) {
  if (!bf) return *(const reg *)((const float *)p + i);
#if defined(__AVX512F__)
  return (reg)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)((const uint16_t *)p + i))), 16);
#elif defined(__AVX2__)  // one load: by __builtin_convertvector it takes five
  return (reg)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)((const uint16_t *)p + i))), 16);
#else
  return (reg)(__builtin_convertvector(*(const half_reg *)((const uint16_t *)p + i), ureg) << 16);
#endif
}
typedef union { vec v; reg part[LANES / WIDE]; } parts;
INLINE vec vec_in(const void *p, int64_t i, int bf) {
  if (!bf) return *(const vec *)((const float *)p + i);
  parts both;
  for (int j = 0; j < LANES / WIDE; j++) both.part[j] = reg_in(p, i + j * WIDE, 1);
  return both.v;
}
INLINE reg reg_all(float x) { return x - (reg){}; }  // x + 0 would be added up: it is not x for -0
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
INLINE half_reg reg_narrow(reg v) {  // to bfloat16, as to_bf16
#if defined(__AVX512BF16__)
  return (half_reg)_mm512_cvtneps_pbh((__m512)v);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  __m256i b = (__m256i)v, high = _mm256_srli_epi32(b, 16), one = _mm256_set1_epi32(1);
  __m256i up = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, one));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(b, up), 16), nan = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  r = _mm256_blendv_epi8(r, nan, (__m256i)_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q));
  return (half_reg)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0xd8));
#else
  ureg b = (ureg)v, nan = (ureg)(v != v);
  ureg r = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  return __builtin_convertvector((r & ~nan) | (((b >> 16) | 0x40) & nan), half_reg);
#endif
}
INLINE void reg_out(void *p, int64_t i, reg v, int bf) {
  if (bf) *(half_reg *)((uint16_t *)p + i) = reg_narrow(v);
  else *(reg *)((float *)p + i) = v;
}
INLINE half16 narrow(vec v) {
  parts of = {v};
  union { half16 whole; half_reg part[LANES / WIDE]; } out;
  for (int j = 0; j < LANES / WIDE; j++) out.part[j] = reg_narrow(of.part[j]);
  return out.whole;
}
INLINE void vec_out(void *p, int64_t i, vec v, int bf) {
  parts of = {v};
  for (int j = 0; j < LANES / WIDE; j++) reg_out(p, i + j * WIDE, of.part[j], bf);
}
INLINE reg picked(ireg where, reg then, reg other) { return (reg)(((ireg)then & where) | ((ireg)other & ~where)); }
#ifdef __AVX512F__
INLINE float reg_sum(reg v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float reg_most(reg v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE float vec_sum(vec v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float vec_most(vec v) { return _mm512_reduce_max_ps((__m512)v); }
// y where one of them is NaN
INLINE reg reg_max(reg x, reg y) { return (reg)_mm512_max_ps((__m512)x, (__m512)y); }
INLINE reg reg_min(reg x, reg y) { return (reg)_mm512_min_ps((__m512)x, (__m512)y); }
INLINE reg if_below(reg x, float limit, reg then, reg other) {
  return (reg)_mm512_mask_mov_ps((__m512)other, _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(limit), _CMP_LT_OQ),
                                 (__m512)then);
}
INLINE reg reg_scale2(reg x, reg n) { return (reg)_mm512_scalef_ps((__m512)x, (__m512)n); }
#else
#ifdef __AVX2__
INLINE float reg_sum(reg v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float vec_sum(vec v) {
  union { vec v; reg half[2]; } h = {v};
  return reg_sum(h.half[0] + h.half[1]);
}
INLINE float reg_most(reg v) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE reg reg_max(reg x, reg y) { return (reg)_mm256_max_ps((__m256)x, (__m256)y); }
INLINE reg reg_min(reg x, reg y) { return (reg)_mm256_min_ps((__m256)x, (__m256)y); }
#else
INLINE float vec_sum(vec v) {
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}
INLINE float reg_sum(reg v) {
  float s = 0;
  for (int i = 0; i < WIDE; i++) s += v[i];
  return s;
}
INLINE float reg_most(reg v) {
  float most = v[0];
  for (int i = 1; i < WIDE; i++)
    if (v[i] > most) most = v[i];
  return most;
}
INLINE reg reg_max(reg x, reg y) { return picked(x > y, x, y); }
INLINE reg reg_min(reg x, reg y) { return picked(x < y, x, y); }
#endif
INLINE float vec_most(vec v) {
  float most = v[0];
  for (int i = 1; i < LANES; i++)
    if (v[i] > most) most = v[i];
  return most;
}
INLINE reg if_below(reg x, float limit, reg then, reg other) { return picked(x < limit, then, other); }
INLINE reg reg_scale2(reg x, reg n) { return (reg)((ireg)x + (__builtin_convertvector(n, ireg) << 23)); }
#endif
// exp to 2 ulp (Cephes' polynomial); NaN passes through, below -87.3 it is 0, above 88.3 exp(88.3)
INLINE reg reg_exp(reg x) {
  reg c = reg_min(reg_all(88.3f), reg_max(reg_all(-87.3f), x));
  reg n = c * 1.44269504f + 12582912.0f - 12582912.0f;  // to the nearest whole number
  reg r = c - n * 0.693359375f + n * 2.12194440e-4f;
  reg p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return if_below(x, -87.3f, (reg){}, reg_scale2(p, n));
}
// 1 / x for x of at least 1; for a result in bfloat16 an estimate and one step of Newton's are cheaper and enough
INLINE reg reg_inverse(reg x, int bf) {
#ifdef __AVX512F__
  if (bf) {
    reg y = (reg)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
  }
#endif
  return 1.0f / x;
}
// sixteen sums that lie in registers, which a loop over `vec` would keep in memory on AVX2
#define REGS (LANES / WIDE)
INLINE float regs_sum(const reg *v) {
  reg all = v[0];
  for (int j = 1; j < REGS; j++) all += v[j];
  return reg_sum(all);
}
// the same of a vector: a register at a time, for whole ones on AVX2 would wait in memory between every two steps
#if WIDE == LANES
INLINE vec vec_max(vec x, vec y) { return reg_max(x, y); }
INLINE vec vec_exp(vec x) { return reg_exp(x); }
INLINE vec vec_inverse(vec x, int bf) { return reg_inverse(x, bf); }
#else
INLINE vec vec_max(vec x, vec y) {
  parts a = {x}, b = {y};
  for (int i = 0; i < LANES / WIDE; i++) a.part[i] = reg_max(a.part[i], b.part[i]);
  return a.v;
}
INLINE vec vec_exp(vec x) {
  parts a = {x};
  for (int i = 0; i < LANES / WIDE; i++) a.part[i] = reg_exp(a.part[i]);
  return a.v;
}
INLINE vec vec_inverse(vec x, int bf) {
  parts a = {x};
  for (int i = 0; i < LANES / WIDE; i++) a.part[i] = reg_inverse(a.part[i], bf);
  return a.v;
}
#endif
// whether token s of a row of documents may be read for token t; documents may be NULL
INLINE int reads(const int32_t *documents, int64_t steps, int64_t t, int64_t s) {
  return s >= 0 && s < steps && (!documents || documents[s] == documents[t]);
}
