// One row of a norm: of x, or of x and what is added to it.
#pragma once
#include "vectors.h"

INLINE void add_norm_row(const float *xr, const void *delta, int64_t at, int delta_bf, const float *w, const float *shift,
                         float eps, int64_t d, float *tr, void *y, int y_bf, float *scale, float *middle, int center,
                         int post) {
  vec acc = {}, sums = {};
  float rest = 0, sum = 0, mean = 0;
  int64_t i = 0;
  for (; i + LANES <= d; i += LANES) {
    vec v = *(const vec *)(xr + i);
    if (delta) {
      v += vec_in(delta, at + i, delta_bf);
      *(vec *)(tr + i) = v;
    }
    if (center) sums += v;
    else acc += v * v;
  }
  for (; i < d; i++) {
    float v = xr[i];
    if (delta) tr[i] = v += one_in(delta, at + i, delta_bf);
    if (center) sum += v;
    else rest += v * v;
  }
  const float *src = delta ? tr : xr;
  if (center) {  // the variance in a second pass over the row, which lies in the nearest cache: nothing cancels
    *middle = mean = (vec_sum(sums) + sum) / (float)d;
    for (i = 0; i + LANES <= d; i += LANES) {
      vec v = *(const vec *)(src + i) - mean;
      acc += v * v;
    }
    for (; i < d; i++) rest += (src[i] - mean) * (src[i] - mean);
  }
  float s = *scale = 1.0f / sqrtf((vec_sum(acc) + rest) / (float)d + eps);
  for (i = 0; i + LANES <= d; i += LANES) {
    vec v = *(const vec *)(src + i);
    if (center) v -= mean;
    v = v * s * *(const vec *)(w + i);
    if (shift) v += *(const vec *)(shift + i);
    if (post) *(vec *)(tr + i) = v;
    vec_out(y, at + i, v, y_bf);
  }
  for (; i < d; i++) {
    float v = (center ? src[i] - mean : src[i]) * s * w[i] + (shift ? shift[i] : 0);
    if (post) tr[i] = v;
    one_out(y, at + i, v, y_bf);
  }
}
