// A product with a weight that was laid out once: for reading, where a library would lay it out again at every call.
// What follows a product (a bias, an activation, a gate) is done while its sums are in registers' reach. A row's output
// does not depend on the rows beside it.
//
// bfloat16 on AVX512-BF16 only (with AMX the library is faster). int8 as int8.h says: weights have a scale an output,
// inputs one for each GROUP of a row, found when it is read, so that one large number takes the precision of its group
// and not of the row (as llama.cpp's Q8_0); sums of a group are exact.
#include "activation.h"
#include "int8.h"
#include "product.h"

#define TOGETHER 96     // rows that pass by a panel while it lies in the nearest cache
enum { NOTHING = -1, RELU = 3 };  // beside activation.h's

typedef struct {
  int64_t K, N;          // a row is K numbers; N outputs, of which a gate makes N / 2
  const void *panels;
  const float *scales;   // (N, filled up to PANEL) of int8 weights; NULL: they are bfloat16
  const int32_t *sums;   // (panels, groups, PANEL) of the int8 weights that a group of inputs meets, times -ZERO
  const float *bias;     // (N, filled up) or NULL
  int kind, gated;       // gated: a panel holds 16 gates, then what they let through
} Plan;

// whether a layout is worth its while on this processor: 1 for bfloat16, 2 for int8, 3 for both
int linear_packs(void) {
  int packs = 0;
#if defined(AMX)
  packs |= !amx;
#elif defined(__AVX512BF16__)
  packs |= 1;
#endif
#ifdef INT8
  packs |= 2;
#endif
  return packs;
}

// w (N, K) bfloat16 -> panels (up to PANEL, K / 2, PANEL), zeros behind the last output
void linear_pack(const uint16_t *w, int64_t N, int64_t K, uint32_t *out) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < (N + PANEL - 1) / PANEL; p++)
    for (int64_t k = 0; k < K / 2; k++)
      for (int64_t n = 0; n < PANEL; n++) {
        pair both = 0;
        if (p * PANEL + n < N) memcpy(&both, w + (p * PANEL + n) * K + 2 * k, 4);
        out[(p * (K / 2) + k) * PANEL + n] = both;
      }
}

// w (N, K) float32 -> panels (up to PANEL, up4(K), PANEL) of fours of int8, a scale an output, and sums
void linear_pack_int8(const float *w, int64_t N, int64_t K, int8_t *out, float *scales, int32_t *sums) {
  int64_t fours = (K + 3) / 4, groups = (K + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < (N + PANEL - 1) / PANEL; p++)
    for (int64_t n = 0; n < PANEL; n++) {
      int64_t row = p * PANEL + n;
      float most = 0, strange = 0;  // becomes NaN by one that is no number
      if (row < N)
        for (int64_t k = 0; k < K; k++) {
          most = fmaxf(most, fabsf(w[row * K + k]));
          strange += w[row * K + k] * 0.0f;
        }
      float inverse = most > 0 ? 127.0f / most : 0;
      for (int64_t g = 0; g < groups; g++) sums[(p * groups + g) * PANEL + n] = 0;
      for (int64_t k = 0; k < 4 * fours; k++) {
        int8_t q = row < N && k < K && strange == 0 ? (int8_t)lrintf(w[row * K + k] * inverse) : 0;
        out[((p * fours + k / 4) * PANEL + n) * 4 + k % 4] = q;
        sums[(p * groups + k / GROUP) * PANEL + n] -= ZERO * q;
      }
      scales[row] = most / 127.0f + strange;
    }
}

// what becomes of PANEL sums of a row: outputs from n on, written from `at` on
INLINE void put(const Plan *plan, float *sums, int64_t n, void *out, int64_t at, int out_bf, int kind) {
  vec slope, v[2];
  for (int j = 0; j < 2; j++) {
    v[j] = *(vec *)(sums + j * LANES);
    if (plan->bias) v[j] += *(const vec *)(plan->bias + n + j * LANES);
  }
  int64_t width = plan->N - n < PANEL ? plan->N - n : PANEL;
  if (kind == RELU) v[0] = vec_max(v[0], (vec){}), v[1] = vec_max(v[1], (vec){});
  else if (kind != NOTHING) {
    v[0] = activation(v[0], &slope, kind, out_bf);
    if (!plan->gated) v[1] = activation(v[1], &slope, kind, out_bf);
  }
  if (plan->gated) {
    vec_out(out, at, v[0] * v[1], out_bf);
    return;
  }
  for (int j = 0; j < 2; j++, width -= LANES, at += LANES) {
    if (width >= LANES) vec_out(out, at, v[j], out_bf);
    else
      for (int64_t i = 0; i < width; i++) one_out(out, at + i, v[j][i], out_bf);
  }
}
static void put_rows(const Plan *plan, float *sums, int64_t rows, int64_t n, void *out, int64_t m, int out_bf) {
  int64_t wide = plan->gated ? plan->N / 2 : plan->N, from = plan->gated ? n / 2 : n;
  for (int64_t r = 0; r < rows; r++) {
    float *of = sums + r * PANEL;
    int64_t at = (m + r) * wide + from;
    if (plan->kind == NOTHING) put(plan, of, n, out, at, out_bf, NOTHING);
    else if (plan->kind == SILU) put(plan, of, n, out, at, out_bf, SILU);
    else if (plan->kind == GELU) put(plan, of, n, out, at, out_bf, GELU);
    else if (plan->kind == GELU_TANH) put(plan, of, n, out, at, out_bf, GELU_TANH);
    else put(plan, of, n, out, at, out_bf, RELU);
  }
}

// x (M, K) bfloat16 -> out (M, N), or (M, N / 2) behind a gate
void linear(const Plan *given, const uint16_t *x, int64_t M, void *out, int out_bf) {
  const Plan plan = *given;
  int64_t columns = (plan.N + PANEL - 1) / PANEL, blocks = (M + TOGETHER - 1) / TOGETHER, lda = (plan.K + 3) / 4 * 4;
  int64_t share = 1 + columns * blocks / 32;  // a thread that is held up does less
  int many = M * plan.N * plan.K > 1 << 15;
  int64_t groups = (plan.K + GROUP - 1) / GROUP, chunk = plan.scales ? ROWS_INT8 : TILE_ROWS;
  uint8_t *bytes = plan.scales ? scratch((size_t)(M * lda)) : NULL;
  float *scales = plan.scales ? scratch((size_t)(M * groups) * 4) : NULL;
#pragma omp parallel if (many)
  {
    if (plan.scales)
#pragma omp for schedule(static)
      for (int64_t m = 0; m < M; m++) to_bytes(x + m * plan.K, plan.K, lda, bytes + m * lda, scales + m * groups);
#pragma omp for schedule(dynamic, share)
    for (int64_t at = 0; at < columns * blocks; at++) {
      float sums[TILE_ROWS * PANEL] __attribute__((aligned(64)));
      int64_t n = at % columns * PANEL, last = at / columns * TOGETHER + TOGETHER;
      for (int64_t m = last - TOGETHER; m < M && m < last; m += chunk) {
        int64_t rows = M - m < chunk ? M - m : chunk;
        if (plan.scales)
          product_int8(rows, plan.K, bytes + m * lda, lda, scales + m * groups,
                       (const int32_t *)plan.panels + n / PANEL * (lda / 4) * PANEL, plan.scales + n,
                       plan.sums + n / PANEL * groups * PANEL, sums);
        else
          product(rows, PANEL, plan.K / 2, x + m * plan.K, plan.K,
                  (const pair *)plan.panels + n / PANEL * (plan.K / 2) * PANEL, PANEL, sums, PANEL, 0);
        put_rows(&plan, sums, rows, n, out, m, out_bf);
      }
    }
  }
  free(bytes);
  free(scales);
}
