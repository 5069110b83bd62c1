// Attention whose products multiply bfloat16 and add in float32: on AMX tiles where the processor has them, by
// AVX512-BF16's dot products, or by shifts and float32. Probabilities and their gradients are rounded to bfloat16
// before they enter a product, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691).
//
// A pair is two bfloat16 in one 32-bit word, the even one in the low half: what the dot-product units read. The left
// side of a product is rows of bfloat16, so its pairs lie along the row; the right side is rows of pairs.
#include "attention.h"
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define AMX
#define SETTLED __asm__ volatile("" ::: "memory")  // GCC does not know that a tile load reads what it points to
static int amx;  // whether the kernel lets this process use the tiles: ARCH_REQ_XCOMP_PERM of XTILEDATA
__attribute__((constructor)) static void ask_for_tiles(void) { amx = syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif

typedef uint32_t pair;
INLINE int64_t up32(int64_t n) { return (n + 31) / 32 * 32; }

// every thread holds its own tiles: eight of 16 rows of 64 bytes
static void tiles_on(void) {
#ifdef AMX
  if (!amx) return;
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } setting = {.palette = 1};
  for (int i = 0; i < 8; i++) setting.bytes[i] = 64, setting.rows[i] = 16;
  SETTLED;
  _tile_loadconfig(&setting);
#endif
}
static void tiles_off(void) {
#ifdef AMX
  if (amx) _tile_release();
#endif
}

#ifdef AMX
INLINE void product_on_tiles(int64_t M, int64_t N, int64_t K, const uint16_t *A, int64_t lda, const pair *B, int64_t ldb,
                             float *C, int64_t ldc, int add) {
  SETTLED;
  for (int64_t n = 0; n < N; n += 32)
    for (int64_t m = 0; m < M; m += 32) {
      float *c = C + m * ldc + n;
      if (add) {
        _tile_loadd(0, c, ldc * 4);
        _tile_loadd(1, c + 16, ldc * 4);
        _tile_loadd(2, c + 16 * ldc, ldc * 4);
        _tile_loadd(3, c + 16 * ldc + 16, ldc * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t k = 0; k < K; k += 16) {
        _tile_loadd(4, A + m * lda + 2 * k, lda * 2);
        _tile_loadd(5, A + (m + 16) * lda + 2 * k, lda * 2);
        _tile_loadd(6, B + k * ldb + n, ldb * 4);
        _tile_loadd(7, B + k * ldb + n + 16, ldb * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, c, ldc * 4);
      _tile_stored(1, c + 16, ldc * 4);
      _tile_stored(2, c + 16 * ldc, ldc * 4);
      _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
    }
  SETTLED;
}
#endif

INLINE vec dot(vec acc, uvec a, uvec b) {
#ifdef __AVX512BF16__
  return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  acc += (vec)(a << 16) * (vec)(b << 16);
  return acc + (vec)(a & 0xffff0000u) * (vec)(b & 0xffff0000u);
#endif
}

// C (M, N) (+)= A (M, 2 K) B (2 K, N); M and N are multiples of 32, K of 16
static void product(int64_t M, int64_t N, int64_t K, const uint16_t *A, int64_t lda, const pair *B, int64_t ldb, float *C,
                    int64_t ldc, int add) {
#ifdef AMX
  if (amx) {
    product_on_tiles(M, N, K, A, lda, B, ldb, C, ldc, add);
    return;
  }
#endif
  for (int64_t n = 0; n < N; n += 2 * LANES)
    for (int64_t m = 0; m < M; m += 8) {
      vec acc[8][2];
      for (int i = 0; i < 8; i++)
        for (int j = 0; j < 2; j++) acc[i][j] = add ? *(vec *)(C + (m + i) * ldc + n + j * LANES) : (vec){};
      for (int64_t k = 0; k < K; k++) {
        uvec b0 = *(const uvec *)(B + k * ldb + n), b1 = *(const uvec *)(B + k * ldb + n + LANES);
        for (int i = 0; i < 8; i++) {
          pair two;
          memcpy(&two, A + (m + i) * lda + 2 * k, 4);
          uvec a = (uvec){} + two;
          acc[i][0] = dot(acc[i][0], a, b0), acc[i][1] = dot(acc[i][1], a, b1);
        }
      }
      for (int i = 0; i < 8; i++)
        for (int j = 0; j < 2; j++) *(vec *)(C + (m + i) * ldc + n + j * LANES) = acc[i][j];
    }
}

// dst[c][r] = src[r][c], block by block so that both sides stay in the nearest cache
static void turn(const pair *src, int64_t lds, int64_t rows, int64_t columns, pair *dst, int64_t ldd) {
  for (int64_t r0 = 0; r0 < rows; r0 += 16)
    for (int64_t c = 0; c < columns; c++)
      for (int64_t r = r0; r < r0 + 16; r++) dst[c * ldd + r] = src[r * lds + c];
}
INLINE uvec wide(const uint16_t *p) { return __builtin_convertvector(*(const half16 *)p, uvec); }
// rows of bfloat16 to rows of pairs, each pair one element above the other
static void stack_pairs(const uint16_t *src, int64_t rows, int64_t columns, pair *dst) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; c += LANES)
      *(uvec *)(dst + r / 2 * columns + c) = wide(src + r * columns + c) | wide(src + (r + 1) * columns + c) << 16;
}
static void plain_in(const uint16_t *src, int64_t stride, int64_t T, int64_t D, int64_t ld, uint16_t *dst) {
  for (int64_t t = 0; t < T; t++) {
    memcpy(dst + t * ld, src + t * stride, (size_t)D * 2);
    memset(dst + t * ld + D, 0, (size_t)(ld - D) * 2);
  }
}

// The scratch of one thread. Tokens and widths are filled up to 32; what no token fills stays zero.
typedef struct {
  int64_t tokens, keys, width, ldt;
  uint16_t *q, *go, *row, *qt, *got, *p;  // (tokens, width), row (keys, width), qt and got turned; p (TILE, ldt)
  pair *kt, *vt, *kp, *vp, *some, *pp, *dp;  // k and v turned and stacked; probabilities and gradients stacked
  float *s, *ds, *dk, *dv, *o;  // scores and their gradient (TILE, ldt); dk and dv turned (width, ldt)
  char *base;
} Room;
static Room carve(const Shape *S) {
  Room r = {.tokens = up32(S->T), .keys = up32(S->K), .width = up32(S->D), .ldt = up32(S->K) + LANES};
  size_t ours = (size_t)(r.tokens * r.width), theirs = (size_t)(r.keys * r.width);
  size_t turned = (size_t)(r.width * r.ldt), tile = (size_t)(TILE * r.ldt);
  struct { void *place; size_t bytes; } parts[] = {
      {&r.q, 2 * ours}, {&r.go, 2 * ours}, {&r.row, 2 * theirs}, {&r.qt, 2 * ours}, {&r.got, 2 * ours},
      {&r.p, 2 * tile}, {&r.kt, 2 * turned}, {&r.vt, 2 * turned}, {&r.kp, 2 * theirs}, {&r.vp, 2 * theirs},
      {&r.some, 2 * ours}, {&r.pp, 2 * tile}, {&r.dp, 2 * tile}, {&r.s, 4 * tile}, {&r.ds, 4 * tile},
      {&r.dk, 4 * turned + 4 * theirs},
      {&r.dv, 4 * turned}, {&r.o, (size_t)(4 * TILE * r.width)}};
  size_t total = 0, count = sizeof parts / sizeof *parts;
  for (size_t i = 0; i < count; i++) total += (parts[i].bytes + 63) / 64 * 64;
  char *p = r.base = scratch(total);
  for (size_t i = 0; i < count; p += (parts[i].bytes + 63) / 64 * 64, i++) memcpy(parts[i].place, &p, sizeof p);
  memset(r.base, 0, total);
  return r;
}

// keys and values of one group of heads, in the layouts its products read
static void read_group(Room *m, const Shape *S, const uint16_t *k, const uint16_t *v, const float *cs, const float *sn,
                       int learning) {
  rotary_in(k, S->key_stride, S->K, S->D, m->width, cs, sn, 1, m->row, 1, 1);
  turn((const pair *)m->row, m->width / 2, m->keys, m->width / 2, m->kt, m->ldt);
  if (learning) stack_pairs(m->row, m->keys, m->width, m->kp);
  plain_in(v, S->key_stride, S->K, S->D, m->width, m->row);
  if (learning) turn((const pair *)m->row, m->width / 2, m->keys, m->width / 2, m->vt, m->ldt);
  else stack_pairs(m->row, m->keys, m->width, m->vp);
}

void attention_bf16(const Shape *shape, const void *q, const void *k, const void *v, void *out) {
  const Shape S = *shape;
  int64_t group = S.H / S.G;
#pragma omp parallel
  {
    Room m = carve(&S);
    tiles_on();
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, at = b * S.K * S.key_stride + g * S.D;
      const float *cs = S.cosines ? S.cosines + b * S.rotary_stride : NULL, *sn = S.sines + b * S.rotary_stride;
      read_group(&m, &S, (const uint16_t *)k + at, (const uint16_t *)v + at, cs, sn, 0);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in((const uint16_t *)q + b * S.T * S.query_stride + h * S.D, S.query_stride, S.T, S.D, m.width, cs, sn,
                  S.scale, m.q, 1, 1);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE;
          Span span = tile_span(&S, b, i0, rows, 32);
          int64_t from = span.from, keys = up32(span.until - from);
          product(TILE, keys, m.width / 2, m.q + i0 * m.width, m.width, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(&S, m.s, m.ldt, b, h, i0, rows, span, keys);
          for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < keys; j += LANES) vec_out(m.p, r * m.ldt + j, *(vec *)(m.s + r * m.ldt + j), 1);
          product(TILE, m.width, keys / 2, m.p, m.ldt, m.vp + from / 2 * m.width, m.width, m.o, m.width, 0);
          plain_out(m.o, m.width, rows, S.D, (uint16_t *)out + ((b * S.T + i0) * S.H + h) * S.D, S.H * S.D, 1);
        }
      }
    }
    tiles_off();
    free(m.base);
  }
}

// dS = P (dP - sum P dP) of a tile: rows of bfloat16 for dQ, stacked pairs of P and dS for dV and dK
static void score_gradient(Room *m, int64_t rows, int64_t keys) {
  for (int64_t r = 0; r < TILE; r++) {
    float *p = m->s + r * m->ldt, *d = m->ds + r * m->ldt;
    if (r >= rows) {  // queries behind the last token
      memset(p, 0, (size_t)keys * 4);
      memset(d, 0, (size_t)keys * 4);
      continue;
    }
    vec acc = {};
    for (int64_t j = 0; j < keys; j += LANES) acc += *(vec *)(p + j) * *(vec *)(d + j);
    float mean = vec_sum(acc);
    for (int64_t j = 0; j < keys; j += LANES) *(vec *)(d + j) = *(vec *)(p + j) * (*(vec *)(d + j) - mean);
  }
  for (int64_t r = 0; r < TILE; r += 2)
    for (int64_t j = 0; j < keys; j += LANES) {
      int64_t at = r * m->ldt + j, below = at + m->ldt, to = r / 2 * m->ldt + j;
      half16 d0 = narrow(*(vec *)(m->ds + at)), d1 = narrow(*(vec *)(m->ds + below));
      half16 p0 = narrow(*(vec *)(m->s + at)), p1 = narrow(*(vec *)(m->s + below));
      *(half16 *)(m->p + at) = d0, *(half16 *)(m->p + below) = d1;
      *(uvec *)(m->dp + to) = __builtin_convertvector(d0, uvec) | __builtin_convertvector(d1, uvec) << 16;
      *(uvec *)(m->pp + to) = __builtin_convertvector(p0, uvec) | __builtin_convertvector(p1, uvec) << 16;
    }
}

// a query head's rows, and the same turned: (width, tokens)
static void read_turned(Room *m, const uint16_t *rows, uint16_t *turned) {
  stack_pairs(rows, m->tokens, m->width, m->some);
  turn(m->some, m->width, m->tokens / 2, m->width, (pair *)turned, m->tokens / 2);
}

// Everything is made again from q, k and v; `part` holds each thread's gradient of the biases.
void attention_grad_bf16(const Shape *shape, const void *q, const void *k, const void *v, const void *gout, void *gq,
                         void *gk, void *gv, float *part) {
  const Shape S = *shape;
  int64_t group = S.H / S.G;
#pragma omp parallel
  {
    Room m = carve(&S);
    size_t turned = (size_t)(m.width * m.ldt) * 4;
    float *mine = part + omp_get_thread_num() * S.H * S.bias_stride;
    tiles_on();
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, at = b * S.K * S.key_stride + g * S.D;
      const float *cs = S.cosines ? S.cosines + b * S.rotary_stride : NULL, *sn = S.sines + b * S.rotary_stride;
      read_group(&m, &S, (const uint16_t *)k + at, (const uint16_t *)v + at, cs, sn, 1);
      memset(m.dk, 0, turned);
      memset(m.dv, 0, turned);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        int64_t to = b * S.T * S.query_stride + h * S.D;
        rotary_in((const uint16_t *)q + to, S.query_stride, S.T, S.D, m.width, cs, sn, S.scale, m.q, 1, 1);
        plain_in((const uint16_t *)gout + (b * S.T * S.H + h) * S.D, S.H * S.D, S.T, S.D, m.width, m.go);
        read_turned(&m, m.q, m.qt);
        read_turned(&m, m.go, m.got);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE;
          Span span = tile_span(&S, b, i0, rows, 32);
          int64_t from = span.from, keys = up32(span.until - from);
          product(TILE, keys, m.width / 2, m.q + i0 * m.width, m.width, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(&S, m.s, m.ldt, b, h, i0, rows, span, keys);
          product(TILE, keys, m.width / 2, m.go + i0 * m.width, m.width, m.vt + from, m.ldt, m.ds, m.ldt, 0);
          score_gradient(&m, rows, keys);
          if (S.bias) bias_grad(&S, m.ds, m.ldt, h, i0, rows, span, keys, mine);
          product(m.width, keys, TILE / 2, m.got + i0, m.tokens, m.pp, m.ldt, m.dv + from, m.ldt, 1);
          product(m.width, keys, TILE / 2, m.qt + i0, m.tokens, m.dp, m.ldt, m.dk + from, m.ldt, 1);
          product(TILE, m.width, keys / 2, m.p, m.ldt, m.kp + from / 2 * m.width, m.width, m.o, m.width, 0);
          rotary_back(m.o, m.width, rows, S.D, cs ? cs + i0 * S.D / 2 : NULL, sn + i0 * S.D / 2, S.scale,
                      (uint16_t *)gq + to + i0 * S.query_stride, S.query_stride, 1);
        }
      }
      // the turned gradients back to (tokens, width); the room behind dk is theirs
      float *flat = m.dk + turned / 4;
      turn((const pair *)m.dk, m.ldt, m.width, m.keys, (pair *)flat, m.width);
      rotary_back(flat, m.width, S.K, S.D, cs, sn, 1, (uint16_t *)gk + at, S.key_stride, 1);
      turn((const pair *)m.dv, m.ldt, m.width, m.keys, (pair *)flat, m.width);
      plain_out(flat, m.width, S.K, S.D, (uint16_t *)gv + at, S.key_stride, 1);
    }
    tiles_off();
    free(m.base);
  }
}
