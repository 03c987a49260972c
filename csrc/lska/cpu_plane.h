// The cascade of one NCHW plane at a time, a vector's lanes being neighbours in x: nothing is transposed.
//
// Along a row the taps fall between vectors: half of them are read there, the others are shuffled together
// from the aligned vectors, since each way alone would keep the multiplications waiting. Down a column every
// access is aligned, for rows begin at whole vectors: one column of vectors is a line (cpu_line.h), and stays
// in L1 from conv0v to the result.
#pragma once

#include "csrc/common/shifted.h"
#include "csrc/lska/cpu_arena.h"
#include "csrc/lska/cpu_kernels.h"
#include "csrc/lska/cpu_line.h"
#include "csrc/lska/cpu_paths.h"

namespace lska_ops::LSKA_OPS_ISA {

template <typename A>
inline int64_t whole(int64_t n) {
  return lska_row(n, kLanes<A>).all;
}
// The first n lanes as they are, zero in the others, whatever was there.
template <typename A>
struct FirstLanes {
  typedef typename IntegerOf<A>::type Bits __attribute__((vector_size(kVectorBytes)));
  Bits mask;
  explicit FirstLanes(int64_t n) {
    for (int i = 0; i < kLanes<A>; ++i) mask[i] = i < n ? -1 : 0;
  }
  Vec<A> of(Vec<A> v) const { return Vec<A>(Bits(v) & mask); }
};

constexpr bool kShuffles = kVectorBytes == 64;  // AVX2's loads are half as wide, its shuffles come in pairs

// sum over t of taps[t] * (the vector `(t - K / 2) * D` elements behind p), p aligned.
template <typename A, int K, int D, int T = 0>
inline Vec<A> along_row(const A* p, const Vec<A> (&taps)[K], Vec<A> sum) {
  if constexpr (T == K) {
    return sum;
  } else {
    constexpr int L = kLanes<A>, at = (T - K / 2) * D, between = (at % L + L) % L;
    if constexpr (between == 0 || T % 2 || !kShuffles)
      sum += taps[T] * load(p + at);
    else
      sum += taps[T] * shifted<A, between>(load(p + at - between), load(p + at - between + L));
    return along_row<A, K, D, T + 1>(p, taps, sum);
  }
}

// The same where the vectors around are in registers already, without dilation.
template <typename A, int K, int T = 0>
inline Vec<A> along_row(Vec<A> before, Vec<A> here, Vec<A> behind, const Vec<A> (&taps)[K], Vec<A> sum) {
  if constexpr (T == K) {
    return sum;
  } else {
    constexpr int L = kLanes<A>, at = T - K / 2;  // from -L to L
    if constexpr (at < 0)
      sum += taps[T] * shifted<A, at + L>(before, here);
    else if constexpr (at < L)
      sum += taps[T] * shifted<A, at>(here, behind);
    else
      sum += taps[T] * behind;
    return along_row<A, K, T + 1>(before, here, behind, taps, sum);
  }
}

// Columns of vectors of a map whose rows are `stride` apart.
template <typename S>
struct MapColumns {
  S* top;
  int64_t stride;
  void put(int, int i, int j, Vec<Acc<S>> v) const { store(top + i * stride + j * stride, v); }
  void put(ptrdiff_t i, int x, Vec<Acc<S>> v) const { store(top + i * stride + x * kLanes<Acc<S>>, v); }
};

// What all planes of a group share, and the stages of one plane.
template <typename T, int K0, int K1, int D, typename A = Acc<T>>
struct PlaneCascade {
  static constexpr int L = kLanes<A>, kReach = K1 / 2 * D;
  static constexpr bool kFew = K1 <= kLskaFewTaps;
  static_assert(K0 / 2 <= L && kReach <= 4 * 64);
  const int H, W, columns;  // columns of vectors
  const int64_t pad, pitch;
  const int band;  // rows behind conv0h at a time
  const FirstLanes<A> in_map;
  Vec<A> conv0h[K0], conv_spatial_h[K1];
  Vec<A>*conv0v, *conv_spatial_v;
  Vec<A>* last_bias;
  A *mid, *ones;          // a band of rows behind conv0h; a row that is one inside of the map
  Vec<A>* column_bias;    // r of each column
  Vec<A>*plane, *behind;  // behind the horizontal pair; behind conv0v: the plane, or one column of it
  Vec<A>* edge;           // the last column's result, where it reaches beyond W

  PlaneCascade(Arena<A>& arena, const LskaShape& shape)
      : H(shape.H),
        W(shape.W),
        columns(int(whole<A>(W) / L)),
        pad(whole<A>(kReach)),
        pitch(lska_plane_pitch(W, kReach, L)),
        band(lska_plane_band(pitch * int64_t(sizeof(A)))),
        in_map(W - (columns - 1) * L) {
    conv0v = arena.take(K0);
    conv_spatial_v = arena.take(K1);
    last_bias = arena.take(1);
    mid = take_rows(arena, band);
    ones = take_rows(arena, 1);
    column_bias = arena.take(columns);
    plane = arena.take((H + K0 - 1) * int64_t(columns));
    behind = kFew ? arena.take_line(H * int64_t(columns), kReach * int64_t(columns)) : arena.take_line(H);
    edge = arena.take(W % L ? H : 0);
    if (!arena.base) return;
    for (int64_t i = 0; i < K0 / 2 * columns; ++i)
      plane[i] = plane[(H + K0 / 2) * int64_t(columns) + i] = Vec<A>{};
    plane += K0 / 2 * columns;
    for (int x = 0; x < W; ++x) ones[x] = A(1);
  }
  // Rows with zeros around: what one ends with, the next begins with.
  A* take_rows(Arena<A>& arena, int64_t rows) const {
    Vec<A>* p = arena.take((rows * pitch + pad) / L);
    if (!p) return nullptr;
    memset(p, 0, size_t(rows * pitch + pad) * sizeof(A));
    return reinterpret_cast<A*>(p) + pad;
  }

  static A bias(const void* bias, int c) { return bias ? to_acc(static_cast<const T*>(bias)[c]) : A(0); }
  void take_channel(const LskaTaps& taps, int c) {
    const auto spread = [&](const void* weight, int k, Vec<A>* to) {
      for (int t = 0; t < k; ++t)
        to[t] = broadcast(to_acc(static_cast<const T*>(weight)[int64_t(c) * k + t]));
    };
    spread(taps.conv0h, K0, conv0h);
    spread(taps.conv0v, K0, conv0v);
    spread(taps.conv_spatial_h, K1, conv_spatial_h);
    spread(taps.conv_spatial_v, K1, conv_spatial_v);
    *last_bias = broadcast(bias(taps.conv_spatial_v_bias, c));
    const Vec<A> factor = broadcast(bias(taps.conv0v_bias, c)),
                 more = broadcast(bias(taps.conv_spatial_h_bias, c));
    for (int i = 0; i < columns; ++i)
      column_bias[i] = factor * along_row<A, K1, D>(ones + i * L, conv_spatial_h, Vec<A>{}) + more;
  }

  // Row y of x behind conv0h. `ahead` is how far away the map is that comes next.
  void near_row(const T* row, const T* end, Vec<A> init, A* to, int64_t ahead) const {
    Vec<A> taps[K0];
#pragma GCC unroll 32
    for (int t = 0; t < K0; ++t) taps[t] = conv0h[t];
    const auto at = [&](int i) {
      const T* p = row + int64_t(i) * L;
      __builtin_prefetch(p + ahead, 0, 2);
      if (i + 1 < columns) return load(p);
      return in_map.of(p + L <= end ? load(p) : load(p, int(W - int64_t(i) * L)));
    };
    Vec<A> before{}, here = at(0);
    for (int i = 0; i + 1 < columns; ++i) {
      const Vec<A> behind = at(i + 1);
      store(to + i * L, along_row<A, K0>(before, here, behind, taps, init));
      before = here, here = behind;
    }
    store(to + (columns - 1) * L, in_map.of(along_row<A, K0>(before, here, Vec<A>{}, taps, init)));
  }
  void horizontal(const T* x, const T* end, A conv0h_bias) const {
    const Vec<A> init = broadcast(conv0h_bias);
    Vec<A> taps[K1];
#pragma GCC unroll 32
    for (int t = 0; t < K1; ++t) taps[t] = conv_spatial_h[t];
    for (int y = 0; y < H; y += band) {
      const int rows = H - y < band ? H - y : band;
      for (int r = 0; r < rows; ++r)
        near_row(x + int64_t(y + r) * W, end, init, mid + r * pitch, int64_t(H) * W);
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < columns; ++i)
          plane[(y + r) * int64_t(columns) + i] =
              along_row<A, K1, D>(mid + r * pitch + i * L, taps, Vec<A>{});
    }
  }
  // The last column first: where it reaches beyond W it is written whole all the same wherever the map goes
  // on behind the row, and those pixels belong to columns that come after it.
  template <typename S>
  void vertical(S* s) const {
    const int last = int(int64_t(columns - 1) * L), live = W - last;
    if constexpr (kFew)
      conv_near<A>({plane, H, columns, columns, conv0v, K0, column_bias, 1}, behind, columns);
    if (live < L) {
      vertical(columns - 1, 1, MapColumns<A>{reinterpret_cast<A*>(edge), L});
      const int whole_rows = H - int(lska_spilled_rows(W, L));
      for (int y = 0; y < H; ++y) {
        S* to = s + int64_t(y) * W + last;
        if (y < whole_rows)
          store(to, edge[y]);
        else
          store(to, edge[y], live);
      }
    }
    vertical(0, columns - (live < L), MapColumns<S>{s, W});
  }
  // Columns [first, first + count). Few taps need few instructions, so that a call for each column would cost
  // as much; many find their column in L1.
  template <typename S>
  void vertical(int first, int count, const MapColumns<S>& out) const {
    if constexpr (kFew) {
      for (int r = 0; r < D && count; ++r)  // rows of the same remainder are a line without dilation
        conv_near_to<A, MapColumns<S>>({behind + r * int64_t(columns) + first, (H - r + D - 1) / D,
                                        D * columns, count, conv_spatial_v, K1, last_bias, 0},
                                       {out.top + r * out.stride, D * out.stride});
    } else {
      for (int i = first; i < first + count; ++i) {
        const MapColumns<S> here{out.top + int64_t(i - first) * L, out.stride};
        for (int y = 0; y < H; ++y) __builtin_prefetch(here.top + y * here.stride, 1);
        conv_near<A>({plane + i, H, columns, 1, conv0v, K0, column_bias + i, 0}, behind, 1);
        conv_line_to<A, MapColumns<S>>({behind, H, conv_spatial_v, K1, D, last_bias, 0}, block_for(H), here,
                                       here);
      }
    }
  }
};

// reference: cascade(x), for NCHW and published kernels
// owns    kLanes channels of one image, one after another
// reads   x [C, H, W], the taps
// writes  s [C, H, W], of T or of A
// keeps   a band of rows, one plane, and one column of it
template <typename T, typename S, int K0, int K1, int D>
void lska_plane_fwd_kernel(const LskaShape& shape, const LskaTaps& taps, const T* x, const T* end, S* s,
                           int block, void* workspace) {
  using A = Acc<T>;
  Arena<A> arena{static_cast<Vec<A>*>(workspace)};
  PlaneCascade<T, K0, K1, D> cascade(arena, shape);
  const int64_t n = int64_t(shape.H) * shape.W;
  const int first = block * kLanes<A>, last = first + kLanes<A> < shape.C ? first + kLanes<A> : shape.C;
  for (int c = first; c < last; ++c) {
    cascade.take_channel(taps, c);
    cascade.horizontal(x + c * n, end, cascade.bias(taps.conv0h_bias, c));
    cascade.vertical(s + c * n);
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
