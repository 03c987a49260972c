// The inner loops of ACmix on CPU, over vectors of neighbouring pixels: two products of attention and one
// convolution. Each keeps a block of sums in registers, so that a load serves several multiplications.
#pragma once

#include "csrc/acmix/cpu_lines.h"
#include "csrc/acmix/cpu_paths.h"

namespace lska_ops::LSKA_OPS_ISA {

// A half that is absent has no rate.
template <typename T>
inline Acc<T> rate_of(const void* rate) {
  return rate ? to_acc(*static_cast<const T*>(rate)) : Acc<T>(0);
}

// Blocks that fit 16 registers, or the 32 of AVX-512.
constexpr bool kManyRegisters = kVectorBytes == 64;
constexpr int kRows = int(kAcmixQueryRows);      // query rows that share a row of keys
constexpr int kTaps = kManyRegisters ? 7 : 4;    // taps of one row of the window
constexpr int kDims = kManyRegisters ? 8 : 4;    // channels that share the weights of a window
constexpr int kPixels = kManyRegisters ? 5 : 3;  // vectors of pixels that share the weights of a convolution
constexpr int kOutputs = 4;                      // outputs of a convolution that share its inputs

// out[r][t] = sum over d of q[r][d] * k[d][offset[t]]: one row of keys with the query rows whose window it is
// in.
template <typename A>
struct TapDots {
  const A* q;
  int64_t q_row, q_dim;
  const A* k;
  int64_t k_dim;
  const int32_t* offset;
  int64_t D;
  A* out;
  int64_t out_row, out_tap;
};

template <int NR, int NT, bool kConsecutive, typename A>
void tap_dots_block(const TapDots<A>& s, int64_t t0) {
  Vec<A> sum[NR][NT] = {};
  const A* q = s.q;
  const A* k = s.k + s.offset[t0];
  int64_t offset[NT];
  for (int t = 0; t < NT; ++t) offset[t] = s.offset[t0 + t] - s.offset[t0];
  for (int64_t d = 0; d < s.D; ++d, q += s.q_dim, k += s.k_dim) {
    Vec<A> rows[NR];
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r) rows[r] = load(q + r * s.q_row);
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) {
      const Vec<A> key = load(k + (kConsecutive ? t : offset[t]));
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) sum[r][t] += rows[r] * key;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < NT; ++t) store(s.out + r * s.out_row + (t0 + t) * s.out_tap, sum[r][t]);
  }
}

template <int NR, bool kConsecutive, typename A>
void tap_dots_rows(const TapDots<A>& s, int64_t K) {
  const int64_t groups = (K + kTaps - 1) / kTaps;  // of about equal size: 9 taps are 3 + 3 + 3
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t t0 = K * i / groups, t1 = K * (i + 1) / groups;
    switch (t1 - t0) {
      case 1:
        tap_dots_block<NR, 1, kConsecutive>(s, t0);
        break;
      case 2:
        tap_dots_block<NR, 2, kConsecutive>(s, t0);
        break;
      case 3:
        tap_dots_block<NR, 3, kConsecutive>(s, t0);
        break;
      case 4:
        tap_dots_block<NR, 4, kConsecutive>(s, t0);
        break;
      default:
        if constexpr (kTaps > 4) {
          switch (t1 - t0) {
            case 5:
              tap_dots_block<NR, 5, kConsecutive>(s, t0);
              break;
            case 6:
              tap_dots_block<NR, 6, kConsecutive>(s, t0);
              break;
            default:
              tap_dots_block<NR, 7, kConsecutive>(s, t0);
              break;
          }
        }
    }
  }
}

// consecutive: the K offsets follow one another, as they do at stride and dilation 1; only then rows > 1.
template <typename A>
void tap_dots(const TapDots<A>& s, int64_t K, int64_t rows, bool consecutive) {
  if (!consecutive) return tap_dots_rows<1, false>(s, K);
  if (rows == 1) return tap_dots_rows<1, true>(s, K);
  if (rows == 2) return tap_dots_rows<2, true>(s, K);
  tap_dots_rows<3, true>(s, K);
}

// sum[r][d] += sum over i < n and taps t of p[i * p_i + r * p_row + p_offset[t]] * v[i * v_i + d * v_dim +
// v_offset[t]]. With probabilities and values this is the attended value (i: rows of keys), with the roles of
// queries and keys exchanged the gradient of the values (i: rows of queries).
template <typename A>
struct TapSums {
  const A* p;
  int64_t p_i, p_row;
  const int32_t* p_offset;
  const A* v;
  int64_t v_i, v_dim;
  const int32_t* v_offset;
  int64_t n, taps;
  A* sum;
  int64_t sum_row, sum_dim;
};

template <int NR, int ND, typename A>
void tap_sums_block(const TapSums<A>& s, int64_t d0) {
  A* out = s.sum + d0 * s.sum_dim;
  Vec<A> sum[NR][ND];
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < ND; ++d) sum[r][d] = load(out + r * s.sum_row + d * s.sum_dim);
  }
  for (int64_t i = 0; i < s.n; ++i) {
    const A* p_of_i = s.p + i * s.p_i;
    const A* v_of_i = s.v + i * s.v_i + d0 * s.v_dim;
    for (int64_t t = 0; t < s.taps; ++t) {
      const A* p = p_of_i + s.p_offset[t];
      const A* v = v_of_i + s.v_offset[t];
      Vec<A> weight[NR];
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) weight[r] = load(p + r * s.p_row);
#pragma GCC unroll 8
      for (int d = 0; d < ND; ++d) {
        const Vec<A> value = load(v + d * s.v_dim);
#pragma GCC unroll 8
        for (int r = 0; r < NR; ++r) sum[r][d] += weight[r] * value;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < ND; ++d) store(out + r * s.sum_row + d * s.sum_dim, sum[r][d]);
  }
}

template <int NR, typename A>
void tap_sums_rows(const TapSums<A>& s, int64_t D) {
  int64_t d = 0;
  for (; d + kDims <= D; d += kDims) tap_sums_block<NR, kDims>(s, d);
  if constexpr (kDims > 4) {
    for (; d + 4 <= D; d += 4) tap_sums_block<NR, 4>(s, d);
  }
  for (; d < D; ++d) tap_sums_block<NR, 1>(s, d);
}

template <typename A>
void tap_sums(const TapSums<A>& s, int64_t D, int64_t rows) {
  if (rows == 1) return tap_sums_rows<1>(s, D);
  if (rows == 2) return tap_sums_rows<2>(s, D);
  tap_sums_rows<3>(s, D);
}

// sum[o][j] = sum over i < n of weights[i][o] * at[j][offset[i]], for NO outputs and kPixels vectors of
// pixels. Not inlined: among the callers' variables the compiler would run out of registers.
template <int NO, typename A>
[[gnu::noinline]] void convolve_block(const A* const* at, const int32_t* offset, int64_t n, const A* weights,
                                      Vec<A> (&sum)[NO][kPixels]) {
  const A* from[kPixels];
#pragma GCC unroll 8
  for (int j = 0; j < kPixels; ++j) from[j] = at[j];
  Vec<A> acc[NO][kPixels] = {};
  for (int64_t i = 0; i < n; ++i, weights += NO) {
    Vec<A> pixels[kPixels];
#pragma GCC unroll 8
    for (int j = 0; j < kPixels; ++j) pixels[j] = load(from[j] + offset[i]);
#pragma GCC unroll 8
    for (int o = 0; o < NO; ++o) {
      const A weight = weights[o];
#pragma GCC unroll 8
      for (int j = 0; j < kPixels; ++j) acc[o][j] += pixels[j] * weight;
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < NO; ++o) {
#pragma GCC unroll 8
    for (int j = 0; j < kPixels; ++j) sum[o][j] = acc[o][j];
  }
}

// Outputs of a convolution whose inputs stand in zero-padded lines.
template <typename A>
struct Convolution {
  const A* lines;  // of the first output row; the next one's are row_step further
  int64_t row_step, rows, width;
  const int32_t* offset;  // [n]: where the inputs and taps of an output stand
  int64_t n;
};

// Calls write(o, row, x, sums) for NO outputs (from o0 on) of every vector of pixels.
template <int NO, typename A, typename Write>
void convolve_outputs(const Convolution<A>& s, const A* weights, int64_t o0, const Write& write) {
  int64_t row = 0, x = 0;
  while (row < s.rows) {
    const A* at[kPixels];
    int64_t rows[kPixels], xs[kPixels];
    int count = 0;
    for (; count < kPixels && row < s.rows; ++count) {
      rows[count] = row;
      xs[count] = x;
      at[count] = s.lines + row * s.row_step + x;
      x += kLanes<A>;
      if (x >= s.width) x = 0, ++row;
    }
    for (int j = count; j < kPixels; ++j) at[j] = at[0];
    Vec<A> sum[NO][kPixels];
    convolve_block<NO>(at, s.offset, s.n, weights, sum);
    for (int o = 0; o < NO; ++o) {
      for (int j = 0; j < count; ++j) write(o0 + o, rows[j], xs[j], sum[o][j]);
    }
  }
}

// weights: for each group of up to kOutputs outputs, [n][outputs in the group].
template <typename A, typename Write>
void convolve(const Convolution<A>& s, const A* weights, int64_t outputs, const Write& write) {
  static_assert(kOutputs == 4);
  for (int64_t o = 0; o < outputs; o += kOutputs) {
    switch (smaller(kOutputs, outputs - o)) {
      case 1:
        convolve_outputs<1>(s, weights + o * s.n, o, write);
        break;
      case 2:
        convolve_outputs<2>(s, weights + o * s.n, o, write);
        break;
      case 3:
        convolve_outputs<3>(s, weights + o * s.n, o, write);
        break;
      default:
        convolve_outputs<4>(s, weights + o * s.n, o, write);
    }
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
