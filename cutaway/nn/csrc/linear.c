// A product with a weight that was laid out once: for reading, where a library would lay it out again at every call.
// What follows a product (a bias, an activation, a gate) is done while its sums are in registers' reach. A row's output
// does not depend on the rows beside it.
//
// bfloat16 on AVX512-BF16 only (with AMX the library is faster). int8 as int8.h says: weights have a scale an output,
// inputs one for each GROUP of a row, found when it is read, so that one large number takes the precision of its group
// and not of the row (as llama.cpp's Q8_0); sums of a group are exact.
#include "linear.h"
#include "activation.h"
#include "int4.h"
#include "product.h"

#define TOGETHER 96     // rows that pass by a panel while it lies in the nearest cache
// whether a layout is worth its while on this processor: 1 for bfloat16, 2 for int8, 4 for float32, 8 for int4, or their sum
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
#ifdef INT4
  packs |= 8;
#endif
  return packs | 4;
}

// the row of w whose weights are the n-th of panel p, -1 behind the last; `gated`: 16 gates, then what they let through
INLINE int64_t row_of(int64_t N, int gated, int64_t p, int64_t n) {
  if (gated) return n < PANEL / 2 ? p * (PANEL / 2) + n : N / 2 + p * (PANEL / 2) + n - PANEL / 2;
  return p * PANEL + n < N ? p * PANEL + n : -1;
}
#define PANELS(N) ((N + PANEL - 1) / PANEL)

// w (N, K) bfloat16 -> panels (up to PANEL, K / 2, PANEL), zeros behind the last output
void linear_pack(const uint16_t *w, int64_t N, int64_t K, int gated, uint32_t *out) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < PANELS(N); p++)
    for (int64_t n = 0; n < PANEL; n++) {
      int64_t row = row_of(N, gated, p, n);
      for (int64_t k = 0; k < K / 2; k++) {
        pair both = 0;
        if (row >= 0) memcpy(&both, w + row * K + 2 * k, 4);
        out[(p * (K / 2) + k) * PANEL + n] = both;
      }
    }
}

// w (N, K) float32 -> panels (up to PANEL, K, PANEL), zeros behind the last output
void linear_pack_float(const float *w, int64_t N, int64_t K, int gated, float *out) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < PANELS(N); p++)
    for (int64_t from = 0; from < K; from += LANES)  // some lines of each row at a time, for what is written lies apart
      for (int64_t n = 0; n < PANEL; n++) {
        int64_t row = row_of(N, gated, p, n), end = from + LANES < K ? from + LANES : K;
        for (int64_t k = from; k < end; k++) out[(p * K + k) * PANEL + n] = row < 0 ? 0 : w[row * K + k];
      }
}

// w (N, K) float32 -> panels (up to PANEL, up4(K), PANEL) of fours of int8, a scale an output, and sums
void linear_pack_int8(const float *w, int64_t N, int64_t K, int gated, int8_t *out, float *scales, int32_t *sums) {
  int64_t fours = (K + 3) / 4, groups = (K + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < PANELS(N); p++)
    for (int64_t n = 0; n < PANEL; n++) {
      int64_t row = row_of(N, gated, p, n);
      float most = 0, strange = 0;  // becomes NaN by one that is no number
      if (row >= 0)
        for (int64_t k = 0; k < K; k++) {
          most = fmaxf(most, fabsf(w[row * K + k]));
          strange += w[row * K + k] * 0.0f;
        }
      float inverse = most > 0 ? 127.0f / most : 0;
      for (int64_t g = 0; g < groups; g++) sums[(p * groups + g) * PANEL + n] = 0;
      for (int64_t k = 0; k < 4 * fours; k++) {
        int8_t q = row >= 0 && k < K && strange == 0 ? (int8_t)lrintf(w[row * K + k] * inverse) : 0;
        out[((p * fours + k / 4) * PANEL + n) * 4 + k % 4] = q;
        sums[(p * groups + k / GROUP) * PANEL + n] += missing(q);
      }
      scales[p * PANEL + n] = most / 127.0f + strange;
    }
}

// w (N, K) float32, K a multiple of BLOCK -> panels (up to PANEL, K / BLOCK, BLOCK_BYTES)
void linear_pack_int4(const float *w, int64_t N, int64_t K, int gated, uint8_t *out) {
#ifdef INT4
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < PANELS(N); p++)
    for (int64_t g = 0; g < K / BLOCK; g++) {
      uint8_t *to = out + (p * (K / BLOCK) + g) * BLOCK_BYTES;
      memset(to, 0, BLOCK_BYTES);
      for (int64_t n = 0; n < PANEL; n++) {
        uint8_t q[BLOCK];
        uint16_t *d = (uint16_t *)(to + PANEL * 16) + n;
        int64_t row = row_of(N, gated, p, n);
        if (row < 0) continue;
        block_in(w + row * K + g * BLOCK, q, d, d + PANEL);
        for (int i = 0; i < BLOCK; i++) to[i / 8 * PANEL * 4 + n * 4 + i % 4] |= (uint8_t)(q[i] << (i % 8 / 4 * 4));
      }
    }
#endif
}

// w (N, K / BLOCK, each) as GGUF's Q4_1 has them: d, m, and bytes that hold inputs j and j + 16; or as its Q4_0, where m is
// -8 d -> panels, as above: the same numbers, none is rounded
void linear_pack_blocks(const uint8_t *w, int64_t N, int64_t K, int64_t each, int gated, uint8_t *out) {
#ifdef INT4
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < PANELS(N); p++)
    for (int64_t n = 0; n < PANEL; n++) {
      int64_t row = row_of(N, gated, p, n);
      for (int64_t g = 0; g < K / BLOCK; g++) {
        uint8_t *to = out + (p * (K / BLOCK) + g) * BLOCK_BYTES;
        block_of(row < 0 ? NULL : w + (row * (K / BLOCK) + g) * each, each == 18, to, n);
      }
    }
#endif
}

// what becomes of PANEL sums of a row: outputs from n on, written from `at` on
INLINE void put(const Plan *plan, const float *sums, int64_t n, void *out, int64_t at, int out_bf, int add, int kind) {
  const int regs = PANEL / WIDE, passes = plan->gated ? regs / 2 : regs;
  reg slope, v[PANEL / WIDE];
  for (int j = 0; j < regs; j++) {
    v[j] = *(const reg *)(sums + j * WIDE);
    if (plan->bias) v[j] += *(const reg *)(plan->bias + n + j * WIDE);
  }
  for (int j = 0; j < passes && kind != NOTHING; j++)
    v[j] = kind == RELU ? reg_max((reg){}, v[j]) : activation(v[j], &slope, kind, out_bf);
  if (plan->gated) {
    for (int j = 0; j < regs / 2; j++) reg_out(out, at + j * WIDE, v[j] * v[j + regs / 2], out_bf);
    return;
  }
  int64_t width = plan->N - n < PANEL ? plan->N - n : PANEL;
  for (int j = 0; j < regs; j++, width -= WIDE, at += WIDE) {
    if (width >= WIDE) reg_out(out, at, add ? v[j] + reg_in(out, at, 0) : v[j], out_bf);
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
        if (m == 0) \
          for (int j = 0; j < V * WIDE / 16; j++) \
            __builtin_prefetch((const char *)(B + k * PANEL + at) + AHEAD + 64 * j); \
        reg b[V]; \
        for (int j = 0; j < V; j++) b[j] = *(const reg *)(B + k * PANEL + at + j * WIDE); \
        for (int i = 0; i < R; i++) \
          for (int j = 0; j < V; j++) acc[i][j] = reg_fma(reg_all(A[(m + i) * lda + k]), b[j], acc[i][j]); \
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
int64_t linear_scales(int64_t K, int64_t M) { return M * ((K + GROUP - 1) / GROUP + 2 * (K / BLOCK)); }
// row m of M of x as bytes with its scales; those of int4 as product_int4 has them
static void bytes_in(const Plan *plan, const void *x, int x_bf, int64_t m, int64_t M, uint8_t *bytes, float *scales) {
  int64_t K = plan->K, lda = (K + 3) / 4 * 4, groups = (K + GROUP - 1) / GROUP;
  if (plan->precision != INT4_BLOCKS) {
    to_bytes(x, x_bf, m * K, K, lda, ZERO, bytes + m * lda, scales + m * groups);
    return;
  }
#ifdef INT4
  float own[groups];
  to_bytes(x, x_bf, m * K, K, lda, 0, bytes + m * lda, own);
  for (int64_t g = 0; g < K / BLOCK; g++) {
    float scale = own[g * BLOCK / GROUP], *to = scales + 2 * (g * M + m);
    to[0] = scale, to[1] = scale * (float)block_sum(bytes + m * lda + g * BLOCK);
  }
#endif
}

// the same, and what the row's adapter makes of it
static void read_in(const Plan *plan, const void *x, int x_bf, int64_t m, int64_t M, uint8_t *bytes, float *scales,
                    const int32_t *which, float *inner) {
  if (in_bytes(plan)) bytes_in(plan, x, x_bf, m, M, bytes, scales);
  const Beside *by = beside_of(plan->beside, which, m);
  if (by) beside_inner(by, x, x_bf, m * plan->K, plan->K, inner + m * plan->rank);
}

// a panel by `rows` of the M rows, from m on
static void panel_by(const Plan *plan, const void *x, int64_t M, int64_t m, int64_t rows, int64_t n, const uint8_t *bytes,
                     const float *scales, const int32_t *which, const float *inner, void *out, int out_bf, int add) {
  float sums[TILE_ROWS * PANEL] __attribute__((aligned(64)));
  int64_t K = plan->K, lda = (K + 3) / 4 * 4, groups = (K + GROUP - 1) / GROUP, p = n / PANEL;
  int64_t chunk = plan->precision == BFLOAT16 ? TILE_ROWS : ROWS_AT_ONCE;
  for (int64_t end = m + rows; m < end; m += chunk) {
    rows = end - m < chunk ? end - m : chunk;
    if (plan->precision == INT8_GROUPS)
      product_int8(rows, K, bytes + m * lda, lda, scales + m * groups,
                   (const int32_t *)plan->panels + p * (lda / 4) * PANEL, plan->scales + n, plan->sums + p * groups * PANEL,
                   sums);
#ifdef INT4
    else if (plan->precision == INT4_BLOCKS)
      product_int4(rows, M, K, bytes + m * K, scales + 2 * m,
                   (const uint8_t *)plan->panels + p * (K / BLOCK) * BLOCK_BYTES, sums);
#endif
    else if (plan->precision == FLOAT32)
      product_float(rows, K, (const float *)x + m * K, K, (const float *)plan->panels + p * K * PANEL, sums);
    else
      product(rows, PANEL, K / 2, (const uint16_t *)x + m * K, K, (const pair *)plan->panels + p * (K / 2) * PANEL, PANEL,
              sums, PANEL, 0);
    for (int64_t r = m; which && r < m + rows; r++) {
      const Beside *by = beside_of(plan->beside, which, r);
      if (by) beside_added(by, inner + r * plan->rank, p, sums + (r - m) * PANEL);
    }
    put_rows(plan, sums, rows, n, out, m, out_bf, add);
  }
}

void linear_shared(const Plan *plan, const void *x, int x_bf, int64_t M, void *out, int out_bf, int add,
                   const Room *room) {
  int64_t columns = (plan->N + PANEL - 1) / PANEL, blocks = (M + TOGETHER - 1) / TOGETHER;
  int64_t share = 1 + columns * blocks / 32;  // a thread that is held up does less
  int alone = M <= ALONE;
  uint8_t *bytes = alone ? room->own : room->bytes;
  float *scales = alone ? room->own_scales : room->scales, *inner = alone ? room->own_inner : room->inner;
  const int32_t *which = plan->rank ? room->which : NULL;
  if ((in_bytes(plan) || which) && alone) {
    for (int64_t m = 0; m < M; m++) read_in(plan, x, x_bf, m, M, bytes, scales, which, inner);
  } else if (in_bytes(plan) || which) {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; m++) read_in(plan, x, x_bf, m, M, bytes, scales, which, inner);
  }
  if (alone) {  // each thread reads its weights from end to end
#pragma omp for schedule(static)
    for (int64_t p = 0; p < columns; p++) panel_by(plan, x, M, 0, M, p * PANEL, bytes, scales, which, inner, out, out_bf, add);
    return;
  }
#pragma omp for schedule(dynamic, share)
  for (int64_t at = 0; at < columns * blocks; at++) {
    int64_t begin = at / columns * TOGETHER, rows = M - begin < TOGETHER ? M - begin : TOGETHER;
    panel_by(plan, x, M, begin, rows, at % columns * PANEL, bytes, scales, which, inner, out, out_bf, add);
  }
}

// the same as a region of its own; `which` as Room has it
void linear(const Plan *plan, const void *x, int x_bf, int64_t M, void *out, int out_bf, const int32_t *which) {
  int whole = in_bytes(plan);
  Room room = {.which = which};
  size_t inner = which ? (size_t)(M * plan->rank) * 4 : 0;
  if (inner) room.inner = scratch(inner);
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
    if (inner && M <= ALONE) mine.own_inner = scratch(inner);
    linear_shared(plan, x, x_bf, M, out, out_bf, 0, &mine);
    free(mine.own);
    free(mine.own_scales);
    free(mine.own_inner);
  }
  free(room.bytes);
  free(room.scales);
  free(room.inner);
}
