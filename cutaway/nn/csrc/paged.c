#include "paged.h"
#include "attention.h"

#define TOGETHER (WIDE == 16 ? 12 : 6)  // queries that pass by a page at once: as many as there are registers for

// one head of a row: normalised, turned and scaled, in float32
static ONCE void turned(const Look *S, const void *qkv, int64_t at, int64_t position, const float *norm, float scale, float *out) {
  int64_t half = S->D / 2;
  const float *cs = S->cosines ? S->cosines + position * half : NULL, *sn = S->cosines ? S->sines + position * half : NULL;
  const char *row = (const char *)qkv + at * (S->bf ? 2 : 4);
  if (!norm) {
    rotary_in(row, S->D, 1, S->D, S->D, cs, sn, scale, out, S->bf, 0);
    return;
  }
  reg sum[REGS] = {};
  float normed[S->D];
  for (int64_t i = 0; i < S->D; i += LANES)
    for (int j = 0; j < REGS; j++) {
      reg v = reg_in(row, i + j * WIDE, S->bf);
      sum[j] = reg_fma(v, v, sum[j]);
    }
  float by = 1.0f / sqrtf(regs_sum(sum) / (float)S->D + S->eps);
  for (int64_t i = 0; i < S->D; i += WIDE) *(reg *)(normed + i) = reg_in(row, i, S->bf) * by * *(const reg *)(norm + i);
  rotary_in(normed, S->D, 1, S->D, S->D, cs, sn, scale, out, 0, 0);
}

static ONCE void append(const Look *S, const void *qkv, int64_t token, int64_t g, int64_t position, int64_t page, float *room) {
  int64_t wide = (S->H + 2 * S->G) * S->D, slot = position % PAGE, size = S->cache_bf ? 2 : 4, at = (page * S->G + g) * PAGE * S->D;
  if (slot == 0) {  // what another sequence left there must not be NaN: it is multiplied by 0
    memset((char *)S->keys + at * size, 0, (size_t)(PAGE * S->D * size));
    memset((char *)S->values + at * size, 0, (size_t)(PAGE * S->D * size));
  }
  turned(S, qkv, token * wide + (S->H + g) * S->D, position, S->key_norm, 1, room);
  if (S->cache_bf) {
    uint16_t *narrow = (uint16_t *)(room + S->D), *to = (uint16_t *)S->keys + at + slot;
    for (int64_t d = 0; d < S->D; d += WIDE) reg_out(narrow, d, reg_in(room, d, 0), 1);
    for (int64_t d = 0; d < S->D; d++) to[d * PAGE] = narrow[d];
  } else {
    for (int64_t d = 0; d < S->D; d++) ((float *)S->keys)[at + d * PAGE + slot] = room[d];
  }
  const char *value = (const char *)qkv + (token * wide + (S->H + S->G + g) * S->D) * (S->bf ? 2 : 4);
  char *to = (char *)S->values + (at + slot * S->D) * size;
  for (int64_t i = 0; i < S->D; i += WIDE) reg_out(to, i, reg_in(value, i, S->bf), S->cache_bf);
}

// how many of some rows go together: `scores` and `mixed` know 1 to 6, and a whole tile
_Static_assert(TOGETHER == 6 || TOGETHER == 12, "a whole tile is one of these");
INLINE int some_of(int rows) { return rows < 6 ? rows : rows == TOGETHER ? TOGETHER : 6; }

// Q queries by P pages: 16 scores each, every one a chain over D. q (D, TOGETHER): the numbers of all queries at one d lie
// beside each other. Of few queries the numbers stay in registers, of many those of the keys
#define SCORES(Q, P) { \
    reg acc[Q][P][PAGE / WIDE] = {}; \
    int64_t of[P], next[P]; \
    for (int p = 0; p < P; p++) { \
      of[p] = (pages[n + p] * S->G + g) * PAGE * D; \
      next[p] = n + P + p < until ? (pages[n + P + p] * S->G + g) * PAGE * D : of[p]; \
    } \
    for (int64_t d = 0; d < D; d++) { \
      const float *by = q + d * TOGETHER; \
      for (int p = 0; p < P; p++) { \
        __builtin_prefetch(values + (of[p] + d * PAGE) * size); /* that come next, while these are multiplied */ \
        __builtin_prefetch(keys + (next[p] + d * PAGE) * size); \
        if (Q < 4) \
          for (int j = 0; j < PAGE / WIDE; j++) { \
            reg k = reg_in(keys, of[p] + d * PAGE + j * WIDE, bf); \
            for (int i = 0; i < Q; i++) acc[i][p][j] = reg_fma(reg_all(by[i]), k, acc[i][p][j]); \
          } \
      } \
      if (Q >= 4) { \
        reg k[P][PAGE / WIDE]; \
        for (int p = 0; p < P; p++) \
          for (int j = 0; j < PAGE / WIDE; j++) k[p][j] = reg_in(keys, of[p] + d * PAGE + j * WIDE, bf); \
        for (int i = 0; i < Q; i++) { \
          reg one = reg_all(by[i]); \
          for (int p = 0; p < P; p++) \
            for (int j = 0; j < PAGE / WIDE; j++) acc[i][p][j] = reg_fma(one, k[p][j], acc[i][p][j]); \
        } \
      } \
    } \
    for (int i = 0; i < Q; i++) \
      for (int p = 0; p < P; p++) \
        for (int j = 0; j < PAGE / WIDE; j++) *(reg *)(s + i * ld + (n - from + p) * PAGE + j * WIDE) = acc[i][p][j]; \
    n += P; \
  }
INLINE void scores(const Look *S, const float *q, int rows, const int32_t *pages, int64_t from, int64_t until, int64_t g,
                   float *s, int64_t ld, int bf) {
  int64_t D = S->D, size = bf ? 2 : 4;
  const char *keys = S->keys, *values = S->values;
  for (int64_t n = from; rows > 0; n = from) {
    int some = some_of(rows);
    if (some == 12) {
      while (n + 2 <= until) SCORES(12, 2)
      if (n < until) SCORES(12, 1)
    }
#define PAIRS while (WIDE == 16 && n + 2 <= until)  // enough chains side by side to hide how long a sum takes
    if (some == 6) {
      PAIRS SCORES(6, 2)
      while (n < until) SCORES(6, 1)
    }
    if (some == 5) {
      PAIRS SCORES(5, 2)
      while (n < until) SCORES(5, 1)
    }
    if (some == 4) {
      PAIRS SCORES(4, 2)
      while (n < until) SCORES(4, 1)
    }
#undef PAIRS
    if (some == 3) {
      while (n + 2 <= until) SCORES(3, 2)
      if (n < until) SCORES(3, 1)
    }
    if (some == 2) {
      while (n + 2 <= until) SCORES(2, 2)
      if (n < until) SCORES(2, 1)
    }
    if (some == 1) {
      while (n + 4 <= until) SCORES(1, 4)
      while (n < until) SCORES(1, 1)
    }
    rows -= some, q += some, s += some * ld;
  }
}
#undef SCORES

// Q rows of shares by the values of all pages, V registers of a head at a time: chains over the keys. Of few rows the
// shares stay in registers, of many the values
#define MIXED(Q, V) \
  for (; c + V * WIDE <= D; c += V * WIDE) { \
    reg acc[Q][V] = {}; \
    for (int64_t n = from; n < until; n++) { \
      int64_t of = (pages[n] * S->G + g) * PAGE * D + c; \
      const float *to = s + (n - from) * PAGE; \
      for (int64_t j = 0; j < PAGE; j++) { \
        if (Q < 4) { \
          reg by[Q]; \
          for (int i = 0; i < Q; i++) by[i] = reg_all(to[i * ld + j]); \
          for (int k = 0; k < V; k++) { \
            reg v = reg_in(S->values, of + j * D + k * WIDE, bf); \
            for (int i = 0; i < Q; i++) acc[i][k] = reg_fma(by[i], v, acc[i][k]); \
          } \
        } else { \
          reg v[V]; \
          for (int k = 0; k < V; k++) v[k] = reg_in(S->values, of + j * D + k * WIDE, bf); \
          for (int i = 0; i < Q; i++) { \
            reg by = reg_all(to[i * ld + j]); \
            for (int k = 0; k < V; k++) acc[i][k] = reg_fma(by, v[k], acc[i][k]); \
          } \
        } \
      } \
    } \
    for (int i = 0; i < Q; i++) \
      for (int k = 0; k < V; k++) *(reg *)(o + i * D + c + k * WIDE) = acc[i][k]; \
  }
INLINE void mixed(const Look *S, int rows, const int32_t *pages, int64_t from, int64_t until, int64_t g, const float *s,
                  int64_t ld, float *o, int bf) {
  int64_t D = S->D;
  for (int64_t c = 0; rows > 0; c = 0) {
    int some = some_of(rows);
    if (some == 12) MIXED(12, 2)
    if (some == 6) MIXED(6, 2)
    if (some == 5) MIXED(5, 2)
    if (some == 4) MIXED(4, 2)
    if (some == 3) MIXED(3, 4)
    if (some == 2) MIXED(2, 4)
    if (some == 1) MIXED(1, 4)
    if (some == 12) MIXED(12, 1)
    if (some == 6) MIXED(6, 1)
    if (some == 5) MIXED(5, 1)
    if (some == 4) MIXED(4, 1)
    if (some == 3) MIXED(3, 2)
    if (some == 3) MIXED(3, 1)
    if (some == 2) MIXED(2, 1)
    if (some == 1) MIXED(1, 1)
    rows -= some, s += some * ld, o += some * D;
  }
}
#undef MIXED

static int64_t tiles_of(const Look *S, int64_t count) {
  return (count * (S->H / S->G) + TOGETHER - 1) / TOGETHER;
}
void paged_units(const Look *S, const Ragged *R, int64_t *units) {
  units[0] = 0;
  for (int64_t p = 0; p < R->parts; p++) units[p + 1] = units[p] + S->G * tiles_of(S, R->begins[p + 1] - R->begins[p]);
}
int64_t paged_room(const Look *S, const Ragged *R) { return TOGETHER * (R->width * PAGE + 2 * S->D) + LANES; }

// the shares of one query's keys, in place: 0 for those that it does not see
static float shares(float *s, int64_t ld, int64_t low, int64_t high) {
  for (int64_t j = 0; j < low; j++) s[j] = -INFINITY;
  for (int64_t j = high; j < ld; j++) s[j] = -INFINITY;
  reg top = reg_all(-INFINITY);
  for (int64_t j = 0; j < ld; j += WIDE) top = reg_max(*(reg *)(s + j), top);
  float most = reg_most(top);  // what is no number stays so below
  reg sum[REGS] = {};
  for (int64_t j = 0; j < ld; j += LANES)
    for (int k = 0; k < REGS; k++) sum[k] += *(reg *)(s + j + k * WIDE) = reg_exp(*(reg *)(s + j + k * WIDE) - most);
  return 1.0f / regs_sum(sum);
}

// whether each part is one token and one tile, which then appends itself: threads need not meet in between
static int single(const Look *S, const Ragged *R) { return R->tokens == R->parts && tiles_of(S, 1) == 1; }

// a tile of the queries of one part that share a key/value head
static void tile(const Look *S, const Ragged *R, const void *qkv, void *out, int64_t part, int64_t g, int64_t row, float *room) {
  int64_t D = S->D, group = S->H / S->G, wide = (S->H + 2 * S->G) * D, begin = R->begins[part];
  int64_t all = (R->begins[part + 1] - begin) * group, ld = R->width * PAGE, from = INT64_MAX, until = 0;
  int rows = (int)(all - row < TOGETHER ? all - row : TOGETHER);
  float *s = room, *q = s + TOGETHER * ld, *o = q + TOGETHER * D;
  const int32_t *pages = R->pages + part * R->width;
  int64_t low[TOGETHER], high[TOGETHER];
  const char *first = (const char *)S->keys + (pages[0] * S->G + g) * PAGE * D * (S->cache_bf ? 2 : 4);
  for (int64_t i = 0; i < PAGE * D * (S->cache_bf ? 2 : 4); i += 64) __builtin_prefetch(first + i);
  if (single(S, R)) append(S, qkv, begin, g, R->before[part], pages[R->before[part] / PAGE], room);
  for (int i = 0; i < rows; i++) {
    int64_t t = (row + i) / group, h = g * group + (row + i) % group, position = R->before[part] + t;
    high[i] = position + 1, low[i] = S->window && high[i] > S->window ? high[i] - S->window : 0;
    if (low[i] / PAGE < from) from = low[i] / PAGE;
    if ((high[i] + PAGE - 1) / PAGE > until) until = (high[i] + PAGE - 1) / PAGE;
    turned(S, qkv, (begin + t) * wide + h * D, position, S->query_norm, S->scale, o);  // o: not needed before `mixed`
    for (int64_t d = 0; d < D; d++) q[d * TOGETHER + i] = o[d];
  }
  if (S->cache_bf) scores(S, q, rows, pages, from, until, g, s, ld, 1);
  else scores(S, q, rows, pages, from, until, g, s, ld, 0);
  float by[TOGETHER];
  for (int i = 0; i < rows; i++)
    by[i] = shares(s + i * ld, (until - from) * PAGE, low[i] - from * PAGE, high[i] - from * PAGE);
  if (S->cache_bf) mixed(S, rows, pages, from, until, g, s, ld, o, 1);
  else mixed(S, rows, pages, from, until, g, s, ld, o, 0);
  for (int i = 0; i < rows; i++) {
    int64_t at = ((begin + (row + i) / group) * S->H + g * group + (row + i) % group) * D;
    for (int64_t d = 0; d < D; d += WIDE) reg_out(out, at + d, *(reg *)(o + i * D + d) * by[i], S->bf);
  }
}

void paged_shared(const Look *S, const Ragged *R, const void *qkv, void *out, const int64_t *units, float *room) {
  if (!single(S, R)) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t at = 0; at < R->parts * S->G; at++) {
      int64_t part = at / S->G, g = at % S->G;
      for (int64_t token = R->begins[part]; token < R->begins[part + 1]; token++) {
        int64_t position = R->before[part] + token - R->begins[part];
        append(S, qkv, token, g, position, R->pages[part * R->width + position / PAGE], room);
      }
    }
  }
#pragma omp for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < units[R->parts]; unit++) {
    int64_t part = 0;
    while (units[part + 1] <= unit) part++;
    int64_t tiles = tiles_of(S, R->begins[part + 1] - R->begins[part]), in = unit - units[part];
    tile(S, R, qkv, out, part, in / tiles, in % tiles * TOGETHER, room);
  }
}
