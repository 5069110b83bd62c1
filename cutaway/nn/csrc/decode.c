// One token a row against its cache: the step of generation.
#include "attention.h"

// ---------------------------------------------------------------- one token a row against its cache
// Turns the new key and query by their angle, appends key and value at the row's length, and attends over all of them.
// caches are (B, G, capacity, D); qkv (B, (H + 2 G) D); S.T is the capacity, S.cosines and sines the whole table.
void attention_step(const Shape *shape, const void *qkv, void *keys, void *values, const int64_t *lengths, void *out) {
  const Shape S = *shape;
  int64_t wide = (S.H + 2 * S.G) * S.D, group = S.H / S.G, esize = S.bf ? 2 : 4, half = S.D / 2, ld = up16(S.D);
#pragma omp parallel
  {
    float *room = scratch((size_t)(up16(S.T) + 3 * ld) * 4);
    float *p = room, *q = room + up16(S.T), *k = q + ld, *o = k + ld;
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, n = lengths[b] + 1;
      const char *row = (const char *)qkv + b * wide * esize;
      const float *cs = S.cosines + lengths[b] * half, *sn = S.sines + lengths[b] * half;
      char *kc = (char *)keys + bg * S.T * S.D * esize, *vc = (char *)values + bg * S.T * S.D * esize;
      rotary_in(row + (S.H + g) * S.D * esize, wide, 1, S.D, ld, cs, sn, 1, k, S.bf, 0);
      for (int64_t i = 0; i < S.D; i++) one_out(kc, lengths[b] * S.D + i, k[i], S.bf);
      memcpy(vc + lengths[b] * S.D * esize, row + (S.H + S.G + g) * S.D * esize, (size_t)(S.D * esize));
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in(row + h * S.D * esize, wide, 1, S.D, ld, cs, sn, S.scale, q, S.bf, 0);
        float most = -INFINITY;
        for (int64_t j = 0; j < n; j++) {
          vec acc = {};
          float dot = 0;
          int64_t i = 0;
          for (; i + LANES <= S.D; i += LANES) acc += *(vec *)(q + i) * vec_in(kc, j * S.D + i, S.bf);
          for (; i < S.D; i++) dot += q[i] * one_in(kc, j * S.D + i, S.bf);
          p[j] = dot + vec_sum(acc);
          if (p[j] > most) most = p[j];
        }
        for (int64_t j = n; j < up16(n); j++) p[j] = -INFINITY;
        vec acc = {};
        for (int64_t j = 0; j < n; j += LANES) {
          vec e = vec_exp(*(vec *)(p + j) - most);
          *(vec *)(p + j) = e;
          acc += e;
        }
        float inverse = 1.0f / vec_sum(acc);
        memset(o, 0, (size_t)ld * 4);
        for (int64_t j = 0; j < n; j++) {
          int64_t i = 0;
          for (; i + LANES <= S.D; i += LANES) *(vec *)(o + i) += p[j] * vec_in(vc, j * S.D + i, S.bf);
          for (; i < S.D; i++) o[i] += p[j] * one_in(vc, j * S.D + i, S.bf);
        }
        for (int64_t i = 0; i < S.D; i++) one_out(out, (b * S.H + h) * S.D + i, o[i] * inverse, S.bf);
      }
    }
    free(room);
  }
}
