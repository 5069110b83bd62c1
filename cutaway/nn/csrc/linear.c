// A product with a weight that was laid out once: for reading, where a library would lay it out again at every call.
// What follows a product (a bias, an activation, a gate) is done while its sums are in registers' reach. A row's output
// does not depend on the rows beside it.
//
// bfloat16 on AVX512-BF16 only (with AMX the library is faster). int8 as int8.h says: weights have a scale an output,
// inputs one for each GROUP of a row, found when it is read, so that one large number takes the precision of its group
// and not of the row (as llama.cpp's Q8_0); sums of a group are exact.
#include "linear.h"
#include "activation.h"
#include "int8.h"
#include "product.h"

#define TOGETHER 96     // rows that pass by a panel while it lies in the nearest cache
// whether a layout is worth its while on this processor: 1 for bfloat16, 2 for int8, 4 for float32, or their sum
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
  return packs | 4;
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

// w (N, K) float32 -> panels (up to PANEL, K, PANEL), zeros behind the last output
void linear_pack_float(const float *w, int64_t N, int64_t K, float *out) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < (N + PANEL - 1) / PANEL; p++)
    for (int64_t k = 0; k < K; k++)
      for (int64_t n = 0; n < PANEL; n++) out[(p * K + k) * PANEL + n] = p * PANEL + n < N ? w[(p * PANEL + n) * K + k] : 0;
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
INLINE void put(const Plan *plan, float *sums, int64_t n, void *out, int64_t at, int out_bf, int add, int kind) {
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
    if (width >= LANES) vec_out(out, at, add ? v[j] + vec_in(out, at, 0) : v[j], out_bf);
    else
      for (int64_t i = 0; i < width; i++) one_out(out, at + i, add ? v[j][i] + one_in(out, at + i, 0) : v[j][i], out_bf);
  }
}
static void put_rows(const Plan *plan, float *sums, int64_t rows, int64_t n, void *out, int64_t m, int out_bf,
                     int add) {
  int64_t wide = plan->gated ? plan->N / 2 : plan->N, from = plan->gated ? n / 2 : n;
  for (int64_t r = 0; r < rows; r++) {
    float *of = sums + r * PANEL;
    int64_t at = (m + r) * wide + from;
    if (plan->kind == NOTHING) put(plan, of, n, out, at, out_bf, add, NOTHING);
    else if (plan->kind == SILU) put(plan, of, n, out, at, out_bf, add, SILU);
    else if (plan->kind == GELU) put(plan, of, n, out, at, out_bf, add, GELU);
    else if (plan->kind == GELU_TANH) put(plan, of, n, out, at, out_bf, add, GELU_TANH);
    else put(plan, of, n, out, at, out_bf, add, RELU);
  }
}

// R rows of float32 by V registers of a panel, each sum a chain over k: its bits do not depend on R
#define ROWS(R, V) { \
    for (int64_t at = 0; at < PANEL; at += V * WIDE) { \
      reg acc[R][V] = {}; \
      for (int64_t k = 0; k < K; k++) { \
        reg b[V]; \
        for (int j = 0; j < V; j++) b[j] = *(const reg *)(B + k * PANEL + at + j * WIDE); \
        for (int i = 0; i < R; i++) \
          for (int j = 0; j < V; j++) acc[i][j] = reg_fma((reg){} + A[(m + i) * lda + k], b[j], acc[i][j]); \
      } \
      for (int i = 0; i < R; i++) \
        for (int j = 0; j < V; j++) *(reg *)(C + (m + i) * PANEL + at + j * WIDE) = acc[i][j]; \
    } \
    m += R; \
  }
static void product_float(int64_t M, int64_t K, const float *A, int64_t lda, const float *B, float *C) {
  int64_t m = 0;
#ifdef __AVX512F__
  while (m + 12 <= M) ROWS(12, 2)
#endif
  while (m + 6 <= M) ROWS(6, 2)
  while (m + 3 <= M) ROWS(3, 2)
  while (m < M) ROWS(1, PANEL / WIDE)
}
#undef ROWS

int64_t linear_bytes(int64_t K, int64_t M) { return M * ((K + 3) / 4 * 4); }
int64_t linear_scales(int64_t K, int64_t M) { return M * ((K + GROUP - 1) / GROUP); }

// a panel by `rows` rows from m on
static void panel_by(const Plan *plan, const void *x, int64_t m, int64_t rows, int64_t n, const uint8_t *bytes,
                     const float *scales, void *out, int out_bf, int add) {
  float sums[TILE_ROWS * PANEL] __attribute__((aligned(64)));
  int64_t K = plan->K, lda = (K + 3) / 4 * 4, groups = (K + GROUP - 1) / GROUP, p = n / PANEL;
  int64_t chunk = plan->precision == BFLOAT16 ? TILE_ROWS : ROWS_AT_ONCE;
  for (int64_t end = m + rows; m < end; m += chunk) {
    rows = end - m < chunk ? end - m : chunk;
    if (plan->precision == INT8_GROUPS)
      product_int8(rows, K, bytes + m * lda, lda, scales + m * groups,
                   (const int32_t *)plan->panels + p * (lda / 4) * PANEL, plan->scales + n, plan->sums + p * groups * PANEL,
                   sums);
    else if (plan->precision == FLOAT32)
      product_float(rows, K, (const float *)x + m * K, K, (const float *)plan->panels + p * K * PANEL, sums);
    else
      product(rows, PANEL, K / 2, (const uint16_t *)x + m * K, K, (const pair *)plan->panels + p * (K / 2) * PANEL, PANEL,
              sums, PANEL, 0);
    put_rows(plan, sums, rows, n, out, m, out_bf, add);
  }
}

void linear_shared(const Plan *plan, const void *x, int x_bf, int64_t M, void *out, int out_bf, int add,
                   const Room *room) {
  int64_t columns = (plan->N + PANEL - 1) / PANEL, blocks = (M + TOGETHER - 1) / TOGETHER;
  int64_t share = 1 + columns * blocks / 32;  // a thread that is held up does less
  int64_t K = plan->K, lda = (K + 3) / 4 * 4, groups = (K + GROUP - 1) / GROUP;
  uint8_t *bytes = room->bytes;
  float *scales = room->scales;
  if (plan->precision == INT8_GROUPS && M <= ALONE) {
    bytes = room->own, scales = room->own_scales;
    for (int64_t m = 0; m < M; m++) to_bytes(x, x_bf, m * K, K, lda, bytes + m * lda, scales + m * groups);
  } else if (plan->precision == INT8_GROUPS) {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) to_bytes(x, x_bf, m * K, K, lda, bytes + m * lda, scales + m * groups);
  }
  if (M <= ALONE) {  // each thread reads its weights from end to end
#pragma omp for schedule(static)
    for (int64_t p = 0; p < columns; p++) panel_by(plan, x, 0, M, p * PANEL, bytes, scales, out, out_bf, add);
    return;
  }
#pragma omp for schedule(dynamic, share)
  for (int64_t at = 0; at < columns * blocks; at++) {
    int64_t begin = at / columns * TOGETHER, rows = M - begin < TOGETHER ? M - begin : TOGETHER;
    panel_by(plan, x, begin, rows, at % columns * PANEL, bytes, scales, out, out_bf, add);
  }
}

// the same as a region of its own
void linear(const Plan *plan, const void *x, int x_bf, int64_t M, void *out, int out_bf) {
  int whole = plan->precision == INT8_GROUPS;
  Room room = {0};
  if (whole) {
    room.bytes = scratch((size_t)linear_bytes(plan->K, M));
    room.scales = scratch((size_t)linear_scales(plan->K, M) * 4);
  }
#pragma omp parallel if (M * plan->N * plan->K > 1 << 15)
  {
    Room mine = room;
    if (whole && M <= ALONE) {
      mine.own = scratch((size_t)linear_bytes(plan->K, M));
      mine.own_scales = scratch((size_t)linear_scales(plan->K, M) * 4);
    }
    linear_shared(plan, x, x_bf, M, out, out_bf, 0, &mine);
    free(mine.own);
    free(mine.own_scales);
  }
  free(room.bytes);
  free(room.scales);
}
