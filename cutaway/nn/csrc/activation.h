// The activations of feed-forwards and their slopes.
#pragma once
#include "vectors.h"

enum { SILU, GELU, GELU_TANH };
// 1 - erf(|x| / sqrt 2) is a polynomial times exp(-x^2 / 2), wrong by 1.5e-7 at most (Abramowitz and Stegun 7.1.26); the
// same exponential is the slope. y is the activation of a, and its slope goes to `slope`.
INLINE reg activation(reg a, reg *slope, int kind, int bf) {
  if (kind == SILU) {
    reg s = reg_inverse(reg_exp(-a) + 1.0f, bf), silu = a * s;
    *slope = s + silu * (1.0f - s);
    return silu;
  }
  if (kind == GELU_TANH) {  // 1 + tanh u is twice the sigmoid of 2 u
    reg square = a * a, u = a * (square * 0.0713548163f + 1.5957691216f);
    reg s = reg_inverse(reg_exp(-u) + 1.0f, bf), y = a * s;
    *slope = s + y * (1.0f - s) * (square * 0.2140644490f + 1.5957691216f);
    return y;
  }
  reg size = (reg)((ireg)a & 0x7fffffff);
  reg t = reg_inverse(size * 0.2316418882f + 1.0f, bf), e = reg_exp(a * a * -0.5f);
  reg tail = t * 0.5307027145f - 0.7265760135f;
  tail = tail * t + 0.7107068705f;
  tail = tail * t - 0.1422483680f;
  tail = (tail * t + 0.1274147960f) * t * e;  // of the normal distribution behind |a|
  reg share = if_below(a, 0, tail, 1.0f - tail);
  *slope = share + a * e * 0.3989422804f;
  return a * share;
}
