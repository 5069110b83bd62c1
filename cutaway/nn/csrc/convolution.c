// Taps of a convolution laid side by side for one matrix product, and their gradient added up again.
#include "vectors.h"

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
