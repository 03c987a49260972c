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

// Where a convolution's outputs go. Blocks of them lie `step` vectors apart: one line, or a row written
// across the strips of a plane.
template <typename A>
struct Pieces {
  Vec<A>* out;
  ptrdiff_t step;
  void put(int block, int, int j, Vec<A> v) const { out[block * step + j] = v; }
};

template <typename A, int N, typename Out>
void conv_blocks(const Line<A>& line, int from, int blocks, const Out& out) {
  int phase = line.period ? from % line.period : 0;
  for (int b = 0; b < blocks; ++b) {
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
    for (int j = 0; j < N; ++j) out.put(b, i, j, sum[j]);
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

template <typename A, typename Out>
using ConvBlocks = void (*)(const Line<A>&, int, int, const Out&);
template <typename A, typename Out>
constexpr ConvBlocks<A, Out> kConvBlocks[kBlock + 1] = {nullptr,
                                                        conv_blocks<A, 1, Out>,
                                                        conv_blocks<A, 2, Out>,
                                                        conv_blocks<A, 3, Out>,
                                                        conv_blocks<A, 4, Out>,
                                                        conv_blocks<A, 5, Out>,
                                                        conv_blocks<A, 6, Out>,
                                                        conv_blocks<A, 7, Out>,
                                                        conv_blocks<A, 8, Out>,
                                                        conv_blocks<A, 9, Out>,
                                                        conv_blocks<A, 10, Out>,
                                                        conv_blocks<A, 11, Out>,
                                                        conv_blocks<A, 12, Out>};
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
template <typename A, typename Out>
void conv_line_to(const Line<A>& line, int N, const Out& out, const Out& rest_out) {
  const int blocks = line.n / N, rest = line.n % N;
  kConvBlocks<A, Out>[N](line, 0, blocks, out);
  if (rest) kConvBlocks<A, Out>[rest](line, blocks * N, 1, rest_out);
}
template <typename A>
void conv_line(const Line<A>& line, Vec<A>* out) {
  const int N = block_for(line.n);
  conv_line_to<A, Pieces<A>>(line, N, {out, N}, {out + line.n / N * N, N});
}
// The same, output piece after piece of V vectors, `pitch` apart: a row written across the strips of a plane.
template <typename A>
void conv_line(const Line<A>& line, Vec<A>* out, int V, ptrdiff_t pitch) {
  if (V >= line.n) return conv_line(line, out);
  conv_line_to<A, Pieces<A>>(line, V, {out, pitch}, {out + line.n / V * pitch, pitch});
}
template <typename A>
void tap_sums(const Line<A>& line, const Vec<A>* d, Vec<A>* sums) {
  const int N = block_for(line.n), blocks = line.n / N, rest = line.n % N;
  kTapSumBlocks<A>[N](line, d, sums, 0, blocks);
  if (rest) kTapSumBlocks<A>[rest](line, d, sums, blocks * N, 1);
}

// Few taps stay in registers, and every vector is loaded once for all the outputs of a block: both pairs of
// small kernels, and the pair without dilation of all published ones. `columns` lines side by side, `stride`
// vectors from one element to the next; there are k / 2 zero elements around.
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
// Outputs of column x, `stride` vectors from one to the next.
template <typename A>
struct Columns {
  Vec<A>* out;
  ptrdiff_t stride;
  void put(ptrdiff_t i, int x, Vec<A> v) const { out[i * stride + x] = v; }
};

template <typename A, int N, int K, bool Row, typename Out>
void near_blocks(const Near<A>& line, int from, int blocks, const Out& out) {
  const ptrdiff_t stride = Row ? 1 : line.stride;
  Vec<A> taps[K];
#pragma GCC unroll 8
  for (int t = 0; t < K; ++t) taps[t] = line.taps[t];
  for (int b = 0; b < blocks; ++b) {
    const ptrdiff_t first = from + b * N;
    for (int x = 0; x < line.columns; ++x) {
      const Vec<A>* in = line.in + (first - K / 2) * stride + x;
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
      for (int j = 0; j < N; ++j) out.put(first + j, x, sum[j]);
    }
  }
}

template <typename A, typename Out>
using NearBlocks = void (*)(const Near<A>&, int, int, const Out&);
template <typename A, int K, bool Row, typename Out>
constexpr NearBlocks<A, Out> kNearBlocks[kNearBlock + 1] = {nullptr,
                                                            near_blocks<A, 1, K, Row, Out>,
                                                            near_blocks<A, 2, K, Row, Out>,
                                                            near_blocks<A, 3, K, Row, Out>,
                                                            near_blocks<A, 4, K, Row, Out>,
                                                            near_blocks<A, 5, K, Row, Out>,
                                                            near_blocks<A, 6, K, Row, Out>,
                                                            near_blocks<A, 7, K, Row, Out>,
                                                            near_blocks<A, 8, K, Row, Out>};

inline bool is_near(int k) { return k == 3 || k == 5 || k == 7; }
template <typename A, bool Row, typename Out>
NearBlocks<A, Out> near_blocks_for(int k, int N) {
  return k == 3   ? kNearBlocks<A, 3, Row, Out>[N]
         : k == 5 ? kNearBlocks<A, 5, Row, Out>[N]
                  : kNearBlocks<A, 7, Row, Out>[N];
}
template <typename A, typename Out, bool Row = false>
void conv_near_to(const Near<A>& line, const Out& out) {
  if (line.n == 0) return;
  const int least = (line.n + kNearBlock - 1) / kNearBlock, N = (line.n + least - 1) / least;
  const int blocks = line.n / N, rest = line.n % N;
  near_blocks_for<A, Row, Out>(line.k, N)(line, 0, blocks, out);
  if (rest) near_blocks_for<A, Row, Out>(line.k, rest)(line, blocks * N, 1, out);
}
template <typename A>
void conv_near(const Near<A>& line, Vec<A>* out, ptrdiff_t out_stride) {
  if (line.stride == 1 && line.columns == 1)
    conv_near_to<A, Columns<A>, true>(line, {out, 1});
  else
    conv_near_to<A, Columns<A>>(line, {out, out_stride});
}

}  // namespace lska_ops::LSKA_OPS_ISA
