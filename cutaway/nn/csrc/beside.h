// What adapters add to a product, to each row that of its own: up (down x), in float32 (LoRA: Hu 2021, arXiv 2106.09685).
// A row's numbers do not depend on the adapters of the rows beside it.
#pragma once
#include "vectors.h"

typedef struct {
  int64_t rank;          // 0: it adds nothing here
  const void *down;      // (rank, K)
  const void *up;        // panel by panel (its ranks, 2 LANES): a part of a product has ranks of its own, and only those
  const int32_t *first;  // (2 panels) the first of the ranks that each LANES outputs of a panel have
  const int32_t *at;     // (panels + 1) where the ranks of a panel begin in `up`
  int bf;                // whether down and up are bfloat16
} Beside;

// what the adapter of row m adds, of all that there are; NULL: nothing
INLINE const Beside *beside_of(const Beside *all, const int32_t *which, int64_t m) {
  return which && which[m] >= 0 && all[which[m]].rank ? all + which[m] : NULL;
}

// R ranks at once, for a single chain of sums would wait for itself; the bits of each do not depend on R
#define RANKS(R) { \
    reg sum[R] = {}; \
    int64_t k = 0; \
    for (; k + WIDE <= K; k += WIDE) { \
      reg v = reg_in(x, at + k, x_bf); \
      for (int i = 0; i < R; i++) sum[i] = reg_fma(v, reg_in(by->down, (r + i) * K + k, by->bf), sum[i]); \
    } \
    for (int i = 0; i < R; i++) { \
      float all = reg_sum(sum[i]); \
      for (int64_t j = k; j < K; j++) all = fmaf(one_in(x, at + j, x_bf), one_in(by->down, (r + i) * K + j, by->bf), all); \
      inner[r + i] = all; \
    } \
    r += R; \
  }
// down x of the row of x that begins at `at`
static ONCE void beside_inner(const Beside *by, const void *x, int x_bf, int64_t at, int64_t K, float *inner) {
  int64_t r = 0;
  while (r + 4 <= by->rank) RANKS(4)
  while (r < by->rank) RANKS(1)
}
#undef RANKS

// panel p of up inner, added to a row's sums of it
static ONCE void beside_added(const Beside *by, const float *inner, int64_t p, float *sums) {
  const float *low = inner + by->first[2 * p], *high = inner + by->first[2 * p + 1];
  reg v[2 * LANES / WIDE];
  for (int i = 0; i < 2 * LANES / WIDE; i++) v[i] = *(reg *)(sums + i * WIDE);
  for (int64_t j = 0; j < by->at[p + 1] - by->at[p]; j++)
    for (int i = 0; i < 2 * LANES / WIDE; i++)
      v[i] = reg_fma(reg_all(i < LANES / WIDE ? low[j] : high[j]),
                     reg_in(by->up, (by->at[p] + j) * 2 * LANES + i * WIDE, by->bf), v[i]);
  for (int i = 0; i < 2 * LANES / WIDE; i++) *(reg *)(sums + i * WIDE) = v[i];
}
