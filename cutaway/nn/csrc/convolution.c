// Taps of a convolution laid side by side for one matrix product, and their gradient added up again.
#include "vectors.h"

// whether token s of a row of documents may be read for token t; documents may be NULL
static inline int reads(const int32_t *documents, int64_t steps, int64_t t, int64_t s) {
  return s >= 0 && s < steps && (!documents || documents[s] == documents[t]);
}

// x (rows, steps, width) -> out (rows, steps, count, width): what stands offsets[j] away, else 0; sizes in bytes
void taps(const char *x, const int32_t *documents, const int64_t *offsets, int64_t rows, int64_t steps, int64_t count,
          int64_t bytes, char *out) {
#pragma omp parallel for schedule(static)
  for (int64_t at = 0; at < rows * steps; at++) {
    int64_t t = at % steps;
    const int32_t *own = documents ? documents + (at - t) : NULL;
    char *to = out + at * count * bytes;
    for (int64_t j = 0; j < count; j++, to += bytes) {
      if (reads(own, steps, t, t + offsets[j]))
        memcpy(to, x + (at + offsets[j]) * bytes, (size_t)bytes);
      else
        memset(to, 0, (size_t)bytes);
    }
  }
}

// the sum over taps in float32, in their order, rounded once
void taps_grad(const void *grad, const int32_t *documents, const int64_t *offsets, int64_t rows, int64_t steps,
               int64_t count, int64_t width, void *out, int bf) {
#pragma omp parallel
  {
    int64_t *from = scratch((size_t)(count + 1) * sizeof(int64_t));
#pragma omp for schedule(static)
    for (int64_t at = 0; at < rows * steps; at++) {
      int64_t t = at % steps, found = 0, i = 0;
      const int32_t *own = documents ? documents + (at - t) : NULL;
      for (int64_t j = 0; j < count; j++)
        if (reads(own, steps, t, t - offsets[j])) from[found++] = ((at - offsets[j]) * count + j) * width;
      for (; i + LANES <= width; i += LANES) {
        vec sum = {};
        for (int64_t j = 0; j < found; j++) sum += vec_in(grad, from[j] + i, bf);
        vec_out(out, at * width + i, sum, bf);
      }
      for (; i < width; i++) {
        float sum = 0;
        for (int64_t j = 0; j < found; j++) sum += one_in(grad, from[j] + i, bf);
        one_out(out, at * width + i, sum, bf);
      }
    }
    free(from);
  }
}

// ---------------------------------------------------------------- filters and their largest answers
// y (rows, steps, count) -> the largest of each filter over a row's real tokens and where it stood; NaN stays
void filters_max(const void *y, const int32_t *documents, int64_t rows, int64_t steps, int64_t count, float *top,
                 int32_t *where, int bf) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    float *most = top + r * count;
    int32_t *at = where + r * count;
    for (int64_t i = 0; i < count; i++) most[i] = -INFINITY, at[i] = 0;
    for (int64_t t = 0; t < steps; t++) {
      if (documents && documents[r * steps + t] < 0) continue;
      int64_t from = (r * steps + t) * count, i = 0;
      for (; i + LANES <= count; i += LANES) {
        vec v = vec_in(y, from + i, bf), m = *(vec *)(most + i);
        ivec above = ~(v <= m) & (m == m), old = *(ivec *)(at + i);
        *(vec *)(most + i) = (vec)(((ivec)v & above) | ((ivec)m & ~above));
        *(ivec *)(at + i) = (((ivec){} + (int32_t)t) & above) | (old & ~above);
      }
      for (; i < count; i++) {
        float v = one_in(y, from + i, bf);
        if (!(v <= most[i]) && most[i] == most[i]) most[i] = v, at[i] = (int32_t)t;
      }
    }
  }
}

INLINE void add_scaled(float *to, float by, const void *from, int64_t at, int64_t n, int bf) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) *(vec *)(to + i) += by * vec_in(from, at + i, bf);
  for (; i < n; i++) to[i] += by * one_in(from, at + i, bf);
}

// The gradients of `own` filters of one width, of which the first is number `first` of `count`, whose windows begin `low`
// from their token. Only the window of the largest answer learns, so a row has one window a filter and not one a token.
// x (rows, steps, size) in either dtype, w and gw (own, width, size), gx (rows, steps, size), slope (rows, count).
void filters_grad(const void *x, int bf, const float *w, const int32_t *documents, const int32_t *where,
                  const float *slope, int64_t rows, int64_t steps, int64_t size, int64_t count, int64_t first,
                  int64_t own, int64_t low, int64_t width, float *gx, float *gw) {
#pragma omp parallel for schedule(static)
  for (int64_t f = 0; f < own; f++)
    for (int64_t r = 0; r < rows; r++) {
      float by = slope[r * count + first + f];
      int64_t t = where[r * count + first + f];
      if (by == 0) continue;
      for (int64_t j = 0; j < width; j++)
        if (reads(documents ? documents + r * steps : NULL, steps, t, t + low + j))
          add_scaled(gw + (f * width + j) * size, by, x, (r * steps + t + low + j) * size, size, bf);
    }
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t f = 0; f < own; f++) {
      float by = slope[r * count + first + f];
      int64_t t = where[r * count + first + f];
      if (by == 0) continue;
      for (int64_t j = 0; j < width; j++)
        if (reads(documents ? documents + r * steps : NULL, steps, t, t + low + j))
          add_scaled(gx + (r * steps + t + low + j) * size, by, w, (f * width + j) * size, size, 0);
    }
}
