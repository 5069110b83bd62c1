// All layers of a decoder in one parallel region: what some sequences read now, one behind another, against their pages.
// A call for a token instead of two hundred; threads meet five or six times a layer.
#include "linear.h"
#include "norm.h"
#include "paged.h"

typedef struct { const float *weight, *bias; } Scale;  // of a norm; no weight: there is none
typedef struct {
  Scale first, mixed, second, fed;  // before attention and behind it, before the feed-forward and behind it
  Plan qkv, out, up, down;
  Look look;
} Layer;
typedef struct {
  int64_t layers, width;
  float eps;
  int center, bf;                   // whether norms take the mean away, and what products read is bfloat16
  const Layer *layer;
  Scale last;
} Net;

static ONCE void norm_row(const Net *net, const Scale *scale, const float *x, float *total, void *y, int64_t at, int bf) {
  float by, middle;
  if (!scale->weight)
    for (int64_t i = 0; i < net->width; i++) one_out(y, at + i, x[i], bf);
  else add_norm_row(x, NULL, at, 0, scale->weight, scale->bias, net->eps, net->width, total, y, bf, &by, &middle, net->center, 0);
}
// x (M, width) -> y; few rows each thread normalises for itself, into its own
static void *normed(const Net *net, const Scale *scale, float *x, int64_t M, void *shared, void *own) {
  if (M <= ALONE) {
    for (int64_t m = 0; m < M; m++) norm_row(net, scale, x + m * net->width, NULL, own, m * net->width, net->bf);
    return own;
  }
#pragma omp for schedule(static)
  for (int64_t m = 0; m < M; m++) norm_row(net, scale, x + m * net->width, NULL, shared, m * net->width, net->bf);
  return shared;
}
// x += the product of y, or its norm
static void added(const Net *net, const Plan *plan, const Scale *after, const void *y, int64_t M, float *x, float *between,
                  const Room *room) {
  if (!after->weight) {
    linear_shared(plan, y, net->bf, M, x, 0, 1, room);
    return;
  }
  linear_shared(plan, y, net->bf, M, between, 0, 0, room);
#pragma omp for schedule(static)
  for (int64_t m = 0; m < M; m++) {
    float *row = between + m * net->width;
    norm_row(net, after, row, NULL, row, 0, 0);
    for (int64_t i = 0; i < net->width; i++) x[m * net->width + i] += row[i];
  }
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static void reserve(const Net *net, int64_t M, int64_t *bytes, int64_t *scales, int64_t *ranks, int64_t *qkv, int64_t *mixed,
                    int64_t *inner) {
  *bytes = *scales = *ranks = *qkv = *mixed = *inner = 0;
  for (int64_t l = 0; l < net->layers; l++) {
    const Layer *L = net->layer + l;
    const Plan *plans[] = {&L->qkv, &L->out, &L->up, &L->down};
    for (int i = 0; i < 4; i++) {
      *ranks = most(*ranks, M * plans[i]->rank);
      if (!in_bytes(plans[i])) continue;
      *bytes = most(*bytes, linear_bytes(plans[i]->K, M));
      *scales = most(*scales, linear_scales(plans[i]->K, M));
    }
    *qkv = most(*qkv, L->qkv.N), *mixed = most(*mixed, L->out.K), *inner = most(*inner, L->down.K);
  }
}

// the adapter of each token
static void spread(const Ragged *ragged, int32_t *which) {
  for (int64_t p = 0; p < ragged->parts; p++)
    for (int64_t m = ragged->begins[p]; m < ragged->begins[p + 1]; m++) which[m] = ragged->adapters[p];
}

// x (tokens, width) float32, which is used up; out (outputs, width) what the head reads
void step(const Net *net, const Ragged *ragged, float *x, void *out) {
  int64_t M = ragged->tokens, size = net->bf ? 2 : 4, bytes, scales, ranks, wide, heads, inner, room = 0;
  reserve(net, M, &bytes, &scales, &ranks, &wide, &heads, &inner);
  for (int64_t l = 0; l < net->layers; l++) room = most(room, paged_room(&net->layer[l].look, ragged));
  int64_t few = M < ALONE ? M : ALONE;
  char *shared_h = scratch((size_t)(M * net->width * size)), *qkv = scratch((size_t)(M * wide * size));
  char *mixed = scratch((size_t)(M * heads * size)), *fed = scratch((size_t)(M * inner * size));
  float *between = scratch((size_t)(M * net->width) * 4);
  int64_t *units = scratch((size_t)(ragged->parts + 1) * 8);
  Room all = {.bytes = scratch((size_t)bytes), .scales = scratch((size_t)scales * 4)};
  int32_t *which = ragged->adapters && ranks ? scratch((size_t)M * 4) : NULL;
  if (which) spread(ragged, which), all.which = which, all.inner = scratch((size_t)ranks * 4);
  paged_units(&net->layer->look, ragged, units);
#pragma omp parallel
  {
    Room mine = all;
    mine.own = scratch((size_t)(bytes / M * few));
    mine.own_scales = scratch((size_t)(scales / M * few) * 4);
    if (which) mine.own_inner = scratch((size_t)(ranks / M * few) * 4);
    void *own = scratch((size_t)(few * net->width * size));
    float *own_room = scratch((size_t)room * 4);
    for (int64_t l = 0; l < net->layers; l++) {
      const Layer *L = net->layer + l;
      void *h = normed(net, &L->first, x, M, shared_h, own);
      linear_shared(&L->qkv, h, net->bf, M, qkv, net->bf, 0, &mine);
      paged_shared(&L->look, ragged, qkv, mixed, units, own_room);
      added(net, &L->out, &L->mixed, mixed, M, x, between, &mine);
      h = normed(net, &L->second, x, M, shared_h, own);
      linear_shared(&L->up, h, net->bf, M, fed, net->bf, 0, &mine);
      added(net, &L->down, &L->fed, fed, M, x, between, &mine);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < ragged->outputs; i++)
      norm_row(net, &net->last, x + ragged->wanted[i] * net->width, NULL, out, i * net->width, net->bf);
    free(mine.own);
    free(mine.own_scales);
    free(mine.own_inner);
    free(own);
    free(own_room);
  }
  free(shared_h), free(qkv), free(mixed), free(fed), free(between), free(units), free(all.bytes), free(all.scales);
  free(which), free(all.inner);
}
