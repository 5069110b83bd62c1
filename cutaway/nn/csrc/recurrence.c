// One step of a recurrent layer for all rows, forward and back: what stands between two matrix products of its loop.
// Gates of a row, each of `width` numbers: vanilla h; LSTM i f g o; GRU n r z q (q is the state's share of n). The
// input fills h, i f g o, n r z; the state's product `recur` belongs to h, i f g o, r z q.
#include "tiles.h"

enum { VANILLA, GRU, LSTM };

typedef struct {
  int64_t rows, width;
  int cell, bf;
  int64_t first;       // the row that `recur` and `back` begin with
  int product_bf;      // whether those two are bfloat16 where the others are
  void *gates;         // (T, B, slots H): sums of the inputs; then values of the gates; then their gradients
  const void *recur;   // (B, parts H): the state times its weight
  const float *bias;   // (slots H)
  void *hidden;        // (T + 1, B, H)
  float *carry;        // (T + 1, B, H) float32: the LSTM's cell, the GRU's unrounded state
  const uint8_t *keep; // (T, B): 0 where a row begins anew; or NULL
  const void *grad;    // (T, B, H) of the layer's output
  const void *back;    // (B, H) what the step behind sends back through its product
  float *flow;         // (B, H) what it sends back through the carry
} Recurrence;

// the last numbers of a row that fill no vector; apart, so that the loops stay small
static __attribute__((noinline)) void take_rest(const void *p, int64_t i, int64_t n, int bf, vec *v) {
  for (int64_t l = 0; l < LANES; l++) ((float *)v)[l] = l < n ? one_in(p, i + l, bf) : 0.0f;
}
static __attribute__((noinline)) void give_rest(void *p, int64_t i, int64_t n, const vec *v, int bf) {
  for (int64_t l = 0; l < n; l++) one_out(p, i + l, ((const float *)v)[l], bf);
}
INLINE vec take(const void *p, int64_t i, int64_t n, int bf) {
  if (n >= LANES) return vec_in(p, i, bf);
  vec v;
  take_rest(p, i, n, bf, &v);
  return v;
}
INLINE void give(void *p, int64_t i, int64_t n, vec v, int bf) {
  if (n >= LANES) vec_out(p, i, v, bf);
  else give_rest(p, i, n, &v, bf);
}
// to the precision of the arithmetic around it: float32 where `bf` is 0
INLINE vec sigmoid(vec x, int bf) { return vec_inverse(1.0f + vec_exp(-x), bf); }
INLINE vec vec_tanh(vec x, int bf) { return 2.0f * vec_inverse(1.0f + vec_exp(-2.0f * x), bf) - 1.0f; }

INLINE void forward_row(const Recurrence *m, int64_t b, int64_t t, int64_t before, int64_t after, int cell, int bf) {
  int64_t h = m->width, slots = cell == VANILLA ? 1 : 4, parts = cell == LSTM ? 4 : cell == GRU ? 3 : 1;
  int64_t g = (t * m->rows + b) * slots * h, r = (b - m->first) * parts * h;
  int64_t from = (before * m->rows + b) * h, to = (after * m->rows + b) * h;
  float kept = !m->keep || m->keep[t * m->rows + b] ? 1.0f : 0.0f;
  for (int64_t i = 0; i < h; i += LANES) {
    int64_t n = h - i;
#define GATE(k) take(m->gates, g + (k) * h + i, n, bf)
#define STATE(k) take(m->recur, r + (k) * h + i, n, bf && m->product_bf)
#define BIAS(k) take(m->bias, (k) * h + i, n, 0)
#define SET(k, v) give(m->gates, g + (k) * h + i, n, v, bf)
    if (cell == VANILLA) {
      give(m->hidden, to + i, n, vec_tanh(GATE(0) + STATE(0) + BIAS(0), bf), bf);
    } else if (cell == LSTM) {
      vec in = sigmoid(GATE(0) + STATE(0) + BIAS(0), bf), forget = sigmoid(GATE(1) + STATE(1) + BIAS(1), bf);
      vec fresh = vec_tanh(GATE(2) + STATE(2) + BIAS(2), bf), out = sigmoid(GATE(3) + STATE(3) + BIAS(3), bf);
      vec c = forget * take(m->carry, from + i, n, 0) * kept + in * fresh;
      SET(0, in), SET(1, forget), SET(2, fresh), SET(3, out);
      give(m->carry, to + i, n, c, 0);
      give(m->hidden, to + i, n, out * vec_tanh(c, bf), bf);
    } else {
      vec reset = sigmoid(GATE(1) + STATE(0) + BIAS(1), bf), old = sigmoid(GATE(2) + STATE(1) + BIAS(2), bf);
      vec q = STATE(2) + BIAS(3), fresh = vec_tanh(GATE(0) + BIAS(0) + reset * q, bf);
      vec s = fresh + old * (take(m->carry, from + i, n, 0) * kept - fresh);
      SET(0, fresh), SET(1, reset), SET(2, old), SET(3, q);
      give(m->carry, to + i, n, s, 0);
      give(m->hidden, to + i, n, s, bf);
    }
  }
}

INLINE void backward_row(const Recurrence *m, int64_t b, int64_t t, int64_t before, int64_t after, int64_t behind,
                         int cell, int bf) {
  int64_t h = m->width, slots = cell == VANILLA ? 1 : 4, g = (t * m->rows + b) * slots * h, row = b * h;
  int64_t from = (before * m->rows + b) * h, to = (after * m->rows + b) * h;
  float kept = !m->keep || m->keep[t * m->rows + b] ? 1.0f : 0.0f;
  int returned = behind >= 0 && (!m->keep || m->keep[behind * m->rows + b]);
  for (int64_t i = 0; i < h; i += LANES) {
    int64_t n = h - i;
    vec d = take(m->grad, (t * m->rows + b) * h + i, n, bf);
    if (returned) d += take(m->back, (b - m->first) * h + i, n, bf && m->product_bf);
    if (cell == VANILLA) {
      vec y = take(m->hidden, to + i, n, bf);
      SET(0, d * (1.0f - y * y));
    } else if (cell == LSTM) {
      vec in = GATE(0), forget = GATE(1), fresh = GATE(2), out = GATE(3);
      vec tanh_c = vec_tanh(take(m->carry, to + i, n, 0), bf), c = take(m->carry, from + i, n, 0) * kept;
      vec dc = take(m->flow, row + i, n, 0) + d * out * (1.0f - tanh_c * tanh_c);
      SET(0, dc * fresh * in * (1.0f - in));
      SET(1, dc * c * forget * (1.0f - forget));
      SET(2, dc * in * (1.0f - fresh * fresh));
      SET(3, d * tanh_c * out * (1.0f - out));
      give(m->flow, row + i, n, dc * forget * kept, 0);
    } else {
      vec fresh = GATE(0), reset = GATE(1), old = GATE(2), q = GATE(3);
      d += take(m->flow, row + i, n, 0);
      vec s = take(m->carry, from + i, n, 0) * kept, sum = d * (1.0f - old) * (1.0f - fresh * fresh);
      SET(0, sum);
      SET(1, sum * q * reset * (1.0f - reset));
      SET(2, d * (s - fresh) * old * (1.0f - old));
      SET(3, sum * reset);
      give(m->flow, row + i, n, d * old * kept, 0);
    }
  }
}

#define EACH(cell, call) \
  if (m->bf) call(cell, 1); \
  else call(cell, 0)
#define DISPATCH(call) \
  if (m->cell == LSTM) { \
    EACH(LSTM, call); \
  } else if (m->cell == GRU) { \
    EACH(GRU, call); \
  } else { \
    EACH(VANILLA, call); \
  }

// step t reads the state in slot `before` and leaves its own in slot `after`
void recurrence_step(const Recurrence *m, int64_t t, int64_t before, int64_t after) {
#pragma omp parallel for schedule(static) if (m->rows * m->width > 2048)
  for (int64_t b = 0; b < m->rows; b++) {
#define FORWARD(cell, bf) forward_row(m, b, t, before, after, cell, bf)
    DISPATCH(FORWARD)
  }
}

// the gates of step t become their gradients; `behind` is the step that followed, -1 for none
void recurrence_step_grad(const Recurrence *m, int64_t t, int64_t before, int64_t after, int64_t behind) {
#pragma omp parallel for schedule(static) if (m->rows * m->width > 2048)
  for (int64_t b = 0; b < m->rows; b++) {
#define BACKWARD(cell, bf) backward_row(m, b, t, before, after, behind, cell, bf)
    DISPATCH(BACKWARD)
  }
}

// ---------------------------------------------------------------- the whole loop on AMX tiles
// A thread takes some rows through all steps and waits for nobody. The weight is laid out once, in the order in which
// it is read: groups of four tiles side by side, each of 16 pairs by 16 columns.
#ifndef AMX
int recurrence_loop(const Recurrence *m, const uint16_t *weight, int64_t steps, int reverse) {
  (void)m, (void)weight, (void)steps, (void)reverse;
  return 0;
}
int recurrence_loop_grad(const Recurrence *m, const uint16_t *weight, int64_t steps, int reverse) {
  return recurrence_loop(m, weight, steps, reverse);
}
#else
INLINE int64_t parts_of(const Recurrence *m) { return m->cell == LSTM ? 4 : m->cell == GRU ? 3 : 1; }

// element (k, n) of the right side lies at weight[n * along_n + k * along_k]
static uint16_t *laid_out(const uint16_t *weight, int64_t K, int64_t N, int64_t along_k, int64_t along_n) {
  uint16_t *tiles = scratch((size_t)(K * N) * 2);
#pragma omp parallel for schedule(static)
  for (int64_t group = 0; group < N; group += 64) {
    int64_t count = N - group < 64 ? (N - group) / 16 : 4;
    uint16_t *out = tiles + group * K;
    for (int64_t k = 0; k < K; k += 32)
      for (int64_t tile = 0; tile < count; tile++)
        for (int64_t pair = 0; pair < 16; pair++)
          for (int64_t n = 0; n < 16; n++)
            for (int64_t half = 0; half < 2; half++)
              *out++ = weight[(group + tile * 16 + n) * along_n + (k + 2 * pair + half) * along_k];
  }
  return tiles;
}

static void tiles_for(int64_t rows) {
  struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } setting = {.palette = 1};
  for (int i = 0; i < 8; i++) setting.bytes[i] = 64, setting.rows[i] = (uint8_t)(i < 5 ? rows : 16);
  SETTLED;
  _tile_loadconfig(&setting);
}

// C (rows, N) float32 = A (rows, K) x the tiles; at most 16 rows
static void product(const uint16_t *a, int64_t lda, const uint16_t *tiles, int64_t K, int64_t N, float *c) {
  SETTLED;
  for (int64_t group = 0; group < N; group += 64) {
    int64_t count = N - group < 64 ? (N - group) / 16 : 4;
    const uint16_t *b = tiles + group * K;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < K; k += 32, b += 512 * count) {
      _tile_loadd(4, a + k, lda * 2);
      _tile_loadd(5, b, 64);
      _tile_dpbf16ps(0, 4, 5);
      if (count < 2) continue;
      _tile_loadd(6, b + 512, 64);
      _tile_dpbf16ps(1, 4, 6);
      if (count < 3) continue;
      _tile_loadd(7, b + 1024, 64);
      _tile_dpbf16ps(2, 4, 7);
      if (count < 4) continue;
      _tile_loadd(5, b + 1536, 64);
      _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, c + group, N * 4);
    if (count > 1) _tile_stored(1, c + group + 16, N * 4);
    if (count > 2) _tile_stored(2, c + group + 32, N * 4);
    if (count > 3) _tile_stored(3, c + group + 48, N * 4);
  }
  SETTLED;
}

// rows of one thread's share: at most a tile's, and as many threads busy as there are
static int64_t share(int64_t rows) {
  int64_t threads = omp_get_max_threads(), each = (rows + threads - 1) / threads;
  return each < 16 ? each : 16;
}

// the states of rows b0... before step t, those that begin anew as zeros
static const uint16_t *states(const Recurrence *m, int64_t t, int64_t before, int64_t b0, int64_t n, uint16_t *room) {
  const uint16_t *from = (const uint16_t *)m->hidden + (before * m->rows + b0) * m->width;
  if (!m->keep || !memchr(m->keep + t * m->rows + b0, 0, (size_t)n)) return from;
  for (int64_t r = 0; r < n; r++)
    if (m->keep[t * m->rows + b0 + r]) memcpy(room + r * m->width, from + r * m->width, (size_t)m->width * 2);
    else memset(room + r * m->width, 0, (size_t)m->width * 2);
  return room;
}

// 1: all steps are done; 0: this processor or these sizes leave them to the caller
int recurrence_loop(const Recurrence *m, const uint16_t *weight, int64_t steps, int reverse) {
  int64_t h = m->width, N = parts_of(m) * h, each = share(m->rows);
  if (!amx || !m->bf || h % 32) return 0;
  uint16_t *tiles = laid_out(weight, h, N, 1, h);
#pragma omp parallel for schedule(static, 1)
  for (int64_t b0 = 0; b0 < m->rows; b0 += each) {
    int64_t n = m->rows - b0 < each ? m->rows - b0 : each;
    float *sums = scratch((size_t)(n * N) * 4);
    uint16_t *room = scratch((size_t)(n * h) * 2);
    Recurrence mine = *m, *at = &mine;
    mine.recur = sums, mine.first = b0, mine.product_bf = 0;
    tiles_for(n);
    for (int64_t i = 0; i < steps; i++) {
      int64_t t = reverse ? steps - 1 - i : i, before = t + (reverse != 0), after = t + !reverse;
      product(states(m, t, before, b0, n, room), h, tiles, h, N, sums);
      for (int64_t b = b0; b < b0 + n; b++) {
        if (m->cell == LSTM) forward_row(at, b, t, before, after, LSTM, 1);
        else if (m->cell == GRU) forward_row(at, b, t, before, after, GRU, 1);
        else forward_row(at, b, t, before, after, VANILLA, 1);
      }
    }
    _tile_release();
    free(sums);
    free(room);
  }
  free(tiles);
  return 1;
}

int recurrence_loop_grad(const Recurrence *m, const uint16_t *weight, int64_t steps, int reverse) {
  int64_t h = m->width, parts = parts_of(m), K = parts * h, slots = m->cell == VANILLA ? 1 : 4, each = share(m->rows);
  if (!amx || !m->bf || h % 32) return 0;
  uint16_t *tiles = laid_out(weight, K, h, h, 1);
#pragma omp parallel for schedule(static, 1)
  for (int64_t b0 = 0; b0 < m->rows; b0 += each) {
    int64_t n = m->rows - b0 < each ? m->rows - b0 : each, behind = -1;
    float *back = scratch((size_t)(n * h) * 4);
    Recurrence mine = *m, *at = &mine;
    mine.back = back, mine.first = b0, mine.product_bf = 0;
    tiles_for(n);
    for (int64_t i = 0; i < steps; i++) {
      int64_t t = reverse ? i : steps - 1 - i, before = t + (reverse != 0), after = t + !reverse;
      const uint16_t *slopes = (const uint16_t *)m->gates + ((behind * m->rows + b0) * slots + slots - parts) * h;
      if (behind >= 0) product(slopes, slots * h, tiles, K, h, back);
      for (int64_t b = b0; b < b0 + n; b++) {
        if (m->cell == LSTM) backward_row(at, b, t, before, after, behind, LSTM, 1);
        else if (m->cell == GRU) backward_row(at, b, t, before, after, behind, GRU, 1);
        else backward_row(at, b, t, before, after, behind, VANILLA, 1);
      }
      behind = t;
    }
    _tile_release();
    free(back);
  }
  free(tiles);
  return 1;
}
#endif
