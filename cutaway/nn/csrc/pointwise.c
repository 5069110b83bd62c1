// Kernels that touch each number once or twice: residual addition + norm, gated activations, cross-entropy.
#include "activation.h"
#include "norm.h"
#define FEW (1 << 14)  // numbers that one thread goes through sooner than it wakes another

// ---------------------------------------------------------------- residual addition + norm
// `center`: the mean is taken away first (layer norm); otherwise (RMS norm) `middle` is neither read nor written.
// `shift` is added to the result; `tr` keeps the sum, or where `post` the result
void add_norm(const float *x, const void *delta, int delta_bf, const float *w, const float *shift, float eps, int64_t rows,
              int64_t d, float *total, void *y, int y_bf, float *scale, float *middle, int post) {
#pragma omp parallel for schedule(static) if (rows * d > FEW)
  for (int64_t r = 0; r < rows; r++) {
    const float *xr = x + r * d;
    float *tr = total + r * d;
    if (middle) add_norm_row(xr, delta, r * d, delta_bf, w, shift, eps, d, tr, y, y_bf, scale + r, middle + r, 1, post);
    else add_norm_row(xr, delta, r * d, delta_bf, w, shift, eps, d, tr, y, y_bf, scale + r, NULL, 0, post);
  }
}

INLINE void add_norm_grad_row(const float *xr, const float *w, float s, float mean, const void *gy, int64_t at, int y_bf,
                              const float *gtotal, int64_t d, float *gx, void *gdelta, int delta_bf, float *mine,
                              int center) {
  float dot = 0, sum = 0;
  vec acc = {}, sums = {};
  int64_t i = 0;
  for (; i + LANES <= d; i += LANES) {
    vec g = vec_in(gy, at + i, y_bf), x = *(const vec *)(xr + i);
    if (center) x -= mean;
    *(vec *)(mine + i) += g * x * s;
    acc += g * *(const vec *)(w + i) * x;
    if (center) sums += g * *(const vec *)(w + i);
  }
  for (; i < d; i++) {
    float g = one_in(gy, at + i, y_bf), x = center ? xr[i] - mean : xr[i];
    mine[i] += g * x * s;
    dot += g * w[i] * x;
    sum += g * w[i];
  }
  float back = (vec_sum(acc) + dot) * s * s * s / (float)d, even = center ? (vec_sum(sums) + sum) * s / (float)d : 0;
  for (i = 0; i + LANES <= d; i += LANES) {
    vec x = *(const vec *)(xr + i);
    if (center) x -= mean;
    vec g = vec_in(gy, at + i, y_bf) * *(const vec *)(w + i) * s - x * back;
    if (center) g -= even;
    if (gtotal) g += *(const vec *)(gtotal + at + i);
    *(vec *)(gx + at + i) = g;
    if (gdelta) vec_out(gdelta, at + i, g, delta_bf);
  }
  for (; i < d; i++) {
    float x = center ? xr[i] - mean : xr[i], g = one_in(gy, at + i, y_bf) * w[i] * s - x * back - even;
    if (gtotal) g += gtotal[at + i];
    gx[at + i] = g;
    if (gdelta) one_out(gdelta, at + i, g, delta_bf);
  }
}

// grad_w is the sum over threads in their order, so a fixed number of threads gives equal bits
void add_norm_grad(const float *total, const float *w, const float *scale, const float *middle, const void *gy, int y_bf,
                   const float *gtotal, int64_t rows, int64_t d, float *gx, void *gdelta, int delta_bf, float *gw) {
  int threads = omp_get_max_threads();
  float *part = scratch((size_t)(threads * d) * 4);
  memset(part, 0, (size_t)(threads * d) * 4);
#pragma omp parallel num_threads(threads)
  {
    float *mine = part + omp_get_thread_num() * d;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const float *xr = total + r * d;
      if (middle) add_norm_grad_row(xr, w, scale[r], middle[r], gy, r * d, y_bf, gtotal, d, gx, gdelta, delta_bf, mine, 1);
      else add_norm_grad_row(xr, w, scale[r], 0, gy, r * d, y_bf, gtotal, d, gx, gdelta, delta_bf, mine, 0);
    }
  }
  memset(gw, 0, (size_t)d * 4);
  for (int t = 0; t < threads; t++)
    for (int64_t i = 0; i < d; i++) gw[i] += part[(int64_t)t * d + i];
  free(part);
}

// ---------------------------------------------------------------- gates: SwiGLU and GEGLU
INLINE void gate_row(const void *gate_up, int64_t g, int64_t inner, void *y, int64_t o, int bf, int kind) {
  int64_t u = g + inner, i = 0;
  reg slope;
  for (; i + WIDE <= inner; i += WIDE) {
    reg a = reg_in(gate_up, g + i, bf);
    reg_out(y, o + i, activation(a, &slope, kind, bf) * reg_in(gate_up, u + i, bf), bf);
  }
  for (; i < inner; i++) {
    reg a = reg_all(one_in(gate_up, g + i, bf));
    one_out(y, o + i, activation(a, &slope, kind, bf)[0] * one_in(gate_up, u + i, bf), bf);
  }
}

void gated(const void *gate_up, int64_t rows, int64_t inner, void *y, int bf, int kind) {
#pragma omp parallel for schedule(static) if (rows * inner > FEW / 2)
  for (int64_t r = 0; r < rows; r++) {
    int64_t g = r * 2 * inner, o = r * inner;
    if (kind == SILU) gate_row(gate_up, g, inner, y, o, bf, SILU);
    else if (kind == GELU) gate_row(gate_up, g, inner, y, o, bf, GELU);
    else gate_row(gate_up, g, inner, y, o, bf, GELU_TANH);
  }
}

INLINE void gate_grad_row(const void *gate_up, int64_t g, int64_t inner, const void *gy, int64_t o, void *out, void *y,
                          int bf, int kind) {
  int64_t u = g + inner, i = 0;
  reg slope;
  for (; i + WIDE <= inner; i += WIDE) {
    reg a = reg_in(gate_up, g + i, bf), b = reg_in(gate_up, u + i, bf), d = reg_in(gy, o + i, bf);
    reg active = activation(a, &slope, kind, bf);
    if (y) reg_out(y, o + i, active * b, bf);
    reg_out(out, u + i, d * active, bf);
    reg_out(out, g + i, d * b * slope, bf);
  }
  for (; i < inner; i++) {
    reg a = reg_all(one_in(gate_up, g + i, bf));
    float b = one_in(gate_up, u + i, bf), d = one_in(gy, o + i, bf), active = activation(a, &slope, kind, bf)[0];
    if (y) one_out(y, o + i, active * b, bf);
    one_out(out, u + i, d * active, bf);
    one_out(out, g + i, d * b * slope[0], bf);
  }
}

// y, where it is not NULL, is what `gated` gave
void gated_grad(const void *gate_up, const void *gy, int64_t rows, int64_t inner, void *out, void *y, int bf, int kind) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    int64_t g = r * 2 * inner, o = r * inner;
    if (kind == SILU) gate_grad_row(gate_up, g, inner, gy, o, out, y, bf, SILU);
    else if (kind == GELU) gate_grad_row(gate_up, g, inner, gy, o, out, y, bf, GELU);
    else gate_grad_row(gate_up, g, inner, gy, o, out, y, bf, GELU_TANH);
  }
}

// ---------------------------------------------------------------- cross-entropy of a chunk of logits
// logits (n, V) become their own gradient, weight * (softmax - onehot); loss[r] = -weight * log softmax[target]
void cross_entropy(void *logits, int bf, const int64_t *target, const float *weight, int64_t n, int64_t v, float *loss,
                   int learning) {
#pragma omp parallel
  {
    float *row = scratch((size_t)up16(v) * 4);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; r++) {
      int64_t at = r * v, i = 0;
      vec top = (-INFINITY) - (vec){};
      float most = -INFINITY;
      for (; i + LANES <= v; i += LANES) {
        vec x = vec_in(logits, at + i, bf);
        *(vec *)(row + i) = x;
        top = vec_max(x, top);
      }
      for (; i < v; i++) {
        row[i] = one_in(logits, at + i, bf);
        if (row[i] > most) most = row[i];
      }
      if (vec_most(top) > most) most = vec_most(top);
      float chosen = row[target[r]];
      for (i = v; i < up16(v); i++) row[i] = -INFINITY;
      vec acc = {};
      for (i = 0; i < v; i += LANES) {
        vec e = vec_exp(*(vec *)(row + i) - most);
        *(vec *)(row + i) = e;
        acc += e;
      }
      float sum = vec_sum(acc), w = weight[r];
      loss[r] = w * (logf(sum) + most - chosen);
      if (!learning) continue;
      row[target[r]] -= sum;
      float scale = w / sum;
      for (i = 0; i + LANES <= v; i += LANES) vec_out(logits, at + i, *(vec *)(row + i) * scale, bf);
      for (; i < v; i++) one_out(logits, at + i, row[i] * scale, bf);
    }
    free(row);
  }
}
