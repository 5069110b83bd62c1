// Keys and values in pages of 16 tokens, and attention over them. A page of a key/value head holds its keys as (D, 16),
// so that sixteen scores are one chain of products, and its values as (16, D).
#pragma once
#include "vectors.h"

#define PAGE LANES
typedef struct {
  int64_t parts, tokens, outputs;     // sequences that read something now, what they read in all, states wanted of it
  const int32_t *begins;              // (parts + 1) where each one's tokens begin
  const int32_t *before;              // (parts) tokens of it that lie in its pages already
  const int32_t *pages;               // (parts, width)
  int64_t width;
  const int32_t *wanted;              // (outputs) tokens whose last state is wanted
  const int32_t *adapters;            // (parts) the adapter of each one, -1: none; NULL: none of them has one
} Ragged;
typedef struct {
  int64_t H, G, D;                    // D is a multiple of 16
  int bf, cache_bf;                   // whether rows and pages are bfloat16
  float scale, eps;
  const float *query_norm, *key_norm; // (D) or NULL
  const float *cosines, *sines;       // (context, D / 2) or NULL
  int64_t window;                     // how many tokens one sees, itself counted; 0: all
  void *keys, *values;                // (pages, G, D, 16) and (pages, G, 16, D)
} Look;
// Appends the keys and values of qkv (tokens, (H + 2 G) D) to the pages and writes what each token sees to out (tokens,
// H D). A token's bits depend on what it sees alone, as long as all numbers are: a share of 0 of what is none is none.
// Called by all threads of a region; `units` is paged_units' answer.
void paged_shared(const Look *look, const Ragged *ragged, const void *qkv, void *out, const int64_t *units, float *room);
void paged_units(const Look *look, const Ragged *ragged, int64_t *units);  // (parts + 1)
int64_t paged_room(const Look *look, const Ragged *ragged);                 // floats that a thread needs
