// A product with a weight that was laid out once, and the room that it needs when its rows are read.
#pragma once
#include "beside.h"

enum { NOTHING = -1, RELU = 3 };          // beside activation.h's
enum { BFLOAT16, INT8_GROUPS, FLOAT32, INT4_BLOCKS };  // what the panels hold
typedef struct {
  int64_t K, N;          // a row is K numbers; N outputs, of which a gate makes N / 2
  const void *panels;
  const float *scales;   // (N, filled up to PANEL) of int8 weights
  const int32_t *sums;   // (panels, groups, PANEL): where the sums of int8 weights by a group of inputs begin
  const float *bias;     // (N, filled up) or NULL
  int kind, gated;       // gated: a panel holds 16 gates, then what they let through
  int precision;
  const Beside *beside;  // by the number of an adapter, or NULL
  int64_t rank;          // the most that one of them has
} Plan;

#define ALONE 8  // rows that every thread lays out for itself, which is sooner done than waited for
typedef struct {
  uint8_t *bytes;  // rows laid out in int8, of all threads
  float *scales;
  uint8_t *own;    // the same of this one
  float *own_scales;
  const int32_t *which;  // the adapter of each row, -1: none; NULL: no row has one
  float *inner;          // (M, the most ranks) what adapters make of rows, of all threads
  float *own_inner;      // the same of this one
} Room;
INLINE int in_bytes(const Plan *plan) { return plan->precision == INT8_GROUPS || plan->precision == INT4_BLOCKS; }
int64_t linear_bytes(int64_t K, int64_t M);   // that `bytes` needs for M rows
int64_t linear_scales(int64_t K, int64_t M);  // floats that `scales` needs
// x (M, K) in bfloat16 or float32 -> out (M, N), or (M, N / 2) behind a gate; `add`: to the float32 numbers that are
// there. Called by all threads of a region, which all are done when one comes back.
void linear_shared(const Plan *plan, const void *x, int x_bf, int64_t M, void *out, int out_bf, int add,
                   const Room *room);
