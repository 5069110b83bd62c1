// A product with a weight that was laid out once: for reading, where a library would lay it out again at every call.
// What follows a product (a bias, an activation, a gate) is done while its sums are in registers' reach. A row's output
// does not depend on the rows beside it.
//
// bfloat16 on AVX512-BF16 only (with AMX the library is faster). int8 on AVX512-VNNI: weights have a scale an output,
// inputs one a row, found when it is read (Dettmers 2022, arXiv 2208.07339, without its outliers); sums are exact.
#include "activation.h"
#include "product.h"

#define PANEL 32        // outputs whose weights lie together: pair (or four) k of output n at k * PANEL + n
#define TOGETHER 64     // rows that pass by a panel while it lies in the nearest cache
#define ZERO 128        // what an int8 input is raised by, for a unit that multiplies unsigned by signed
enum { NOTHING = -1, RELU = 3 };  // beside activation.h's

typedef struct {
  int64_t K, N;          // a row is K numbers; N outputs, of which a gate makes N / 2
  const void *panels;
  const float *scales;   // (N) of int8 weights; NULL: they are bfloat16
  const int32_t *sums;   // (N) of an output's int8 weights
  const float *bias;     // (N) or NULL
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
#ifdef __AVX512VNNI__
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

// w (N, K) float32 -> panels (up to PANEL, up4(K), PANEL) of fours of int8, a scale and a sum an output
void linear_pack_int8(const float *w, int64_t N, int64_t K, int8_t *out, float *scales, int32_t *sums) {
  int64_t fours = (K + 3) / 4;
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < (N + PANEL - 1) / PANEL; p++)
    for (int64_t n = 0; n < PANEL; n++) {
      int64_t row = p * PANEL + n;
      float most = 0;
      int32_t sum = 0;
      if (row < N)
        for (int64_t k = 0; k < K; k++) most = fmaxf(most, fabsf(w[row * K + k]));
      float inverse = most > 0 ? 127.0f / most : 0;
      for (int64_t k = 0; k < 4 * fours; k++) {
        int8_t q = row < N && k < K ? (int8_t)lrintf(w[row * K + k] * inverse) : 0;
        out[((p * fours + k / 4) * PANEL + n) * 4 + k % 4] = q;
        sum += q;
      }
      if (row < N) scales[row] = most / 127.0f, sums[row] = sum;
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

// a row of bfloat16 as unsigned bytes around ZERO, filled up to `wide`; gives its scale
INLINE float to_bytes(const uint16_t *x, int64_t K, int64_t wide, uint8_t *out) {
  vec top = {}, none = {};
  float most = 0, strange = 0;  // becomes NaN by one that is no number
  int64_t i = 0;
  for (; i + LANES <= K; i += LANES) {
    vec v = vec_in(x, i, 1);
    none += v * 0.0f;
    top = vec_max(top, (vec)((ivec)v & 0x7fffffff));
  }
  for (; i < K; i++) {
    most = fmaxf(most, fabsf(one_in(x, i, 1)));
    strange += one_in(x, i, 1) * 0.0f;
  }
  most = fmaxf(most, vec_most(top));
  strange += vec_sum(none);
  float inverse = most > 0 ? 127.0f / most : 0;
#ifdef __AVX512F__
  for (i = 0; i + LANES <= K; i += LANES) {
    __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)(vec_in(x, i, 1) * inverse)), _mm512_set1_epi32(ZERO));
    _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtepi32_epi8(q));
  }
#else
  i = 0;
#endif
  for (; i < K; i++) out[i] = (uint8_t)(lrintf(one_in(x, i, 1) * inverse) + ZERO);
  for (; i < wide; i++) out[i] = ZERO;
  return most / 127.0f + strange;
}

// R rows of sums of a panel: exact whole numbers, then scaled
#ifdef __AVX512VNNI__
#define ROWS(R) { \
    __m512i acc[R][2]; \
    for (int i = 0; i < R; i++) acc[i][0] = acc[i][1] = _mm512_setzero_si512(); \
    for (int64_t k = 0; k < fours; k++) { \
      __m512i b0 = _mm512_loadu_si512(B + k * PANEL), b1 = _mm512_loadu_si512(B + k * PANEL + LANES); \
      for (int i = 0; i < R; i++) { \
        int32_t four; \
        memcpy(&four, A + (m + i) * lda + 4 * k, 4); \
        __m512i a = _mm512_set1_epi32(four); \
        acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], a, b0), acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], a, b1); \
      } \
    } \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) { \
        vec whole = __builtin_convertvector((ivec)acc[i][j] - raised[j], vec); \
        *(vec *)(C + (m + i) * PANEL + j * LANES) = whole * (scale[j] * row_scales[m + i]); \
      } \
  }
static void product_int8(const Plan *plan, int64_t n, int64_t M, const uint8_t *A, int64_t lda, const float *row_scales,
                         float *C) {
  int64_t fours = (plan->K + 3) / 4, m = 0;
  const int32_t *B = (const int32_t *)plan->panels + n / PANEL * fours * PANEL;
  float scales[PANEL] = {};
  int32_t sums[PANEL] = {};
  size_t width = (size_t)(plan->N - n < PANEL ? plan->N - n : PANEL);
  memcpy(scales, plan->scales + n, width * 4);
  memcpy(sums, plan->sums + n, width * 4);
  vec scale[2] = {*(vec *)scales, *(vec *)(scales + LANES)};
  ivec raised[2] = {*(ivec *)sums * ZERO, *(ivec *)(sums + LANES) * ZERO};
  for (; m + 8 <= M; m += 8) ROWS(8)
  if (m + 4 <= M) {
    ROWS(4)
    m += 4;
  }
  for (; m < M; m++) ROWS(1)
}
#undef ROWS
#else
static void product_int8(const Plan *plan, int64_t n, int64_t M, const uint8_t *A, int64_t lda, const float *row_scales,
                         float *C) {}  // linear_packs says that this processor does not
#endif

// x (M, K) bfloat16 -> out (M, N), or (M, N / 2) behind a gate
void linear(const Plan *given, const uint16_t *x, int64_t M, void *out, int out_bf) {
  const Plan plan = *given;
  int64_t columns = (plan.N + PANEL - 1) / PANEL, blocks = (M + TOGETHER - 1) / TOGETHER, lda = (plan.K + 3) / 4 * 4;
  int many = M * plan.N * plan.K > 1 << 15;
  uint8_t *bytes = plan.scales ? scratch((size_t)(M * lda)) : NULL;
  float *row_scales = plan.scales ? scratch((size_t)M * 4) : NULL;
#pragma omp parallel if (many)
  {
    if (plan.scales)
#pragma omp for schedule(static)
      for (int64_t m = 0; m < M; m++) row_scales[m] = to_bytes(x + m * plan.K, plan.K, lda, bytes + m * lda);
#pragma omp for schedule(static)
    for (int64_t at = 0; at < columns * blocks; at++) {
      float sums[TILE_ROWS * PANEL] __attribute__((aligned(64)));
      int64_t n = at % columns * PANEL, last = at / columns * TOGETHER + TOGETHER;
      for (int64_t m = last - TOGETHER; m < M && m < last; m += TILE_ROWS) {
        int64_t rows = M - m < TILE_ROWS ? M - m : TILE_ROWS;
        if (plan.scales) product_int8(&plan, n, rows, bytes + m * lda, lda, row_scales + m, sums);
        else
          product(rows, PANEL, plan.K / 2, x + m * plan.K, plan.K,
                  (const pair *)plan.panels + n / PANEL * (plan.K / 2) * PANEL, PANEL, sums, PANEL, 0);
        put_rows(&plan, sums, rows, n, out, m, out_bf);
      }
    }
  }
  free(bytes);
  free(row_scales);
}
