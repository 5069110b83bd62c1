// Kernels that touch each number once or twice: residual addition + RMS norm, SwiGLU, cross-entropy.
#include "vectors.h"

// ---------------------------------------------------------------- residual addition + RMS norm
void add_rms_norm(const float *x, const void *delta, int delta_bf, const float *w, float eps, int64_t rows, int64_t d,
                  float *total, void *y, int y_bf, float *scale) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const float *xr = x + r * d;
    float *tr = total + r * d;
    vec acc = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES) {
      vec v = *(const vec *)(xr + i);
      if (delta) {
        v += vec_in(delta, r * d + i, delta_bf);
        *(vec *)(tr + i) = v;
      }
      acc += v * v;
    }
    for (; i < d; i++) {
      float v = xr[i];
      if (delta) tr[i] = v += one_in(delta, r * d + i, delta_bf);
      rest += v * v;
    }
    const float *src = delta ? tr : xr;
    float s = 1.0f / sqrtf((vec_sum(acc) + rest) / (float)d + eps);
    scale[r] = s;
    for (i = 0; i + LANES <= d; i += LANES) vec_out(y, r * d + i, *(const vec *)(src + i) * s * *(const vec *)(w + i), y_bf);
    for (; i < d; i++) one_out(y, r * d + i, src[i] * s * w[i], y_bf);
  }
}

// grad_w is the sum over threads in their order, so a fixed number of threads gives equal bits
void add_rms_norm_grad(const float *total, const float *w, const float *scale, const void *gy, int y_bf,
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
      float s = scale[r], dot = 0;
      vec acc = {};
      int64_t i = 0;
      for (; i + LANES <= d; i += LANES) {
        vec g = vec_in(gy, r * d + i, y_bf), x = *(const vec *)(xr + i);
        *(vec *)(mine + i) += g * x * s;
        acc += g * *(const vec *)(w + i) * x;
      }
      for (; i < d; i++) {
        float g = one_in(gy, r * d + i, y_bf);
        mine[i] += g * xr[i] * s;
        dot += g * w[i] * xr[i];
      }
      float back = (vec_sum(acc) + dot) * s * s * s / (float)d;
      for (i = 0; i + LANES <= d; i += LANES) {
        vec g = vec_in(gy, r * d + i, y_bf) * *(const vec *)(w + i) * s - *(const vec *)(xr + i) * back;
        if (gtotal) g += *(const vec *)(gtotal + r * d + i);
        *(vec *)(gx + r * d + i) = g;
        if (gdelta) vec_out(gdelta, r * d + i, g, delta_bf);
      }
      for (; i < d; i++) {
        float g = one_in(gy, r * d + i, y_bf) * w[i] * s - xr[i] * back;
        if (gtotal) g += gtotal[r * d + i];
        gx[r * d + i] = g;
        if (gdelta) one_out(gdelta, r * d + i, g, delta_bf);
      }
    }
  }
  memset(gw, 0, (size_t)d * 4);
  for (int t = 0; t < threads; t++)
    for (int64_t i = 0; i < d; i++) gw[i] += part[(int64_t)t * d + i];
  free(part);
}

// ---------------------------------------------------------------- SwiGLU
void swiglu(const void *gate_up, int64_t rows, int64_t inner, void *y, int bf) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    int64_t g = r * 2 * inner, u = g + inner, o = r * inner, i = 0;
    for (; i + LANES <= inner; i += LANES) {
      vec a = vec_in(gate_up, g + i, bf), b = vec_in(gate_up, u + i, bf);
      vec_out(y, o + i, a * vec_inverse(vec_exp(-a) + 1.0f, bf) * b, bf);
    }
    for (; i < inner; i++) {
      float a = one_in(gate_up, g + i, bf);
      one_out(y, o + i, a / (expf(-a) + 1.0f) * one_in(gate_up, u + i, bf), bf);
    }
  }
}

void swiglu_grad(const void *gate_up, const void *gy, int64_t rows, int64_t inner, void *out, int bf) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    int64_t g = r * 2 * inner, u = g + inner, o = r * inner, i = 0;
    for (; i + LANES <= inner; i += LANES) {
      vec a = vec_in(gate_up, g + i, bf), b = vec_in(gate_up, u + i, bf), d = vec_in(gy, o + i, bf);
      vec s = vec_inverse(vec_exp(-a) + 1.0f, bf), silu = a * s;
      vec_out(out, u + i, d * silu, bf);
      vec_out(out, g + i, d * b * (s + silu * (1.0f - s)), bf);
    }
    for (; i < inner; i++) {
      float a = one_in(gate_up, g + i, bf), b = one_in(gate_up, u + i, bf), d = one_in(gy, o + i, bf);
      float s = 1.0f / (expf(-a) + 1.0f), silu = a * s;
      one_out(out, u + i, d * silu, bf);
      one_out(out, g + i, d * b * (s + silu * (1.0f - s)), bf);
    }
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
      vec top = (vec){} - INFINITY;
      float most = -INFINITY;
      for (; i + LANES <= v; i += LANES) {
        vec x = vec_in(logits, at + i, bf);
        *(vec *)(row + i) = x;
        ivec above = x > top;
        top = (vec)(((ivec)x & above) | ((ivec)top & ~above));
      }
      for (; i < v; i++) {
        row[i] = one_in(logits, at + i, bf);
        if (row[i] > most) most = row[i];
      }
      for (int l = 0; l < LANES; l++)
        if (top[l] > most) most = top[l];
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
