// What the kernels of attention share: their shape, rotary positions, the softmax of a tile of queries.
#pragma once
#include "vectors.h"

#define TILE 32  // queries whose scores exist at once
typedef struct {
  int64_t B, T, H, G, D;
  int bf;
  const float *cosines, *sines;  // (B or 1, T, D / 2)
  int64_t rotary_stride;         // 0 where all rows share the angles
  const int32_t *first;          // (B, T): the first key each query sees
} Shape;
void attention_bf16(const Shape *shape, const void *qkv, void *out);
void attention_grad_bf16(const Shape *shape, const void *qkv, const void *gout, void *gqkv);

// rows of one head, turned by their rotary angles and scaled; `dst` has rows of `ld`, filled up with zeros
INLINE void rotary_in(const void *src, int64_t stride, int64_t T, int64_t D, int64_t ld, const float *cosines,
                      const float *sines, float scale, void *dst, int bf, int dst_bf) {
  int64_t half = D / 2;
  for (int64_t t = 0; t < T; t++) {
    const float *cs = cosines + t * half, *sn = sines + t * half;
    int64_t i = 0, s = t * stride, d = t * ld;
    for (; i + LANES <= half; i += LANES) {
      vec a = vec_in(src, s + i, bf), b = vec_in(src, s + half + i, bf), c = *(const vec *)(cs + i), n = *(const vec *)(sn + i);
      vec_out(dst, d + i, (a * c - b * n) * scale, dst_bf);
      vec_out(dst, d + half + i, (b * c + a * n) * scale, dst_bf);
    }
    for (; i < half; i++) {
      float a = one_in(src, s + i, bf), b = one_in(src, s + half + i, bf);
      one_out(dst, d + i, (a * cs[i] - b * sn[i]) * scale, dst_bf);
      one_out(dst, d + half + i, (b * cs[i] + a * sn[i]) * scale, dst_bf);
    }
    for (i = D; i < ld; i++) one_out(dst, d + i, 0, dst_bf);
  }
}
// the way back of a gradient: turned by the opposite angle
INLINE void rotary_back(const float *src, int64_t ld, int64_t T, int64_t D, const float *cosines, const float *sines,
                        float scale, void *dst, int64_t stride, int bf) {
  int64_t half = D / 2;
  for (int64_t t = 0; t < T; t++) {
    const float *cs = cosines + t * half, *sn = sines + t * half, *row = src + t * ld;
    int64_t i = 0, d = t * stride;
    for (; i + LANES <= half; i += LANES) {
      vec a = *(const vec *)(row + i) * scale, b = *(const vec *)(row + half + i) * scale;
      vec c = *(const vec *)(cs + i), n = *(const vec *)(sn + i);
      vec_out(dst, d + i, a * c + b * n, bf);
      vec_out(dst, d + half + i, b * c - a * n, bf);
    }
    for (; i < half; i++) {
      float a = row[i] * scale, b = row[half + i] * scale;
      one_out(dst, d + i, a * cs[i] + b * sn[i], bf);
      one_out(dst, d + half + i, b * cs[i] - a * sn[i], bf);
    }
  }
}

INLINE void plain_out(const float *src, int64_t ld, int64_t T, int64_t D, void *dst, int64_t stride, int bf) {
  for (int64_t t = 0; t < T; t++) {
    int64_t i = 0;
    for (; i + LANES <= D; i += LANES) vec_out(dst, t * stride + i, *(const vec *)(src + t * ld + i), bf);
    for (; i < D; i++) one_out(dst, t * stride + i, src[t * ld + i], bf);
  }
}

// softmax of a tile's rows over the keys [first[i], i] each query i may see; `from` is the tile's first key
INLINE void softmax_tile(float *s, int64_t lds, int64_t i0, int64_t rows, const int32_t *first, int64_t from, int64_t width) {
  for (int64_t r = 0; r < rows; r++) {
    float *p = s + r * lds;
    int64_t low = first[i0 + r] - from, high = i0 + r - from;  // inclusive
    for (int64_t j = 0; j < low; j++) p[j] = -INFINITY;
    for (int64_t j = high + 1; j < width; j++) p[j] = -INFINITY;
    int64_t start = low / LANES * LANES, stop = up16(high + 1);
    vec top = *(vec *)(p + start);
    for (int64_t j = start + LANES; j < stop; j += LANES) {
      vec x = *(vec *)(p + j);
      ivec above = x > top;
      top = (vec)(((ivec)x & above) | ((ivec)top & ~above));
    }
    float most = top[0];
    for (int l = 1; l < LANES; l++)
      if (top[l] > most) most = top[l];
    vec acc = {};
    for (int64_t j = start; j < stop; j += LANES) {
      vec e = vec_exp(*(vec *)(p + j) - most);
      *(vec *)(p + j) = e;
      acc += e;
    }
    float inverse = 1.0f / vec_sum(acc);
    for (int64_t j = start; j < stop; j += LANES) *(vec *)(p + j) *= inverse;
    for (int64_t j = 0; j < start; j++) p[j] = 0;
    for (int64_t j = stop; j < width; j++) p[j] = 0;
  }
}
