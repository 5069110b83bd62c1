// Attention whose products multiply bfloat16 and add in float32 (product.h). Probabilities and their gradients are
// rounded to bfloat16 before they enter a product, as in FlashAttention-2 (Dao 2023, arXiv 2307.08691).
#include "attention.h"
#include "product.h"

// dst[c][r] = src[r][c] for 16 x 16 words
#ifdef __AVX512F__
INLINE void turn_block(const pair *src, int64_t lds, pair *dst, int64_t ldd) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(src + i * lds);
  for (int i = 0; i < 16; i += 2) {  // words, then pairs of them, change places within quarters of a vector
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)  // then whole quarters
    for (int j = 0; j < 4; j++) {
      b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    _mm512_storeu_si512(dst + j * ldd, _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88));
    _mm512_storeu_si512(dst + (j + 8) * ldd, _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd));
  }
}
#else
INLINE void turn_block(const pair *src, int64_t lds, pair *dst, int64_t ldd) {
  for (int c = 0; c < 16; c++)
    for (int r = 0; r < 16; r++) dst[c * ldd + r] = src[r * lds + c];
}
#endif
// the same for multiples of 16, block by block so that both sides stay in the nearest cache
static void turn(const pair *src, int64_t lds, int64_t rows, int64_t columns, pair *dst, int64_t ldd) {
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 16) turn_block(src + r * lds + c, lds, dst + c * ldd + r, ldd);
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

// The scratch of one thread, a third of it where nothing is learned. Tokens and widths are filled up to 32; what no token
// fills stays zero.
typedef struct {
  int64_t tokens, keys, width, ldt;
  uint16_t *q, *go, *row, *qt, *got, *p;  // (tokens, width), row (keys, width), qt and got turned; p (TILE, ldt)
  pair *kt, *vt, *kp, *vp, *some, *pp, *dp;  // k and v turned and stacked; probabilities and gradients stacked
  float *s, *ds, *dk, *dv, *o;  // scores and their gradient (TILE, ldt); dk and dv turned (width, ldt)
  char *base;
} Room;
static Room carve(const Shape *S, int learning) {
  Room r = {.tokens = up32(S->T), .keys = up32(S->K), .width = up32(S->D), .ldt = up32(S->K) + LANES};
  size_t ours = (size_t)(r.tokens * r.width), theirs = (size_t)(r.keys * r.width);
  size_t turned = (size_t)(r.width * r.ldt), tile = (size_t)(TILE * r.ldt);
  struct { void *place; size_t bytes; } parts[] = {
      {&r.q, 2 * ours}, {&r.row, 2 * theirs}, {&r.p, 2 * tile}, {&r.kt, 2 * turned}, {&r.vp, 2 * theirs}, {&r.s, 4 * tile},
      {&r.o, (size_t)(4 * TILE * r.width)},
      {&r.go, 2 * ours}, {&r.qt, 2 * ours}, {&r.got, 2 * ours}, {&r.vt, 2 * turned}, {&r.kp, 2 * theirs},
      {&r.some, 2 * ours}, {&r.pp, 2 * tile}, {&r.dp, 2 * tile}, {&r.ds, 4 * tile}, {&r.dk, 4 * turned + 4 * theirs},
      {&r.dv, 4 * turned}};
  size_t total = 0, count = learning ? sizeof parts / sizeof *parts : 7;
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

#ifdef BF16_UNITS
void attention_bf16(const Shape *shape, const void *q, const void *k, const void *v, void *out) {
  const Shape S = *shape;
  int64_t group = S.H / S.G;
#pragma omp parallel
  {
    Room m = carve(&S, 0);
    tiles_on();
#pragma omp for schedule(dynamic)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, at = b * S.K * S.key_stride + g * S.D;
      const float *cs = S.cosines ? S.cosines + b * S.rotary_stride : NULL, *sn = S.sines + b * S.rotary_stride;
      read_group(&m, &S, (const uint16_t *)k + at, (const uint16_t *)v + at, cs, sn, 0);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in((const uint16_t *)q + b * S.T * S.query_stride + h * S.D, S.query_stride, S.T, S.D, m.width, cs, sn,
                  S.scale, m.q, 1, 1);
        for (int64_t i0 = 0, rows; i0 < S.T; i0 += rows) {
          rows = tile_rows(&S, b, i0);
          Span span = tile_span(&S, b, i0, rows, 32);
          int64_t from = span.from, keys = up32(span.until - from);
          product(rows_of_product(rows), keys, m.width / 2, m.q + i0 * m.width, m.width, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(&S, m.s, m.ldt, b, h, i0, rows, span, keys);
          for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < keys; j += LANES) vec_out(m.p, r * m.ldt + j, *(vec *)(m.s + r * m.ldt + j), 1);
          product(rows_of_product(rows), m.width, keys / 2, m.p, m.ldt, m.vp + from / 2 * m.width, m.width, m.o, m.width, 0);
          plain_out(m.o, m.width, rows, S.D, (uint16_t *)out + ((b * S.T + i0) * S.H + h) * S.D, S.H * S.D, 1);
        }
      }
    }
    tiles_off();
    free(m.base);
  }
}
#endif

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
    Room m = carve(&S, 1);
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
