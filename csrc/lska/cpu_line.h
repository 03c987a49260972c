// The one loop behind every stage of the cascade: a convolution along a line of vectors, and its tap
// gradients.
//
// A vector holds one pixel of kLanes neighbouring channels, so taps are vectors too, every access is aligned,
// and no width leaves a remainder. A row of the map is a line; a strip of V columns, laid out row after row,
// is also one: a step down is V vectors. Lines have kPad zero vectors before and after them. Whole blocks of
// outputs skip the taps that would only read zeros, so the pads need no more than one block: maps smaller
// than the kernel are cheap and a tap that never touches data costs nothing.
#pragma once

#include "csrc/common/simd.h"

namespace lska_ops::LSKA_OPS_ISA {

constexpr int kBlock = 12;  // outputs kept in registers: 12 and one tap, of AVX2's 16
constexpr int kPad =
    16;  // at least kBlock, and at least the lanes of a vector: rows are loaded in such groups

template <typename A>
struct Line {
  const Vec<A>* in;
  int n;
  const Vec<A>* taps;  // [k], one channel per lane
  int k, step;
  const Vec<A>*
      init;  // what a sum starts from: init[i % period], readable kBlock beyond; period 0 is a constant
  int period;
};

// The taps that reach data from outputs i ... i + N - 1: all of them, but for blocks near the ends of a line.
struct TapRange {
  int first, last;
  TapRange(int i, int N, int n, int k, int step) : first(0), last(k) {
    const int reach = k / 2 * step;
    if (i >= reach && i + N <= n - reach) return;
    while (i + N - 1 + first * step < reach) ++first;
    while (i + (last - 1) * step >= n + reach) --last;
  }
};

template <typename A, int N>
void conv_blocks(const Line<A>& line, int from, int blocks, Vec<A>* out, ptrdiff_t out_step) {
  int phase = line.period ? from % line.period : 0;
  for (int b = 0; b < blocks; ++b, out += out_step) {
    const int i = from + b * N;
    const TapRange range(i, N, line.n, line.k, line.step);
    Vec<A> sum[N];
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) sum[j] = line.init[line.period ? phase + j : 0];
    const Vec<A>* in = line.in + i + ptrdiff_t(range.first - line.k / 2) * line.step;
    for (int t = range.first; t < range.last; ++t, in += line.step) {
      const Vec<A> tap = line.taps[t];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[j] += tap * in[j];
    }
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) out[j] = sum[j];
    if (line.period)
      for (phase += N; phase >= line.period;) phase -= line.period;
  }
}

// sums[t] += sum over i of d[i] * in[i + (t - k / 2) * step]: the gradient of the taps, d being the output's.
// The zeros around the line take no part: were d infinite or NaN beside them, so would be a sum over data
// that is not.
template <typename A, int N>
void tap_sum_blocks(const Line<A>& line, const Vec<A>* d, Vec<A>* sums, int from, int blocks) {
  for (int b = 0; b < blocks; ++b) {
    const int i = from + b * N;
    const TapRange range(i, N, line.n, line.k, line.step);
    Vec<A> grad[N];
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) grad[j] = d[i + j];
    int at = i + (range.first - line.k / 2) * line.step;
    for (int t = range.first; t < range.last; ++t, at += line.step) {
      const Vec<A>* in = line.in + at;
      Vec<A> sum[2] = {};
      if (at >= 0 && at + N <= line.n) {
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) sum[j % 2] += grad[j] * in[j];
      } else {
        int j = at < 0 ? -at : 0;
        const int end = at + N > line.n ? line.n - at : N;
        for (; j + 1 < end; j += 2) {
          sum[0] += d[i + j] * in[j];
          sum[1] += d[i + j + 1] * in[j + 1];
        }
        if (j < end) sum[0] += d[i + j] * in[j];
      }
      sums[t] += sum[0] + sum[1];
    }
  }
}

template <typename A>
using ConvBlocks = void (*)(const Line<A>&, int, int, Vec<A>*, ptrdiff_t);
template <typename A>
constexpr ConvBlocks<A> kConvBlocks[kBlock + 1] = {nullptr,           conv_blocks<A, 1>,  conv_blocks<A, 2>,
                                                   conv_blocks<A, 3>, conv_blocks<A, 4>,  conv_blocks<A, 5>,
                                                   conv_blocks<A, 6>, conv_blocks<A, 7>,  conv_blocks<A, 8>,
                                                   conv_blocks<A, 9>, conv_blocks<A, 10>, conv_blocks<A, 11>,
                                                   conv_blocks<A, 12>};
template <typename A>
using TapSumBlocks = void (*)(const Line<A>&, const Vec<A>*, Vec<A>*, int, int);
template <typename A>
constexpr TapSumBlocks<A> kTapSumBlocks[kBlock + 1] = {nullptr,
                                                       tap_sum_blocks<A, 1>,
                                                       tap_sum_blocks<A, 2>,
                                                       tap_sum_blocks<A, 3>,
                                                       tap_sum_blocks<A, 4>,
                                                       tap_sum_blocks<A, 5>,
                                                       tap_sum_blocks<A, 6>,
                                                       tap_sum_blocks<A, 7>,
                                                       tap_sum_blocks<A, 8>,
                                                       tap_sum_blocks<A, 9>,
                                                       tap_sum_blocks<A, 10>,
                                                       tap_sum_blocks<A, 11>,
                                                       tap_sum_blocks<A, 12>};

// The block size that leaves the least behind: as few blocks as kBlock allows, all but the last of one size.
inline int block_for(int n) {
  const int blocks = (n + kBlock - 1) / kBlock;
  return (n + blocks - 1) / blocks;
}

// out[i] = init + sum over t of taps[t] * in[i + (t - k / 2) * step].
template <typename A>
void conv_line(const Line<A>& line, Vec<A>* out) {
  const int N = block_for(line.n), blocks = line.n / N, rest = line.n % N;
  kConvBlocks<A>[N](line, 0, blocks, out, N);
  if (rest) kConvBlocks<A>[rest](line, blocks * N, 1, out + blocks * N, rest);
}
// The same, output piece after piece of V vectors, `pitch` apart: a row written across the strips of a plane.
template <typename A>
void conv_line(const Line<A>& line, Vec<A>* out, int V, ptrdiff_t pitch) {
  if (V >= line.n) return conv_line(line, out);
  const int blocks = line.n / V, rest = line.n % V;
  kConvBlocks<A>[V](line, 0, blocks, out, pitch);
  if (rest) kConvBlocks<A>[rest](line, blocks * V, 1, out + blocks * pitch, rest);
}
template <typename A>
void tap_sums(const Line<A>& line, const Vec<A>* d, Vec<A>* sums) {
  const int N = block_for(line.n), blocks = line.n / N, rest = line.n % N;
  kTapSumBlocks<A>[N](line, d, sums, 0, blocks);
  if (rest) kTapSumBlocks<A>[rest](line, d, sums, blocks * N, 1);
}

// The pair without dilation has 3 or 5 taps at all published sizes: then they stay in registers, and every
// vector is loaded once for all the outputs of a block. `columns` lines side by side, `stride` vectors from
// one element to the next; in and out lie alike, with K / 2 zero elements around in.
constexpr int kNearBlock = 8;  // outputs in registers: 8, 5 taps and an input, of AVX2's 16

template <typename A>
struct Near {
  const Vec<A>* in;
  int n, stride, columns;
  const Vec<A>* taps;
  int k;
  const Vec<A>* init;  // of column x: init[x * init_step]
  int init_step;
};

template <typename A, int N, int K, bool Row>
void near_blocks(const Near<A>& line, int from, int blocks, Vec<A>* out) {
  const ptrdiff_t stride = Row ? 1 : line.stride;
  Vec<A> taps[K];
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) taps[t] = line.taps[t];
  for (int b = 0; b < blocks; ++b) {
    const ptrdiff_t first = (from + b * N) * stride;
    for (int x = 0; x < line.columns; ++x) {
      const Vec<A>* in = line.in + first + x - K / 2 * stride;
      Vec<A> sum[N];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) sum[j] = line.init[x * line.init_step];
#pragma GCC unroll 16
      for (int i = 0; i < N + K - 1; ++i) {
        const Vec<A> v = in[i * stride];
#pragma GCC unroll 16
        for (int t = 0; t < K; ++t)
          if (i - t >= 0 && i - t < N) sum[i - t] += taps[t] * v;
      }
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) out[first + x + j * stride] = sum[j];
    }
  }
}

template <typename A>
using NearBlocks = void (*)(const Near<A>&, int, int, Vec<A>*);
template <typename A, int K, bool Row>
constexpr NearBlocks<A> kNearBlocks[kNearBlock + 1] = {nullptr,
                                                       near_blocks<A, 1, K, Row>,
                                                       near_blocks<A, 2, K, Row>,
                                                       near_blocks<A, 3, K, Row>,
                                                       near_blocks<A, 4, K, Row>,
                                                       near_blocks<A, 5, K, Row>,
                                                       near_blocks<A, 6, K, Row>,
                                                       near_blocks<A, 7, K, Row>,
                                                       near_blocks<A, 8, K, Row>};

inline bool is_near(int k) { return k == 3 || k == 5; }
template <typename A>
void conv_near(const Near<A>& line, Vec<A>* out) {
  const int least = (line.n + kNearBlock - 1) / kNearBlock, N = (line.n + least - 1) / least;
  const int blocks = line.n / N, rest = line.n % N;
  const bool row = line.stride == 1 && line.columns == 1;
  const auto& table = line.k == 3 ? (row ? kNearBlocks<A, 3, true> : kNearBlocks<A, 3, false>)
                                  : (row ? kNearBlocks<A, 5, true> : kNearBlocks<A, 5, false>);
  table[N](line, 0, blocks, out);
  if (rest) table[rest](line, blocks * N, 1, out);
}

}  // namespace lska_ops::LSKA_OPS_ISA
