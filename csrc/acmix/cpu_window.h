// The K x K window of one head: which rows and columns its taps read, logits, and sums over it.
//
// The map is padded by reflection, line by line, so every window has its K * K taps and no multiplicities are
// needed; that holds for every stride, dilation and size of map. The gradient comes back through the same
// padding (cpu_kernels_input_grad.cpp).
#pragma once

#include "csrc/acmix/cpu_products.h"
#include "csrc/common/simd_exp.h"

namespace lska_ops::LSKA_OPS_ISA {

template <typename A>
struct Window {
  int64_t K, taps, reach, lead;  // lead: zeros that lines of queries need on their left, see TapSums
  bool consecutive;              // stride and dilation 1: then kRows query rows share their rows of keys
  int64_t block;                 // query rows in a block
  int64_t x_pitch;               // of tables and query lines
  LineShape line;                // of keys and values
  int64_t row_pitch;             // from one row of keys to the next: D lines
  Fold* folds;                   // [2 * reach]
  int32_t* offset;               // [K]: of the taps of a row
  A* dx;                         // [K, x_pitch]: x_i - x_j, in the coordinates of the whole map
  A* dy;                         // [Ho, K]: y_i - y_j
};

// Lays the tables out, and fills them unless the arena only measures.
template <typename A>
Window<A> make_window(const AcmixSizes& s, Arena& arena, bool for_gradient) {
  constexpr int V = kLanes<A>;
  Window<A> w;
  w.K = s.kernel_att;
  w.taps = w.K * w.K;
  w.reach = w.K / 2 * s.dilation;
  w.consecutive = s.stride == 1 && s.dilation == 1;
  w.block = w.consecutive ? kRows : 1;
  w.line = line_shape<A>(s.W, s.Wo, w.reach, s.stride);
  w.row_pitch = s.D * w.line.pitch;
  const int64_t span = for_gradient ? (2 * w.reach + s.stride - 1) / s.stride : 0;
  w.lead = round_up(span, V);
  w.x_pitch = w.lead + round_up(s.Wo + span, V);
  w.folds = arena.take<Fold>(2 * w.reach);
  w.offset = arena.take<int32_t>(w.K);
  w.dx = arena.take<A>(w.K * w.x_pitch);
  w.dy = arena.take<A>(s.Ho * w.K);
  if (!arena.base) return w;

  memset(w.dx, 0, w.K * w.x_pitch * sizeof(A));  // beyond the map too: 0 times garbage need not be 0
  make_folds(w.folds, w.line, s.W, w.reach);
  const double x_step = 2. / double(larger(s.W - 1, 1)), y_step = 2. / double(larger(s.H - 1, 1));
  for (int64_t t = 0; t < w.K; ++t) {
    const int64_t shift = (t - w.K / 2) * s.dilation;
    w.offset[t] = int32_t(w.line.index(shift));
    for (int64_t x = 0; x < s.Wo; ++x) {
      const int64_t at = x * s.stride;
      w.dx[t * w.x_pitch + x] = A(double(at - folded(at + shift, s.W)) * x_step);
    }
    for (int64_t y = 0; y < s.Ho; ++y) {
      const int64_t at = y * s.stride;
      w.dy[y * w.K + t] = A(double(at - folded(at + shift, s.H)) * y_step);
    }
  }
  return w;
}

// For rows of keys i = 0, 1, ... and the query rows r of a block: calls visit(i, count, r0, r1) for runs of
// `count` rows of keys that belong to the windows of exactly the query rows [r0, r1); tap row i - r of query
// row r.
template <typename Visit>
inline void for_key_rows(int64_t rows, int64_t K, const Visit& visit) {
  for (int64_t i = 0; i < rows + K - 1;) {
    const int64_t r0 = larger(0, i - (K - 1)), r1 = smaller(rows, i + 1);
    int64_t end = i + 1;
    while (end < rows + K - 1 && larger(0, end - (K - 1)) == r0 && smaller(rows, end + 1) == r1) ++end;
    visit(i, end - i, r0, r1);
    i = end;
  }
}

// Products of a block of `rows` query lines with the keys in their windows: out [rows][K * K][...].
// q [rows][D] lines, k the first row of keys of the first query row, both at the vector of pixels wanted.
template <typename A>
inline void window_dots(const Window<A>& w, const AcmixSizes& s, const A* q, int64_t q_pitch, const A* k,
                        int64_t rows, A* out, int64_t out_row, int64_t out_tap) {
  for_key_rows(rows, w.K, [&](int64_t i, int64_t count, int64_t r0, int64_t r1) {
    for (int64_t end = i + count; i < end; ++i) {
      TapDots<A> dots;
      dots.q = q + r0 * s.D * q_pitch;
      dots.q_row = s.D * q_pitch;
      dots.q_dim = q_pitch;
      dots.k = k + i * s.dilation * w.row_pitch;
      dots.k_dim = w.line.pitch;
      dots.offset = w.offset;
      dots.D = s.D;
      dots.out = out + r0 * out_row + (i - r0) * w.K * out_tap;
      dots.out_row = out_row - w.K * out_tap;
      dots.out_tap = out_tap;
      tap_dots(dots, w.K, r1 - r0, w.consecutive);
    }
  });
}

// sum [rows][D][...] of the values v in the windows of a block, weighted by p [rows][K * K][...];
// p_offset [K]: t * the pitch of a tap.
template <typename A>
inline void window_sums(const Window<A>& w, const AcmixSizes& s, const A* p, int64_t p_row, int64_t p_tap,
                        const int32_t* p_offset, const A* v, int64_t rows, A* sum, int64_t sum_row,
                        int64_t sum_dim) {
  for_key_rows(rows, w.K, [&](int64_t i, int64_t count, int64_t r0, int64_t r1) {
    TapSums<A> sums;
    sums.p = p + r0 * p_row + (i - r0) * w.K * p_tap;
    sums.p_i = w.K * p_tap;
    sums.p_row = p_row - w.K * p_tap;
    sums.p_offset = p_offset;
    sums.v = v + i * s.dilation * w.row_pitch;
    sums.v_i = s.dilation * w.row_pitch;
    sums.v_dim = w.line.pitch;
    sums.v_offset = w.offset;
    sums.n = count;
    sums.taps = w.K;
    sums.sum = sum + r0 * sum_row;
    sums.sum_row = sum_row;
    sums.sum_dim = sum_dim;
    tap_sums(sums, s.D, r1 - r0);
  });
}

// q . conv_p.weight, the slopes of a query's logits over the map.
template <typename A>
struct Slopes {
  Vec<A> x, y;
};
template <typename A>
inline Slopes<A> slopes(const A* q, int64_t q_pitch, const A* conv_p, int64_t D) {
  Slopes<A> sum = {};
  for (int64_t d = 0; d < D; ++d) {
    const Vec<A> of_d = load(q + d * q_pitch);
    sum.x += of_d * conv_p[2 * d];
    sum.y += of_d * conv_p[2 * d + 1];
  }
  return sum;
}

// Logits D^-1/2 (q . k + q . (p_i - p_j)) from the products q . k; dx at the vector of pixels wanted, dy of
// the row.
template <typename A, typename Use>
inline void for_logits(const Window<A>& w, const A* dots, int64_t tap, const A* dx, const A* dy,
                       const Slopes<A>& slope, A scale, const Use& use) {
  for (int64_t i = 0; i < w.K; ++i) {
    const Vec<A> from_y = slope.y * dy[i];
    for (int64_t t = 0; t < w.K; ++t, dots += tap) {
      use(i * w.K + t, (load(dots) + (slope.x * load(dx + t * w.x_pitch) + from_y)) * scale);
    }
  }
}

template <typename A>
inline A inverse_root(int64_t D) {
  return A(1. / __builtin_sqrt(double(D)));
}

}  // namespace lska_ops::LSKA_OPS_ISA
