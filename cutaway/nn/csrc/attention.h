// What the kernels of attention share: their shape, rotary positions, biases by distance, the softmax of a tile of queries.
#pragma once
#include "vectors.h"

#define TILE 32  // queries whose scores exist at once
typedef struct {
  int64_t B, T, K, H, G, D;         // T queries look at K keys
  int bf, causal;
  float scale;                      // of the scores
  int64_t query_stride, key_stride; // elements from one token to the next
  const float *cosines, *sines;     // (B or 1, T, D / 2) for queries and keys alike; NULL: they are not turned
  int64_t rotary_stride;            // 0 where all rows share the angles
  const int32_t *first, *last;      // (B, T): the keys each query sees; NULL: from 0, to itself (causal) or the last one
  const float *bias;                // (H, bias_stride): added to the score, at key - query + T - 1; NULL: nothing
  int64_t bias_stride;              // at least T - 1 + K filled up to 32
} Shape;
typedef struct { int64_t from, until; } Span; // keys of a tile, the last one not counted
void attention_bf16(const Shape *shape, const void *q, const void *k, const void *v, void *out);
void attention_grad_bf16(const Shape *shape, const void *q, const void *k, const void *v, const void *gout, void *gq,
                         void *gk, void *gv, float *part);

INLINE int64_t first_key(const Shape *S, int64_t b, int64_t t) { return S->first ? S->first[b * S->T + t] : 0; }
INLINE int64_t last_key(const Shape *S, int64_t b, int64_t t) {
  return S->last ? S->last[b * S->T + t] : S->causal ? t : S->K - 1;
}
// queries of the tile that begins at i0: it ends where a document begins that it would not hold whole, for each one more
// that it touches is keys to read for all of its queries
INLINE int64_t tile_rows(const Shape *S, int64_t b, int64_t i0) {
  int64_t rows = S->T - i0 < TILE ? S->T - i0 : TILE, end = i0 + rows;
  if (end == S->T) return rows;
  int64_t begin = first_key(S, b, end);
  return begin > i0 && begin < end && first_key(S, b, begin) == begin ? begin - i0 : rows;  // and no window's edge
}
// what any query of a tile sees, its beginning on a multiple of `step`
INLINE Span tile_span(const Shape *S, int64_t b, int64_t i0, int64_t rows, int64_t step) {
  Span span = {S->K, 0};
  for (int64_t t = i0; t < i0 + rows; t++) {
    int64_t low = first_key(S, b, t), high = last_key(S, b, t) + 1;
    if (low < span.from) span.from = low;
    if (high > span.until) span.until = high;
  }
  span.from = span.from / step * step;
  return span;
}

// rows of one head, turned by their rotary angles and scaled; `dst` has rows of `ld`, filled up with zeros
INLINE void rotary_in(const void *src, int64_t stride, int64_t T, int64_t D, int64_t ld, const float *cosines,
                      const float *sines, float scale, void *dst, int bf, int dst_bf) {
  int64_t half = D / 2;
  if (!cosines) {
    for (int64_t t = 0; t < T; t++) {
      int64_t i = 0, s = t * stride, d = t * ld;
      for (; i + WIDE <= D; i += WIDE) reg_out(dst, d + i, reg_in(src, s + i, bf) * scale, dst_bf);
      for (; i < D; i++) one_out(dst, d + i, one_in(src, s + i, bf) * scale, dst_bf);
      for (; i < ld; i++) one_out(dst, d + i, 0, dst_bf);
    }
    return;
  }
  for (int64_t t = 0; t < T; t++) {
    const float *cs = cosines + t * half, *sn = sines + t * half;
    int64_t i = 0, s = t * stride, d = t * ld;
    for (; i + WIDE <= half; i += WIDE) {
      reg a = reg_in(src, s + i, bf), b = reg_in(src, s + half + i, bf), c = *(const reg *)(cs + i), n = *(const reg *)(sn + i);
      reg_out(dst, d + i, (a * c - b * n) * scale, dst_bf);
      reg_out(dst, d + half + i, (b * c + a * n) * scale, dst_bf);
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
  if (!cosines) {
    for (int64_t t = 0; t < T; t++) {
      int64_t i = 0, s = t * ld, d = t * stride;
      for (; i + WIDE <= D; i += WIDE) reg_out(dst, d + i, *(const reg *)(src + s + i) * scale, bf);
      for (; i < D; i++) one_out(dst, d + i, src[s + i] * scale, bf);
    }
    return;
  }
  for (int64_t t = 0; t < T; t++) {
    const float *cs = cosines + t * half, *sn = sines + t * half, *row = src + t * ld;
    int64_t i = 0, d = t * stride;
    for (; i + WIDE <= half; i += WIDE) {
      reg a = *(const reg *)(row + i) * scale, b = *(const reg *)(row + half + i) * scale;
      reg c = *(const reg *)(cs + i), n = *(const reg *)(sn + i);
      reg_out(dst, d + i, a * c + b * n, bf);
      reg_out(dst, d + half + i, b * c - a * n, bf);
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
    for (; i + WIDE <= D; i += WIDE) reg_out(dst, t * stride + i, *(const reg *)(src + t * ld + i), bf);
    for (; i < D; i++) one_out(dst, t * stride + i, src[t * ld + i], bf);
  }
}

// softmax of a tile's rows over the keys each query may see; `span.from` is the tile's first key
INLINE void softmax_tile(const Shape *S, float *s, int64_t lds, int64_t b, int64_t h, int64_t i0, int64_t rows, Span span,
                         int64_t width) {
  for (int64_t r = 0; r < rows; r++) {
    float *p = s + r * lds;
    int64_t low = first_key(S, b, i0 + r) - span.from, high = last_key(S, b, i0 + r) - span.from;  // inclusive
    int64_t start = low / LANES * LANES, stop = up16(high + 1);
    if (S->bias) {
      const float *bias = S->bias + h * S->bias_stride + span.from - i0 - r + S->T - 1;
      for (int64_t j = start; j < stop; j += LANES) *(vec *)(p + j) += *(const vec *)(bias + j);
    }
    for (int64_t j = 0; j < low; j++) p[j] = -INFINITY;
    for (int64_t j = high + 1; j < width; j++) p[j] = -INFINITY;
    reg top = *(reg *)(p + start);
    for (int64_t j = start + WIDE; j < stop; j += WIDE) top = reg_max(*(reg *)(p + j), top);
    float most = reg_most(top);
    reg acc[REGS] = {};
    for (int64_t j = start; j < stop; j += LANES)
      for (int k = 0; k < REGS; k++) acc[k] += *(reg *)(p + j + k * WIDE) = reg_exp(*(reg *)(p + j + k * WIDE) - most);
    float inverse = 1.0f / regs_sum(acc);
    for (int64_t j = start; j < stop; j += WIDE) *(reg *)(p + j) *= inverse;
    for (int64_t j = 0; j < start; j++) p[j] = 0;
    for (int64_t j = stop; j < width; j++) p[j] = 0;
  }
}
// the gradient of the biases: a tile's gradient of scores, summed along its diagonals
INLINE void bias_grad(const Shape *S, const float *ds, int64_t lds, int64_t h, int64_t i0, int64_t rows, Span span,
                      int64_t width, float *part) {
  for (int64_t r = 0; r < rows; r++) {
    const float *d = ds + r * lds;
    float *to = part + h * S->bias_stride + span.from - i0 - r + S->T - 1;
    for (int64_t j = 0; j < width; j += LANES) *(vec *)(to + j) += *(const vec *)(d + j);
  }
}
