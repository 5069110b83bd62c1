// Attention over intervals of keys in float32, of rows in float32 or bfloat16; attention_bf16.c is the same on pairs of
// bfloat16, where they are multiplied by an instruction, and the gradient of bfloat16 everywhere.
#include "attention.h"

// C[m][n] (+)= sum_k A[m * am + k * ak] * B[k * ldb + n]; n runs in steps of 16
#define MICRO(MR, NV)                                                                                              \
  {                                                                                                                \
    reg acc[MR][NV];                                                                                               \
    for (int i = 0; i < MR; i++)                                                                                   \
      for (int j = 0; j < NV; j++) acc[i][j] = add ? *(reg *)(c + (m + i) * ldc + n + j * WIDE) : (reg){};         \
    for (int64_t k = 0; k < K; k++) {                                                                              \
      reg b[NV];                                                                                                   \
      for (int j = 0; j < NV; j++) b[j] = *(const reg *)(B + k * ldb + n + j * WIDE);                              \
      for (int i = 0; i < MR; i++) {                                                                               \
        float a = A[(m + i) * am + k * ak];                                                                        \
        for (int j = 0; j < NV; j++) acc[i][j] += a * b[j];                                                        \
      }                                                                                                            \
    }                                                                                                              \
    for (int i = 0; i < MR; i++)                                                                                   \
      for (int j = 0; j < NV; j++) *(reg *)(c + (m + i) * ldc + n + j * WIDE) = acc[i][j];                         \
  }
#define MOST (WIDE == 16 ? 8 : 6)  // rows whose sums fit into the registers there are, two of them each

INLINE void product(int64_t M, int64_t N, int64_t K, const float *A, int64_t am, int64_t ak, const float *B, int64_t ldb,
                    float *c, int64_t ldc, int add) {
  for (int64_t n = 0; n < N;) {
    int64_t m = 0;
    if (n + 2 * WIDE <= N) {
      for (; m + MOST <= M; m += MOST) MICRO(MOST, 2)
      for (; m + 4 <= M; m += 4) MICRO(4, 2)
      for (; m < M; m++) MICRO(1, 2)
      n += 2 * WIDE;
    } else {
      for (; m + 8 <= M; m += 8) MICRO(8, 1)
      for (; m < M; m++) MICRO(1, 1)
      n += WIDE;
    }
  }
}

INLINE void plain_in(const void *src, int64_t stride, int64_t T, int64_t D, int64_t ld, float *dst, int bf) {
  for (int64_t t = 0; t < T; t++) {
    int64_t i = 0;
    for (; i + WIDE <= D; i += WIDE) *(reg *)(dst + t * ld + i) = reg_in(src, t * stride + i, bf);
    for (; i < D; i++) dst[t * ld + i] = one_in(src, t * stride + i, bf);
    for (; i < ld; i++) dst[t * ld + i] = 0;
  }
}
INLINE void transpose(const float *src, int64_t T, int64_t D, int64_t ld, float *dst, int64_t ldt) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < D; i++) dst[i * ldt + t] = src[t * ld + i];
  for (int64_t i = 0; i < D; i++)
    for (int64_t t = T; t < ldt; t++) dst[i * ldt + t] = 0;
}

// The scratch of one thread, all float32: see the order in `carve`.
typedef struct { float *q, *k, *v, *kt, *vt, *go, *dq, *dk, *dv, *s, *dp; int64_t ld, ldt; float *base; } Room;
static Room carve(const Shape *S) {
  Room r;
  r.ld = up16(S->D), r.ldt = up16(S->K) + LANES;
  int64_t ours = up16(S->T * r.ld + LANES), theirs = up16(S->K * r.ld + LANES), turned = up16(r.ld * r.ldt);
  int64_t tile = up16(TILE * r.ldt);
  r.base = scratch((size_t)((3 * ours + 4 * theirs + 2 * turned + 2 * tile) * 4));
  float *p = r.base;
  r.q = p, p += ours, r.go = p, p += ours, r.dq = p, p += ours;
  r.k = p, p += theirs, r.v = p, p += theirs, r.dk = p, p += theirs, r.dv = p, p += theirs;
  r.kt = p, p += turned, r.vt = p, p += turned, r.s = p, p += tile, r.dp = p;
  return r;
}

INLINE const void *from(const void *p, int64_t at, int bf) {
  return bf ? (const void *)((const uint16_t *)p + at) : (const void *)((const float *)p + at);
}

INLINE void forward(const Shape *shape, const void *q, const void *k, const void *v, void *out, int bf) {
  const Shape S = *shape;
  int64_t group = S.H / S.G, few = S.B * S.G < 4 * omp_get_max_threads();
  int64_t each = few ? 1 : group, units = S.B * S.H / each;  // heads that one thread takes: of few rows it shares keys less
#pragma omp parallel
  {
    Room m = carve(&S);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; unit++) {
      int64_t b = unit * each / S.H, first = unit * each % S.H, g = first / group;
      int64_t at = b * S.K * S.key_stride + g * S.D, to = b * S.T * S.query_stride;
      const float *cs = S.cosines ? S.cosines + b * S.rotary_stride : NULL, *sn = S.sines + b * S.rotary_stride;
      rotary_in(from(k, at, bf), S.key_stride, S.K, S.D, m.ld, cs, sn, 1, m.k, bf, 0);
      transpose(m.k, S.K, S.D, m.ld, m.kt, m.ldt);
      plain_in(from(v, at, bf), S.key_stride, S.K, S.D, m.ld, m.v, bf);
      for (int64_t h = first; h < first + each; h++) {
        rotary_in(from(q, to + h * S.D, bf), S.query_stride, S.T, S.D, m.ld, cs, sn, S.scale, m.q, bf, 0);
        for (int64_t i0 = 0, rows; i0 < S.T; i0 += rows) {
          rows = tile_rows(&S, b, i0);
          Span span = tile_span(&S, b, i0, rows, LANES);
          int64_t keys = span.until - span.from, width = up16(keys);
          product(rows, width, S.D, m.q + i0 * m.ld, m.ld, 1, m.kt + span.from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(&S, m.s, m.ldt, b, h, i0, rows, span, width);
          product(rows, m.ld, keys, m.s, m.ldt, 1, m.v + span.from * m.ld, m.ld, m.dq, m.ld, 0);
          plain_out(m.dq, m.ld, rows, S.D, (void *)from(out, ((b * S.T + i0) * S.H + h) * S.D, bf), S.H * S.D, bf);
        }
      }
    }
    free(m.base);
  }
}

void attention(const Shape *shape, const void *q, const void *k, const void *v, void *out) {
  if (!shape->bf) forward(shape, q, k, v, out, 0);
#ifndef BF16_UNITS  // taking bfloat16 in and out costs less than its products by shifts: half the time on AVX2
  else forward(shape, q, k, v, out, 1);
#else
  else attention_bf16(shape, q, k, v, out);
#endif
}

// Everything is made again from q, k and v: nothing but the input is kept for the backward pass.
static void attention_grad_fp32(const Shape *shape, const float *q, const float *k, const float *v, const float *gout,
                                float *gq, float *gk, float *gv, float *part) {
  const Shape S = *shape;
  int64_t group = S.H / S.G;
#pragma omp parallel
  {
    Room m = carve(&S);
    float *mine = part + omp_get_thread_num() * S.H * S.bias_stride;
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, flat = S.K * m.ld, at = b * S.K * S.key_stride + g * S.D;
      const float *cs = S.cosines ? S.cosines + b * S.rotary_stride : NULL, *sn = S.sines + b * S.rotary_stride;
      rotary_in(k + at, S.key_stride, S.K, S.D, m.ld, cs, sn, 1, m.k, 0, 0);
      transpose(m.k, S.K, S.D, m.ld, m.kt, m.ldt);
      plain_in(v + at, S.key_stride, S.K, S.D, m.ld, m.v, 0);
      transpose(m.v, S.K, S.D, m.ld, m.vt, m.ldt);
      memset(m.dk, 0, (size_t)flat * 4);
      memset(m.dv, 0, (size_t)flat * 4);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        int64_t to = b * S.T * S.query_stride + h * S.D;
        rotary_in(q + to, S.query_stride, S.T, S.D, m.ld, cs, sn, S.scale, m.q, 0, 0);
        plain_in(gout + (b * S.T * S.H + h) * S.D, S.H * S.D, S.T, S.D, m.ld, m.go, 0);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE;
          Span span = tile_span(&S, b, i0, rows, LANES);
          int64_t from = span.from, keys = span.until - from, width = up16(keys);
          product(rows, width, S.D, m.q + i0 * m.ld, m.ld, 1, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(&S, m.s, m.ldt, b, h, i0, rows, span, width);
          product(rows, width, S.D, m.go + i0 * m.ld, m.ld, 1, m.vt + from, m.ldt, m.dp, m.ldt, 0);
          product(keys, m.ld, rows, m.s, 1, m.ldt, m.go + i0 * m.ld, m.ld, m.dv + from * m.ld, m.ld, 1);
          for (int64_t r = 0; r < rows; r++) {  // dS = P (dP - sum P dP)
            float *p = m.s + r * m.ldt, *d = m.dp + r * m.ldt;
            vec acc = {};
            for (int64_t j = 0; j < width; j += LANES) acc += *(vec *)(p + j) * *(vec *)(d + j);
            float mean = vec_sum(acc);
            for (int64_t j = 0; j < width; j += LANES) *(vec *)(d + j) = *(vec *)(p + j) * (*(vec *)(d + j) - mean);
          }
          if (S.bias) bias_grad(&S, m.dp, m.ldt, h, i0, rows, span, width, mine);
          product(rows, m.ld, keys, m.dp, m.ldt, 1, m.k + from * m.ld, m.ld, m.dq + i0 * m.ld, m.ld, 0);
          product(keys, m.ld, rows, m.dp, 1, m.ldt, m.q + i0 * m.ld, m.ld, m.dk + from * m.ld, m.ld, 1);
        }
        rotary_back(m.dq, m.ld, S.T, S.D, cs, sn, S.scale, gq + to, S.query_stride, 0);
      }
      rotary_back(m.dk, m.ld, S.K, S.D, cs, sn, 1, gk + at, S.key_stride, 0);
      plain_out(m.dv, m.ld, S.K, S.D, gv + at, S.key_stride, 0);
    }
    free(m.base);
  }
}

// gbias (H, bias_stride) is the sum over threads in their order, so a fixed number of threads gives equal bits
void attention_grad(const Shape *shape, const void *q, const void *k, const void *v, const void *gout, void *gq, void *gk,
                    void *gv, float *gbias) {
  int64_t threads = omp_get_max_threads(), size = shape->bias ? shape->H * shape->bias_stride : 0;
  float *part = scratch((size_t)(threads * size + 1) * 4);
  memset(part, 0, (size_t)(threads * size) * 4);
  if (shape->bf) attention_grad_bf16(shape, q, k, v, gout, gq, gk, gv, part);
  else attention_grad_fp32(shape, q, k, v, gout, gq, gk, gv, part);
  for (int64_t i = 0; i < size; i++) {
    gbias[i] = 0;
    for (int64_t t = 0; t < threads; t++) gbias[i] += part[t * size + i];
  }
  free(part);
}
