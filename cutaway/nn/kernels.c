// Fused CPU kernels of a transformer's training step. Plain C with GCC/Clang vector extensions: the compiler turns a
// 16-float vector into one AVX-512 register, two AVX ones or four of SSE/NEON. float32 arithmetic throughout;
// tensors are float32 or bfloat16 (flag `bf`), and every function is checked against PyTorch in tests/parity.
//
// B rows, T tokens, H query heads, G key/value heads, D head size.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t half16 __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4)));
#define INLINE static inline __attribute__((always_inline))

INLINE int64_t up16(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
INLINE float one_in(const void *p, int64_t i, int bf) {
  if (!bf) return ((const float *)p)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
INLINE uint16_t to_bf16(float f) {  // round to nearest even; NaN stays NaN
  uint32_t b;
  memcpy(&b, &f, 4);
  if (f != f) return (uint16_t)((b >> 16) | 0x40);
  return (uint16_t)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
INLINE void one_out(void *p, int64_t i, float f, int bf) {
  if (bf) ((uint16_t *)p)[i] = to_bf16(f);
  else ((float *)p)[i] = f;
}
INLINE vec vec_in(const void *p, int64_t i, int bf) {
  if (!bf) return *(const vec *)((const float *)p + i);
  uvec bits = __builtin_convertvector(*(const half16 *)((const uint16_t *)p + i), uvec) << 16;
  return (vec)bits;
}
INLINE void vec_out(void *p, int64_t i, vec v, int bf) {
  if (!bf) {
    *(vec *)((float *)p + i) = v;
    return;
  }
  uvec b = (uvec)v, nan = (uvec)(v != v);
  uvec r = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  r = (r & ~nan) | (((b >> 16) | 0x40) & nan);
  *(half16 *)((uint16_t *)p + i) = __builtin_convertvector(r, half16);
}
INLINE float vec_sum(vec v) {
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}
// exp to 2 ulp (Cephes' polynomial); NaN passes through, below -87 it is 0
INLINE vec vec_exp(vec x) {
  vec low = (vec){} - 87.3f, high = (vec){} + 88.3f;
  ivec small = x < low, big = x > high;
  vec c = (vec)(((ivec)x & ~(small | big)) | ((ivec)low & small) | ((ivec)high & big));
  vec n = c * 1.44269504f + 12582912.0f;
  ivec e = (ivec)n << 23;
  n -= 12582912.0f;
  vec r = c - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  p = (vec)((ivec)p + e);
  return (vec)((ivec)p & ~small);
}

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
  float *part = calloc((size_t)threads * d, 4);
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
      vec_out(y, o + i, a / (vec_exp(-a) + 1.0f) * b, bf);
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
      vec s = 1.0f / (vec_exp(-a) + 1.0f), silu = a * s;
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
    float *row = malloc((size_t)up16(v) * 4);
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

// ---------------------------------------------------------------- attention
// C[m][n] (+)= sum_k A[m * am + k * ak] * B[k * ldb + n]; n runs in whole vectors
#define MICRO(MR, NV)                                                                                              \
  {                                                                                                                \
    vec acc[MR][NV];                                                                                               \
    for (int i = 0; i < MR; i++)                                                                                   \
      for (int j = 0; j < NV; j++) acc[i][j] = add ? *(vec *)(c + (m + i) * ldc + n + j * LANES) : (vec){};        \
    for (int64_t k = 0; k < K; k++) {                                                                              \
      vec b[NV];                                                                                                   \
      for (int j = 0; j < NV; j++) b[j] = *(const vec *)(B + k * ldb + n + j * LANES);                             \
      for (int i = 0; i < MR; i++) {                                                                               \
        float a = A[(m + i) * am + k * ak];                                                                        \
        for (int j = 0; j < NV; j++) acc[i][j] += a * b[j];                                                        \
      }                                                                                                            \
    }                                                                                                              \
    for (int i = 0; i < MR; i++)                                                                                   \
      for (int j = 0; j < NV; j++) *(vec *)(c + (m + i) * ldc + n + j * LANES) = acc[i][j];                        \
  }

INLINE void product(int64_t M, int64_t N, int64_t K, const float *A, int64_t am, int64_t ak, const float *B, int64_t ldb,
                    float *c, int64_t ldc, int add) {
  for (int64_t n = 0; n < N;) {
    int64_t m = 0;
    if (n + 2 * LANES <= N) {
      for (; m + 8 <= M; m += 8) MICRO(8, 2)
      for (; m + 4 <= M; m += 4) MICRO(4, 2)
      for (; m < M; m++) MICRO(1, 2)
      n += 2 * LANES;
    } else {
      for (; m + 8 <= M; m += 8) MICRO(8, 1)
      for (; m < M; m++) MICRO(1, 1)
      n += LANES;
    }
  }
}

// one head of one row into float32, turned by its rotary angle; `sign` -1 turns back
INLINE void rotary_in(const void *src, int64_t stride, int64_t T, int64_t D, int64_t ld, const float *cosines,
                      const float *sines, float scale, float *dst, int bf) {
  int64_t half = D / 2;
  for (int64_t t = 0; t < T; t++) {
    for (int64_t i = 0; i < half; i++) {
      float a = one_in(src, t * stride + i, bf), b = one_in(src, t * stride + half + i, bf);
      float cs = cosines[t * half + i], sn = sines[t * half + i];
      dst[t * ld + i] = (a * cs - b * sn) * scale;
      dst[t * ld + half + i] = (b * cs + a * sn) * scale;
    }
    for (int64_t i = D; i < ld; i++) dst[t * ld + i] = 0;
  }
}
INLINE void rotary_back(const float *src, int64_t ld, int64_t T, int64_t D, const float *cosines, const float *sines,
                        float scale, void *dst, int64_t stride, int bf) {
  int64_t half = D / 2;
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < half; i++) {
      float a = src[t * ld + i] * scale, b = src[t * ld + half + i] * scale;
      float cs = cosines[t * half + i], sn = sines[t * half + i];
      one_out(dst, t * stride + i, a * cs + b * sn, bf);
      one_out(dst, t * stride + half + i, b * cs - a * sn, bf);
    }
}
INLINE void plain_in(const void *src, int64_t stride, int64_t T, int64_t D, int64_t ld, float *dst, int bf) {
  for (int64_t t = 0; t < T; t++) {
    for (int64_t i = 0; i < D; i++) dst[t * ld + i] = one_in(src, t * stride + i, bf);
    for (int64_t i = D; i < ld; i++) dst[t * ld + i] = 0;
  }
}
INLINE void transpose(const float *src, int64_t T, int64_t D, int64_t ld, float *dst, int64_t ldt) {
  for (int64_t t = 0; t < T; t++)
    for (int64_t i = 0; i < D; i++) dst[i * ldt + t] = src[t * ld + i];
  for (int64_t i = 0; i < D; i++)
    for (int64_t t = T; t < ldt; t++) dst[i * ldt + t] = 0;
}

// softmax of a tile's rows over the keys [first[i], i] each query i may see; `from` is the tile's first key
INLINE void softmax_tile(float *s, int64_t lds, int64_t i0, int64_t rows, const int32_t *first, int64_t from, int64_t width) {
  for (int64_t r = 0; r < rows; r++) {
    float *p = s + r * lds;
    int64_t low = first[i0 + r] - from, high = i0 + r - from;  // inclusive
    for (int64_t j = 0; j < low; j++) p[j] = -INFINITY;
    for (int64_t j = high + 1; j < width; j++) p[j] = -INFINITY;
    int64_t start = low / LANES * LANES, stop = up16(high + 1);
    vec top = *(vec *)(p + start);
    for (int64_t j = start + LANES; j < stop; j += LANES) {
      vec x = *(vec *)(p + j);
      ivec above = x > top;
      top = (vec)(((ivec)x & above) | ((ivec)top & ~above));
    }
    float most = top[0];
    for (int l = 1; l < LANES; l++)
      if (top[l] > most) most = top[l];
    vec acc = {};
    for (int64_t j = start; j < stop; j += LANES) {
      vec e = vec_exp(*(vec *)(p + j) - most);
      *(vec *)(p + j) = e;
      acc += e;
    }
    float inverse = 1.0f / vec_sum(acc);
    for (int64_t j = start; j < stop; j += LANES) *(vec *)(p + j) *= inverse;
    for (int64_t j = 0; j < start; j++) p[j] = 0;
    for (int64_t j = stop; j < width; j++) p[j] = 0;
  }
}

#define TILE 32
typedef struct {
  int64_t B, T, H, G, D;
  int bf;
  const float *cosines, *sines;  // (B or 1, T, D / 2)
  int64_t rotary_stride;         // 0 where all rows share the angles
  const int32_t *first;          // (B, T): the first key each query sees
} Shape;

// The scratch of one thread, all float32: see the order in `carve`.
typedef struct { float *q, *k, *v, *kt, *vt, *go, *dq, *dk, *dv, *s, *dp; int64_t ld, ldt; float *base; } Room;
static Room carve(int64_t T, int64_t D) {
  Room r;
  r.ld = up16(D), r.ldt = up16(T) + LANES;
  int64_t flat = T * r.ld + LANES, turned = r.ld * r.ldt, tile = TILE * r.ldt;
  r.base = aligned_alloc(64, (size_t)((8 * up16(flat) + 2 * up16(turned) + 2 * up16(tile)) * 4));
  float *p = r.base;
  float **flats[] = {&r.q, &r.k, &r.v, &r.go, &r.dq, &r.dk, &r.dv};
  for (int i = 0; i < 7; i++) *flats[i] = p, p += up16(flat);
  r.kt = p, p += up16(turned), r.vt = p, p += up16(turned), r.s = p, p += up16(tile), r.dp = p;
  return r;
}

void attention(const Shape *shape, const void *qkv, void *out) {
  const Shape S = *shape;
  int64_t wide = (S.H + 2 * S.G) * S.D, group = S.H / S.G, esize = S.bf ? 2 : 4;
  float scale = 1.0f / sqrtf((float)S.D);
#pragma omp parallel
  {
    Room m = carve(S.T, S.D);
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G;
      const char *row = (const char *)qkv + b * S.T * wide * esize;
      const float *cs = S.cosines + b * S.rotary_stride, *sn = S.sines + b * S.rotary_stride;
      const int32_t *first = S.first + b * S.T;
      rotary_in(row + (S.H + g) * S.D * esize, wide, S.T, S.D, m.ld, cs, sn, 1, m.k, S.bf);
      transpose(m.k, S.T, S.D, m.ld, m.kt, m.ldt);
      plain_in(row + (S.H + S.G + g) * S.D * esize, wide, S.T, S.D, m.ld, m.v, S.bf);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in(row + h * S.D * esize, wide, S.T, S.D, m.ld, cs, sn, scale, m.q, S.bf);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE, from = first[i0] / LANES * LANES, last = i0 + rows;
          int64_t width = up16(last - from);
          product(rows, width, S.D, m.q + i0 * m.ld, m.ld, 1, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(m.s, m.ldt, i0, rows, first, from, width);
          product(rows, m.ld, last - from, m.s, m.ldt, 1, m.v + from * m.ld, m.ld, m.dq, m.ld, 0);
          char *dst = (char *)out + ((b * S.T + i0) * S.H + h) * S.D * esize;
          for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < S.D; i++) one_out(dst, r * S.H * S.D + i, m.dq[r * m.ld + i], S.bf);
        }
      }
    }
    free(m.base);
  }
}

// Everything is made again from qkv: nothing but the input is kept for the backward pass.
void attention_grad(const Shape *shape, const void *qkv, const void *gout, void *gqkv) {
  const Shape S = *shape;
  int64_t wide = (S.H + 2 * S.G) * S.D, group = S.H / S.G, esize = S.bf ? 2 : 4;
  float scale = 1.0f / sqrtf((float)S.D);
#pragma omp parallel
  {
    Room m = carve(S.T, S.D);
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, flat = S.T * m.ld;
      const char *row = (const char *)qkv + b * S.T * wide * esize;
      char *grow = (char *)gqkv + b * S.T * wide * esize;
      const float *cs = S.cosines + b * S.rotary_stride, *sn = S.sines + b * S.rotary_stride;
      const int32_t *first = S.first + b * S.T;
      rotary_in(row + (S.H + g) * S.D * esize, wide, S.T, S.D, m.ld, cs, sn, 1, m.k, S.bf);
      transpose(m.k, S.T, S.D, m.ld, m.kt, m.ldt);
      plain_in(row + (S.H + S.G + g) * S.D * esize, wide, S.T, S.D, m.ld, m.v, S.bf);
      transpose(m.v, S.T, S.D, m.ld, m.vt, m.ldt);
      memset(m.dk, 0, (size_t)flat * 4);
      memset(m.dv, 0, (size_t)flat * 4);
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in(row + h * S.D * esize, wide, S.T, S.D, m.ld, cs, sn, scale, m.q, S.bf);
        plain_in((const char *)gout + (b * S.T * S.H + h) * S.D * esize, S.H * S.D, S.T, S.D, m.ld, m.go, S.bf);
        for (int64_t i0 = 0; i0 < S.T; i0 += TILE) {
          int64_t rows = S.T - i0 < TILE ? S.T - i0 : TILE, from = first[i0] / LANES * LANES, last = i0 + rows;
          int64_t keys = last - from, width = up16(keys);
          product(rows, width, S.D, m.q + i0 * m.ld, m.ld, 1, m.kt + from, m.ldt, m.s, m.ldt, 0);
          softmax_tile(m.s, m.ldt, i0, rows, first, from, width);
          product(rows, width, S.D, m.go + i0 * m.ld, m.ld, 1, m.vt + from, m.ldt, m.dp, m.ldt, 0);
          product(keys, m.ld, rows, m.s, 1, m.ldt, m.go + i0 * m.ld, m.ld, m.dv + from * m.ld, m.ld, 1);
          for (int64_t r = 0; r < rows; r++) {  // dS = P (dP - sum P dP)
            float *p = m.s + r * m.ldt, *d = m.dp + r * m.ldt;
            vec acc = {};
            for (int64_t j = 0; j < width; j += LANES) acc += *(vec *)(p + j) * *(vec *)(d + j);
            float mean = vec_sum(acc);
            for (int64_t j = 0; j < width; j += LANES) *(vec *)(d + j) = *(vec *)(p + j) * (*(vec *)(d + j) - mean);
          }
          product(rows, m.ld, keys, m.dp, m.ldt, 1, m.k + from * m.ld, m.ld, m.dq + i0 * m.ld, m.ld, 0);
          product(keys, m.ld, rows, m.dp, 1, m.ldt, m.q + i0 * m.ld, m.ld, m.dk + from * m.ld, m.ld, 1);
        }
        rotary_back(m.dq, m.ld, S.T, S.D, cs, sn, scale, grow + h * S.D * esize, wide, S.bf);
      }
      rotary_back(m.dk, m.ld, S.T, S.D, cs, sn, 1, grow + (S.H + g) * S.D * esize, wide, S.bf);
      for (int64_t t = 0; t < S.T; t++)
        for (int64_t i = 0; i < S.D; i++)
          one_out(grow + (S.H + S.G + g) * S.D * esize, t * wide + i, m.dv[t * m.ld + i], S.bf);
    }
    free(m.base);
  }
}

// ---------------------------------------------------------------- one token a row against its cache
// Turns the new key and query by their angle, appends key and value at the row's length, and attends over all of them.
// caches are (B, G, capacity, D); qkv (B, (H + 2 G) D); S.T is the capacity, S.cosines and sines the whole table.
void attention_step(const Shape *shape, const void *qkv, void *keys, void *values, const int64_t *lengths, void *out) {
  const Shape S = *shape;
  int64_t wide = (S.H + 2 * S.G) * S.D, group = S.H / S.G, esize = S.bf ? 2 : 4, half = S.D / 2, ld = up16(S.D);
  float scale = 1.0f / sqrtf((float)S.D);
#pragma omp parallel
  {
    float *room = aligned_alloc(64, (size_t)(up16(S.T) + 3 * ld) * 4);
    float *p = room, *q = room + up16(S.T), *k = q + ld, *o = k + ld;
#pragma omp for schedule(static)
    for (int64_t bg = 0; bg < S.B * S.G; bg++) {
      int64_t b = bg / S.G, g = bg % S.G, n = lengths[b] + 1;
      const char *row = (const char *)qkv + b * wide * esize;
      const float *cs = S.cosines + lengths[b] * half, *sn = S.sines + lengths[b] * half;
      char *kc = (char *)keys + bg * S.T * S.D * esize, *vc = (char *)values + bg * S.T * S.D * esize;
      rotary_in(row + (S.H + g) * S.D * esize, wide, 1, S.D, ld, cs, sn, 1, k, S.bf);
      for (int64_t i = 0; i < S.D; i++) one_out(kc, lengths[b] * S.D + i, k[i], S.bf);
      memcpy(vc + lengths[b] * S.D * esize, row + (S.H + S.G + g) * S.D * esize, (size_t)(S.D * esize));
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        rotary_in(row + h * S.D * esize, wide, 1, S.D, ld, cs, sn, scale, q, S.bf);
        float most = -INFINITY;
        for (int64_t j = 0; j < n; j++) {
          vec acc = {};
          float dot = 0;
          int64_t i = 0;
          for (; i + LANES <= S.D; i += LANES) acc += *(vec *)(q + i) * vec_in(kc, j * S.D + i, S.bf);
          for (; i < S.D; i++) dot += q[i] * one_in(kc, j * S.D + i, S.bf);
          p[j] = dot + vec_sum(acc);
          if (p[j] > most) most = p[j];
        }
        for (int64_t j = n; j < up16(n); j++) p[j] = -INFINITY;
        vec acc = {};
        for (int64_t j = 0; j < n; j += LANES) {
          vec e = vec_exp(*(vec *)(p + j) - most);
          *(vec *)(p + j) = e;
          acc += e;
        }
        float inverse = 1.0f / vec_sum(acc);
        memset(o, 0, (size_t)ld * 4);
        for (int64_t j = 0; j < n; j++) {
          int64_t i = 0;
          for (; i + LANES <= S.D; i += LANES) *(vec *)(o + i) += p[j] * vec_in(vc, j * S.D + i, S.bf);
          for (; i < S.D; i++) o[i] += p[j] * one_in(vc, j * S.D + i, S.bf);
        }
        for (int64_t i = 0; i < S.D; i++) one_out(out, (b * S.H + h) * S.D + i, o[i] * inverse, S.bf);
      }
    }
    free(room);
  }
}
