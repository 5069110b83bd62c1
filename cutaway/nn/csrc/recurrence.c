// One step of a recurrent layer for all rows, forward and back: what stands between two matrix products of its loop.
// Gates of a row, each of `width` numbers: vanilla h; LSTM i f g o; GRU n r z q (q is the state's share of n). The
// input fills h, i f g o, n r z; the state's product `recur` belongs to h, i f g o, r z q.
#include "vectors.h"

enum { VANILLA, GRU, LSTM };

typedef struct {
  int64_t rows, width;
  int cell, bf;
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
  int64_t g = (t * m->rows + b) * slots * h, r = b * parts * h;
  int64_t from = (before * m->rows + b) * h, to = (after * m->rows + b) * h;
  float kept = !m->keep || m->keep[t * m->rows + b] ? 1.0f : 0.0f;
  for (int64_t i = 0; i < h; i += LANES) {
    int64_t n = h - i;
#define GATE(k) take(m->gates, g + (k) * h + i, n, bf)
#define STATE(k) take(m->recur, r + (k) * h + i, n, bf)
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
    if (returned) d += take(m->back, row + i, n, bf);
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
