// One row of a norm: of x, or of x and what is added to it.
#pragma once
#include "vectors.h"

INLINE void add_norm_row(const float *xr, const void *delta, int64_t at, int delta_bf, const float *w, const float *shift,
                         float eps, int64_t d, float *tr, void *y, int y_bf, float *scale, float *middle, int center,
                         int post) {
  reg acc[REGS] = {}, sums[REGS] = {};
  float rest = 0, sum = 0, mean = 0;
  int64_t i = 0;
  for (; i + LANES <= d; i += LANES)
    for (int64_t j = 0, k = i; j < REGS; j++, k += WIDE) {
      reg v = reg_in(xr, k, 0);
      if (delta) {
        v += reg_in(delta, at + k, delta_bf);
        reg_out(tr, k, v, 0);
      }
      if (center) sums[j] += v;
      else acc[j] = reg_fma(v, v, acc[j]);
    }
  for (; i < d; i++) {
    float v = xr[i];
    if (delta) tr[i] = v += one_in(delta, at + i, delta_bf);
    if (center) sum += v;
    else rest += v * v;
  }
  const float *src = delta ? tr : xr;
  if (center) {  // the variance in a second pass over the row, which lies in the nearest cache: nothing cancels
    *middle = mean = (regs_sum(sums) + sum) / (float)d;
    for (i = 0; i + LANES <= d; i += LANES)
      for (int j = 0; j < REGS; j++) {
        reg v = reg_in(src, i + j * WIDE, 0) - mean;
        acc[j] = reg_fma(v, v, acc[j]);
      }
    for (; i < d; i++) rest += (src[i] - mean) * (src[i] - mean);
  }
  float s = *scale = 1.0f / sqrtf((regs_sum(acc) + rest) / (float)d + eps);
  for (i = 0; i + WIDE <= d; i += WIDE) {
    reg v = reg_in(src, i, 0);
    if (center) v -= mean;
    v = v * s * reg_in(w, i, 0);
    if (shift) v += reg_in(shift, i, 0);
    if (post) reg_out(tr, i, v, 0);
    reg_out(y, at + i, v, y_bf);
  }
  for (; i < d; i++) {
    float v = (center ? src[i] - mean : src[i]) * s * w[i] + (shift ? shift[i] : 0);
    if (post) tr[i] = v;
    one_out(y, at + i, v, y_bf);
  }
}
