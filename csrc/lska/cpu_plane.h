// Convolutions of one NCHW plane by few taps, along its rows and down its columns, by vectors of kLanes
// neighbours in x: nothing is transposed, and all taps stay in registers.
//
// Loads fall wherever a tap falls, aligned or not. Down the columns the whole plane, row after row, is one
// line whose taps are W apart, so that only its end leaves a remainder. Every line has zeros before and after
// it, as far as taps and a vector more reach.
#pragma once

#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

// By value everywhere: a reference would be read again after every store.
template <typename A>
struct PlaneRows {
  A* data;
  int64_t pitch;
};
template <typename A>
struct PlaneTaps {
  const A* at;  // [k]
  int64_t step;
};

// out[i] = init + sum over t of taps[t] * in[i + (t - K / 2) * step] along rows of n. The last vector of a
// row is written whole: what it spills behind the row is the next row's, written later.
template <typename A, int K>
void plane_rows(PlaneRows<const A> in, int rows, int64_t n, PlaneTaps<A> taps, A init, PlaneRows<A> out) {
  constexpr int L = kLanes<A>;
  const Vec<A> start = broadcast(init);
  Vec<A> tap[K];
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) tap[t] = broadcast(taps.at[t]);
  for (int y = 0; y < rows; ++y) {
    const A* from = in.data + y * in.pitch - K / 2 * taps.step;
    A* to = out.data + y * out.pitch;
#pragma GCC unroll 2
    for (int64_t i = 0; i < n; i += L) {
      Vec<A> sum = start;
#pragma GCC unroll 8
      for (int t = 0; t < K; ++t) sum += tap[t] * load(from + i + t * taps.step);
      store(to + i, sum);
    }
  }
}

constexpr int kColumnsAtOnce = 4;  // vectors

// The same down the columns of a plane of n elements, each W below another. Sums start from init[i % W],
// readable kColumnsAtOnce vectors behind W; or from *init everywhere.
template <typename A, int K, bool Constant, typename S>
void plane_columns(const A* in, int64_t n, PlaneTaps<A> taps, const A* init, int64_t W, S* out) {
  constexpr int L = kLanes<A>, N = kColumnsAtOnce;
  Vec<A> tap[K];
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) tap[t] = broadcast(taps.at[t]);
  const A* from = in - K / 2 * taps.step;
  const int64_t ahead = Constant ? 0 : N * L % W;
  int64_t phase = 0;
  const auto sum_at = [&](int64_t i, int j) {
    Vec<A> sum = Constant ? broadcast(*init) : load(init + phase + j * L);
#pragma GCC unroll 8
    for (int t = 0; t < K; ++t) sum += tap[t] * load(from + i + j * L + t * taps.step);
    return sum;
  };
  int64_t i = 0;
  for (; i + N * L <= n; i += N * L) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(out + i + j * L, sum_at(i, j));
    phase += ahead;
    if (!Constant && phase >= W) phase -= W;
  }
  for (int j = 0; i + j * L < n; ++j) {
    const int64_t at = i + j * L, left = n - at;
    if (left >= L)
      store(out + at, sum_at(i, j));
    else
      store(out + at, sum_at(i, j), int(left));
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
