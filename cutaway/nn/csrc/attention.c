// Rotary attention over intervals of keys in float32; attention_bf16.c is the same on pairs of bfloat16.
#include "attention.h"

// C[m][n] (+)= sum_k A[m * am + k * ak] * B[k * ldb + n]; n runs in whole vectors
#define MICRO(MR, NV)                                                                                              \
  {                                                                                                                \
    vec acc[MR][NV];                                                                                               \
    for (int i = 0; i < MR; i++)                                                                                   \
      for (int j = 0; j < NV; j++) acc[i][j] = add ? *(vec *)(c + (m + i) * ldc + n + j * LANES) : (vec){};        \
    for (int64_t k = 0; k < K; k++) {                                                                              \
      vec b[NV];                                                                                                   \
      for (int j = 0; j < NV; j++) b[j] = *(const vec *)(B + k * ldb + n + j * LANES);                             \
      for (int i = 0; i < MR; i++) {                                                                               \
        float a = A[(m + i) * am + k * ak];                                                                        \
        for (int j = 0; j < NV; j++) acc[i][j] += a * b[j];                                                        \
      }                                                                                                            \
    }                                                                                                              \
    for (int i = 0; i < MR; i++)                                                                                   \
      for (int j = 0; j < NV; j++) *(vec *)(c + (m + i) * ldc + n + j * LANES) = acc[i][j];                        \
  }

INLINE void product(int64_t M, int64_t N, int64_t K, const float *A, int64_t am, int64_t ak, const float *B, int64_t ldb,
                    float *c, int64_t ldc, int add) {
  for (int64_t n = 0; n < N;) {
    int64_t m = 0;
    if (n + 2 * LANES <= N) {
      for (; m + 8 <= M; m += 8) MICRO(8, 2)
      for (; m + 4 <= M; m += 4) MICRO(4, 2)
      for (; m < M; m++) MICRO(1, 2)
      n += 2 * LANES;
    } else {
      for (; m + 8 <= M; m += 8) MICRO(8, 1)
      for (; m < M; m++) MICRO(1, 1)
      n += LANES;
    }
  }
}

INLINE void plain_in(const float *src, int64_t stride, int64_t T, int64_t D, int64_t ld, float *dst) {
  for (int64_t t = 0; t < T; t++) {
    for (int64_t i = 0; i < D; i++) dst[t * ld + i] = src[t * stride + i];
    for (int64_t i = D; i < ld; i++) dst[t * ld + i] = 0;
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
static Room carve(int64_t T, int64_t D) {
  Room r;
  r.ld = up16(D), r.ldt = up16(T) + LANES;
  int64_t flat = T * r.ld + LANES, turned = r.ld * r.ldt, tile = TILE * r.ldt;
  r.base = scratch((size_t)((8 * up16(flat) + 2 * up16(turned) + 2 * up16(tile)) * 4));
  float *p = r.base;
  float **flats[] = {&r.q, &r.k, &r.v, &r.go, &r.dq, &r.dk, &r.dv};
  for (int i = 0; i < 7; i++) *flats[i] = p, p += up16(flat);
  r.kt = p, p += up16(turned), r.vt = p, p += up16(turned), r.s = p, p += up16(tile), r.dp = p;
  return r;
}

void attention(const Shape *shape, const void *qkv, void *out) {
  const Shape S = *shape;
  if (S.bf) {
    attention_bf16(shape, qkv, out);
    return;
  }
  int64_t wide = (S.H + 2 * S.G) * S.D, group = S.H / S.G;
  float scale = 1.0f / sqrtf((float)S.D);
#pragma omp parallel
  {
    Room m = carve(S.T, S.D);
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G;
      const float *row = (const float *)qkv + b * S.T * wide;
      const float *cs = S.cosines + b * S.rotary_stride, *sn = S.sines + b * S.rotary_stride;
      const int32_t *first = S.first + b * S.T;
      rotary_in(row + (S.H + g) * S.D, wide, S.T, S.D, m.ld, cs, sn, 1, m.k, 0, 0);
      transpose(m.k, S.T, S.D, m.ld, m.kt, m.ldt);
      plain_in(row + (S.H + S.G + g) * S.D, wide, S.T, S.D, m.ld, m.v);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in(row + h * S.D, wide, S.T, S.D, m.ld, cs, sn, scale, m.q, 0, 0);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE, from = first[i0] / LANES * LANES, last = i0 + rows;
          int64_t width = up16(last - from);
          product(rows, width, S.D, m.q + i0 * m.ld, m.ld, 1, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(m.s, m.ldt, i0, rows, first, from, width);
          product(rows, m.ld, last - from, m.s, m.ldt, 1, m.v + from * m.ld, m.ld, m.dq, m.ld, 0);
          plain_out(m.dq, m.ld, rows, S.D, (float *)out + ((b * S.T + i0) * S.H + h) * S.D, S.H * S.D, 0);
        }
      }
    }
    free(m.base);
  }
}

// Everything is made again from qkv: nothing but the input is kept for the backward pass.
void attention_grad(const Shape *shape, const void *qkv, const void *gout, void *gqkv) {
  const Shape S = *shape;
  if (S.bf) {
    attention_grad_bf16(shape, qkv, gout, gqkv);
    return;
  }
  int64_t wide = (S.H + 2 * S.G) * S.D, group = S.H / S.G;
  float scale = 1.0f / sqrtf((float)S.D);
#pragma omp parallel
  {
    Room m = carve(S.T, S.D);
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, flat = S.T * m.ld;
      const float *row = (const float *)qkv + b * S.T * wide;
      float *grow = (float *)gqkv + b * S.T * wide;
      const float *cs = S.cosines + b * S.rotary_stride, *sn = S.sines + b * S.rotary_stride;
      const int32_t *first = S.first + b * S.T;
      rotary_in(row + (S.H + g) * S.D, wide, S.T, S.D, m.ld, cs, sn, 1, m.k, 0, 0);
      transpose(m.k, S.T, S.D, m.ld, m.kt, m.ldt);
      plain_in(row + (S.H + S.G + g) * S.D, wide, S.T, S.D, m.ld, m.v);
      transpose(m.v, S.T, S.D, m.ld, m.vt, m.ldt);
      memset(m.dk, 0, (size_t)flat * 4);
      memset(m.dv, 0, (size_t)flat * 4);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in(row + h * S.D, wide, S.T, S.D, m.ld, cs, sn, scale, m.q, 0, 0);
        plain_in((const float *)gout + (b * S.T * S.H + h) * S.D, S.H * S.D, S.T, S.D, m.ld, m.go);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE, from = first[i0] / LANES * LANES, last = i0 + rows;
          int64_t keys = last - from, width = up16(keys);
          product(rows, width, S.D, m.q + i0 * m.ld, m.ld, 1, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(m.s, m.ldt, i0, rows, first, from, width);
          product(rows, width, S.D, m.go + i0 * m.ld, m.ld, 1, m.vt + from, m.ldt, m.dp, m.ldt, 0);
          product(keys, m.ld, rows, m.s, 1, m.ldt, m.go + i0 * m.ld, m.ld, m.dv + from * m.ld, m.ld, 1);
          for (int64_t r = 0; r < rows; r++) {  // dS = P (dP - sum P dP)
            float *p = m.s + r * m.ldt, *d = m.dp + r * m.ldt;
            vec acc = {};
            for (int64_t j = 0; j < width; j += LANES) acc += *(vec *)(p + j) * *(vec *)(d + j);
            float mean = vec_sum(acc);
            for (int64_t j = 0; j < width; j += LANES) *(vec *)(d + j) = *(vec *)(p + j) * (*(vec *)(d + j) - mean);
          }
          product(rows, m.ld, keys, m.dp, m.ldt, 1, m.k + from * m.ld, m.ld, m.dq + i0 * m.ld, m.ld, 0);
          product(keys, m.ld, rows, m.dp, 1, m.ldt, m.q + i0 * m.ld, m.ld, m.dk + from * m.ld, m.ld, 1);
        }
        rotary_back(m.dq, m.ld, S.T, S.D, cs, sn, scale, grow + h * S.D, wide, 0);
      }
      rotary_back(m.dk, m.ld, S.T, S.D, cs, sn, 1, grow + (S.H + g) * S.D, wide, 0);
      plain_out(m.dv, m.ld, S.T, S.D, grow + (S.H + S.G + g) * S.D, wide, 0);
    }
    free(m.base);
  }
}
