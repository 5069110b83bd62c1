// Kim's filters over words: the largest answer of each, learned from its window alone, or read without keeping any answer.
#include "product.h"

// y (rows, steps, count) -> the largest of each filter over a row's real tokens and where it stood; NaN stays
void filters_max(const void *y, const int32_t *documents, int64_t rows, int64_t steps, int64_t count, float *top,
                 int32_t *where, int bf) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    float *most = top + r * count;
    int32_t *at = where + r * count;
    for (int64_t i = 0; i < count; i++) most[i] = -INFINITY, at[i] = 0;
    for (int64_t t = 0; t < steps; t++) {
      if (documents && documents[r * steps + t] < 0) continue;
      int64_t from = (r * steps + t) * count, i = 0;
      for (; i + LANES <= count; i += LANES) {
        vec v = vec_in(y, from + i, bf), m = *(vec *)(most + i);
        ivec above = ~(v <= m) & (m == m), old = *(ivec *)(at + i);
        *(vec *)(most + i) = (vec)(((ivec)v & above) | ((ivec)m & ~above));
        *(ivec *)(at + i) = (((ivec){} + (int32_t)t) & above) | (old & ~above);
      }
      for (; i < count; i++) {
        float v = one_in(y, from + i, bf);
        if (!(v <= most[i]) && most[i] == most[i]) most[i] = v, at[i] = (int32_t)t;
      }
    }
  }
}

INLINE void add_scaled(float *to, float by, const void *from, int64_t at, int64_t n, int bf) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) *(vec *)(to + i) += by * vec_in(from, at + i, bf);
  for (; i < n; i++) to[i] += by * one_in(from, at + i, bf);
}

// The gradients of `own` filters of one width, of which the first is number `first` of `count`, whose windows begin `low`
// from their token. Only the window of the largest answer learns, so a row has one window a filter and not one a token.
// x (rows, steps, size) in either dtype, w and gw (own, width, size), gx (rows, steps, size), slope (rows, count).
void filters_grad(const void *x, int bf, const float *w, const int32_t *documents, const int32_t *where,
                  const float *slope, int64_t rows, int64_t steps, int64_t size, int64_t count, int64_t first,
                  int64_t own, int64_t low, int64_t width, float *gx, float *gw) {
#pragma omp parallel for schedule(static)
  for (int64_t f = 0; f < own; f++)
    for (int64_t r = 0; r < rows; r++) {
      float by = slope[r * count + first + f];
      int64_t t = where[r * count + first + f];
      if (by == 0) continue;
      for (int64_t j = 0; j < width; j++)
        if (reads(documents ? documents + r * steps : NULL, steps, t, t + low + j))
          add_scaled(gw + (f * width + j) * size, by, x, (r * steps + t + low + j) * size, size, bf);
    }
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++)
    for (int64_t f = 0; f < own; f++) {
      float by = slope[r * count + first + f];
      int64_t t = where[r * count + first + f];
      if (by == 0) continue;
      for (int64_t j = 0; j < width; j++)
        if (reads(documents ? documents + r * steps : NULL, steps, t, t + low + j))
          add_scaled(gx + (r * steps + t + low + j) * size, by, w, (f * width + j) * size, size, 0);
    }
}

// ---------------------------------------------------------------- reading
// filters w (own, taps, size) as the right side of a product: pair k of filter n at out[k * columns + n], a tap filled up
// with zeros to `ld` and the filters to `columns`
static void lay_filters(const float *w, int64_t own, int64_t taps, int64_t size, int64_t ld, int64_t columns, pair *out) {
#pragma omp parallel for schedule(static)
  for (int64_t j = 0; j < taps; j++)
    for (int64_t i = 0; i < ld; i += 2)
      for (int64_t n = 0; n < columns; n++) {
        const float *from = w + (n * taps + j) * size + i;
        pair low = n < own && i < size ? to_bf16(from[0]) : 0, high = n < own && i + 1 < size ? to_bf16(from[1]) : 0;
        out[(j * ld + i) / 2 * columns + n] = low | high << 16;
      }
}

// a document's words in bfloat16, with as many words of zeros before and behind it as a window may reach
static void words_in(const float *table, const int64_t *tokens, int64_t length, int64_t size, int64_t ld, int64_t before,
                     int64_t behind, uint16_t *out) {
  memset(out, 0, (size_t)(before * ld) * 2);
  for (int64_t t = 0; t < length; t++) {
    const float *from = table + tokens[t] * size;
    int64_t at = (before + t) * ld, i = 0;
    for (; i + LANES <= size; i += LANES) vec_out(out, at + i, *(const vec *)(from + i), 1);
    for (; i < size; i++) one_out(out, at + i, from[i], 1);
    for (; i < ld; i++) out[at + i] = 0;
  }
  memset(out + (before + length) * ld, 0, (size_t)(behind * ld) * 2);
}

// The largest of each filter's answers to each document, top (count, kinds * own); -inf for a document without words.
// Document d is the tokens starts[d] ... starts[d] + lengths[d] - 1. Windows lie one word apart in memory, so they are
// the rows of a product as they stand: nothing is copied side by side. table (V, size) float32; w[kind] (own, taps, size)
// for widths[kind] taps, of which (taps - 1) / 2 stand before the word.
void filters_read(const int64_t *tokens, const int64_t *starts, const int64_t *lengths, int64_t count, const float *table,
                  int64_t size, const float *const *w, const int64_t *widths, int64_t kinds, int64_t own, float *top) {
  int64_t ld = up32(size), columns = up32(own), widest = 0, longest = 0, taps = 0;
  for (int64_t k = 0; k < kinds; k++) taps += widths[k], widest = widths[k] > widest ? widths[k] : widest;
  for (int64_t d = 0; d < count; d++) longest = lengths[d] > longest ? lengths[d] : longest;
  int64_t before = (widest - 1) / 2, behind = widest + TILE_ROWS;
  pair *laid = scratch((size_t)(taps * ld / 2 * columns) * sizeof(pair)), *to = laid;
  for (int64_t k = 0; k < kinds; to += widths[k] * ld / 2 * columns, k++)
    lay_filters(w[k], own, widths[k], size, ld, columns, to);
#pragma omp parallel
  {
    uint16_t *words = scratch((size_t)((before + longest + behind) * ld) * 2);
    float *said = scratch((size_t)(TILE_ROWS * columns) * 4), *most = scratch((size_t)columns * 4);
    tiles_on();
#pragma omp for schedule(dynamic)
    for (int64_t d = 0; d < count; d++) {
      words_in(table, tokens + starts[d], lengths[d], size, ld, before, behind, words);
      const pair *filters = laid;
      for (int64_t k = 0; k < kinds; filters += widths[k] * ld / 2 * columns, k++) {
        for (int64_t n = 0; n < columns; n++) most[n] = -INFINITY;
        for (int64_t t = 0; t < lengths[d]; t += TILE_ROWS) {
          int64_t rows = lengths[d] - t < TILE_ROWS ? lengths[d] - t : TILE_ROWS;
          product(rows_of_product(rows), columns, widths[k] * ld / 2, words + (before - (widths[k] - 1) / 2 + t) * ld, ld,
                  filters, columns, said, columns, 0);
          for (int64_t r = 0; r < rows; r++)
            for (int64_t n = 0; n < columns; n += LANES) {
              vec v = *(vec *)(said + r * columns + n), m = *(vec *)(most + n);
              ivec above = ~(v <= m) & (m == m);  // NaN stays
              *(vec *)(most + n) = (vec)(((ivec)v & above) | ((ivec)m & ~above));
            }
        }
        memcpy(top + (d * kinds + k) * own, most, (size_t)own * 4);
      }
    }
    tiles_off();
    free(words);
    free(said);
    free(most);
  }
  free(laid);
}
