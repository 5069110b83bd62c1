// A product with a weight that was laid out once: for reading, where a library would lay it out again at every call.
// What follows a product (a bias, an activation, a gate) is done while its sums are in registers' reach. A row's output
// does not depend on the rows beside it.
//
// bfloat16 on AVX512-BF16 only (with AMX the library is faster). int8 on AVX512-VNNI: weights have a scale an output,
// inputs one for each GROUP of a row, found when it is read, so that one large number takes the precision of its group
// and not of the row (as llama.cpp's Q8_0); sums of a group are exact.
#include "activation.h"
#include "product.h"

#define PANEL 32        // outputs whose weights lie together: pair (or four) k of output n at k * PANEL + n
#define TOGETHER 96     // rows that pass by a panel while it lies in the nearest cache
#define GROUP 64        // inputs that share a scale
#define ROWS_INT8 24    // rows whose sums exist at once, of which six are in registers
#define ZERO 128        // what an int8 input is raised by, for a unit that multiplies unsigned by signed
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

// a row of bfloat16 as unsigned bytes around ZERO, filled up to `wide`, and the scale of each group
INLINE void to_bytes(const uint16_t *x, int64_t K, int64_t wide, uint8_t *out, float *scales) {
  for (int64_t start = 0; start < K; start += GROUP) {
    int64_t end = K - start < GROUP ? K : start + GROUP, i = start;
    vec top = {}, none = {};
    float most = 0, strange = 0;  // becomes NaN by one that is no number
    for (; i + LANES <= end; i += LANES) {
      vec v = vec_in(x, i, 1);
      none += v * 0.0f;
      top = vec_max(top, (vec)((ivec)v & 0x7fffffff));
    }
    for (; i < end; i++) {
      most = fmaxf(most, fabsf(one_in(x, i, 1)));
      strange += one_in(x, i, 1) * 0.0f;
    }
    most = fmaxf(most, vec_most(top));
    scales[start / GROUP] = most / 127.0f + strange + vec_sum(none);
    float inverse = most > 0 ? 127.0f / most : 0;
    i = start;
#ifdef __AVX512F__
    for (; i + LANES <= end; i += LANES) {
      __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)(vec_in(x, i, 1) * inverse)), _mm512_set1_epi32(ZERO));
      _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtepi32_epi8(q));
    }
#endif
    for (; i < end; i++) {
      float q = one_in(x, i, 1) * inverse;
      out[i] = q == q ? (uint8_t)(lrintf(q) + ZERO) : ZERO;
    }
  }
  for (int64_t i = K; i < wide; i++) out[i] = ZERO;
}

// R rows of sums of a panel: those of a group are whole numbers, and are scaled before they are added up
#ifdef __AVX512VNNI__
#define ROWS(R) { \
    vec acc[R][2] = {}; \
    for (int64_t g = 0; g < groups; g++) { \
      __m512i whole[R][2], zero[2] = {_mm512_loadu_si512(sums + g * PANEL), _mm512_loadu_si512(sums + g * PANEL + LANES)}; \
      for (int i = 0; i < R; i++) whole[i][0] = zero[0], whole[i][1] = zero[1]; \
      int64_t until = (g + 1) * (GROUP / 4) < fours ? (g + 1) * (GROUP / 4) : fours; \
      for (int64_t k = g * (GROUP / 4); k < until; k++) { \
        __m512i b0 = _mm512_loadu_si512(B + k * PANEL), b1 = _mm512_loadu_si512(B + k * PANEL + LANES); \
        for (int i = 0; i < R; i++) { \
          int32_t four; \
          memcpy(&four, A + (m + i) * lda + 4 * k, 4); \
          __m512i a = _mm512_set1_epi32(four); \
          whole[i][0] = _mm512_dpbusd_epi32(whole[i][0], a, b0), whole[i][1] = _mm512_dpbusd_epi32(whole[i][1], a, b1); \
        } \
      } \
      for (int i = 0; i < R; i++) \
        for (int j = 0; j < 2; j++) \
          acc[i][j] += __builtin_convertvector((ivec)whole[i][j], vec) * inputs[(m + i) * groups + g]; \
    } \
    for (int i = 0; i < R; i++) \
      for (int j = 0; j < 2; j++) *(vec *)(C + (m + i) * PANEL + j * LANES) = acc[i][j] * *(vec *)(scales + j * LANES); \
    m += R; \
  }
static void product_int8(const Plan *plan, int64_t n, int64_t M, const uint8_t *A, int64_t lda, const float *inputs,
                         float *C) {
  int64_t fours = (plan->K + 3) / 4, groups = (plan->K + GROUP - 1) / GROUP, m = 0;
  const int32_t *B = (const int32_t *)plan->panels + n / PANEL * fours * PANEL;
  const int32_t *sums = plan->sums + n / PANEL * groups * PANEL;
  const float *scales = plan->scales + n;
  while (m + 6 <= M) ROWS(6)
  if (m + 4 <= M) ROWS(4)
  if (m + 2 <= M) ROWS(2)
  if (m < M) ROWS(1)
}
#undef ROWS
#else
static void product_int8(const Plan *plan, int64_t n, int64_t M, const uint8_t *A, int64_t lda, const float *inputs,
                         float *C) {}  // linear_packs says that this processor does not
#endif

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
        if (plan.scales) product_int8(&plan, n, rows, bytes + m * lda, lda, scales + m * groups, sums);
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
