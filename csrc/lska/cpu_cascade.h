// The cascade of one group of channels, a vector's lanes being channels: what forward and backward share.
//
// Rows and columns commute, so both horizontal convolutions run along each row, then both vertical ones down
// strips of columns: nothing but x is read from memory and nothing but the result is written. With horizontal
// first, the zero padding of the biased conv0v output becomes a bias for conv0v that depends on the column:
//     r(x) = conv0v_bias * (sum of the conv_spatial_h taps that lie inside of the map at x) +
//     conv_spatial_h_bias.
#pragma once

#include "csrc/lska/cpu_arena.h"
#include "csrc/lska/cpu_kernels.h"
#include "csrc/lska/cpu_line.h"
#include "csrc/lska/cpu_paths.h"
#include "csrc/lska/cpu_rows.h"

namespace lska_ops::LSKA_OPS_ISA {

// A plane cut into strips of V columns, each of them a line.
template <typename A>
struct Strips {
  int H, W, V, count;
  int64_t pad, pitch;
  explicit Strips(const LskaShape& shape) : H(shape.H), W(shape.W) {
    V = lska_strip_columns(shape, kVectorBytes);
    count = (W + V - 1) / V;
    pad = kPad + 3 * V;  // three rows: what conv_near reads
    pitch = int64_t(H) * V + 2 * pad;
  }
  int64_t size() const { return count * pitch; }
  // Where the top of column x lies; columns right of the map, read by whole vectors of pixels, are any.
  int64_t* take_columns(Arena<A>& arena) const {
    int64_t* at =
        reinterpret_cast<int64_t*>(arena.take((W + kPad) * int64_t(sizeof(int64_t)) / kVectorBytes + 1));
    if (arena.base)
      for (int64_t x = 0; x < W + kPad; ++x) at[x] = x < W ? x / V * pitch + x % V : 0;
    return at;
  }
  // The pads, and the columns of the last strip that lie outside of the map, are zero and stay so.
  Vec<A>* take(Arena<A>& arena) const {
    Vec<A>* p = arena.take(size());
    if (!p) return p;
    for (int s = 0; s < count; ++s) {
      Vec<A>*strip = p + s * pitch, *below = strip + pitch - pad;
      for (int i = 0; i < pad; ++i) strip[i] = below[i] = Vec<A>{};
      if ((s + 1) * V > W)
        for (Vec<A>* v = strip + pad; v < below; ++v) *v = Vec<A>{};
    }
    return p + pad;
  }
};

// The taps and biases of one group of channels as vectors; `flip` is the transposed convolution.
template <typename T, typename A = Acc<T>>
Vec<A>* take_taps(Arena<A>& arena, const void* weight, int C, int k, int block, bool flip = false) {
  constexpr int L = kLanes<A>;
  Vec<A>* taps = arena.take(k);
  if (!taps) return taps;
  const int first = block * L;
  A* lane = reinterpret_cast<A*>(taps);
  for (int c = 0; c < L; ++c)
    for (int t = 0; t < k; ++t) {
      const int from = flip ? k - 1 - t : t;
      const bool exists = first + c < C;
      // LSKA-trivial is the cascade whose dilated pair is the identity.
      lane[t * L + c] = !exists  ? A(0)
                        : weight ? to_acc(static_cast<const T*>(weight)[int64_t(first + c) * k + from])
                                 : A(1);
    }
  return taps;
}
template <typename T, typename A = Acc<T>>
Vec<A> bias_of(const void* bias, int C, int block) {
  constexpr int L = kLanes<A>;
  Vec<A> v{};
  for (int c = 0; c < L; ++c)
    if (bias && block * L + c < C) v[c] = to_acc(static_cast<const T*>(bias)[block * L + c]);
  return v;
}
template <typename A>
Vec<A>* take_constant(Arena<A>& arena, Vec<A> value) {
  Vec<A>* p = arena.take(kBlock);
  if (p)
    for (int i = 0; i < kBlock; ++i) p[i] = value;
  return p;
}

// Everything both directions need: taps, lines for a row, and the plane after the horizontal pair.
template <typename T, typename A = Acc<T>>
struct Cascade {
  const int k0, k1, d;
  const Strips<A> strips;
  Vec<A>*conv0h, *conv0v, *conv_spatial_h, *conv_spatial_v;
  Vec<A>*conv0h_bias, *conv_spatial_v_bias, *zero;
  Vec<A> conv0v_bias, conv_spatial_h_bias;
  Vec<A>*x_row, *mid_row;       // a row of x, and behind conv0h
  Vec<A>*inside, *column_bias;  // sum of the conv_spatial_h taps inside of the map, and r, for each column
  Vec<A>* strip_bias;           // r of one strip, and its beginning again
  Vec<A>*plane, *strip;         // behind the horizontal pair; one strip behind conv0v
  int64_t* column;              // where each column's top lies in a plane

  Cascade(Arena<A>& arena, const LskaShape& shape, const LskaTaps& taps, int block)
      : k0(shape.k0), k1(shape.k1 ? shape.k1 : 1), d(shape.dilation), strips(shape) {
    const int C = shape.C, W = shape.W;
    conv0h = take_taps<T>(arena, taps.conv0h, C, k0, block);
    conv0v = take_taps<T>(arena, taps.conv0v, C, k0, block);
    conv_spatial_h = take_taps<T>(arena, taps.conv_spatial_h, C, k1, block);
    conv_spatial_v = take_taps<T>(arena, taps.conv_spatial_v, C, k1, block);
    conv0h_bias = take_constant<A>(arena, bias_of<T>(taps.conv0h_bias, C, block));
    conv_spatial_v_bias = take_constant<A>(arena, bias_of<T>(taps.conv_spatial_v_bias, C, block));
    zero = take_constant<A>(arena, Vec<A>{});
    conv0v_bias = bias_of<T>(taps.conv0v_bias, C, block);
    conv_spatial_h_bias = bias_of<T>(taps.conv_spatial_h_bias, C, block);
    x_row = arena.take_line(W);
    mid_row = arena.take_line(W);
    inside = arena.take_line(W);
    column_bias = arena.take(strips.count * strips.V);
    strip_bias = arena.take(strips.V + kBlock);
    plane = strips.take(arena);
    strip = arena.take_line(int64_t(strips.H) * strips.V);
    column = strips.take_columns(arena);
    if (!arena.base) return;
    for (int x = 0; x < W; ++x) mid_row[x] = broadcast<A>(1);
    conv_line<A>({mid_row, W, conv_spatial_h, k1, d, zero, 0}, inside);
    for (int x = 0; x < strips.count * strips.V; ++x)
      column_bias[x] = x < W ? conv0v_bias * inside[x] + conv_spatial_h_bias : Vec<A>{};
  }

  // x_row -> mid_row -> row y of the plane
  void horizontal(int64_t y) {
    row_near(x_row, conv0h, conv0h_bias, mid_row);
    conv_line<A>({mid_row, strips.W, conv_spatial_h, k1, d, zero, 0}, plane + y * strips.V, strips.V,
                 strips.pitch);
  }
  // plane -> strip, the output of conv0v
  void vertical(int s) {
    const int V = strips.V;
    if (is_near(k0))
      return conv_near<A>({plane + s * strips.pitch, strips.H, V, V, conv0v, k0, column_bias + s * V, 1},
                          strip, V);
    for (int i = 0; i < V + kBlock; ++i) strip_bias[i] = column_bias[s * V + i % V];
    conv_line<A>({plane + s * strips.pitch, strips.H * V, conv0v, k0, V, strip_bias, V}, strip);
  }
  // k0 taps without dilation along a row, and down a strip
  void row_near(const Vec<A>* in, const Vec<A>* taps, const Vec<A>* init, Vec<A>* out) const {
    if (is_near(k0))
      conv_near<A>({in, strips.W, 1, 1, taps, k0, init, 0}, out, 1);
    else
      conv_line<A>({in, strips.W, taps, k0, 1, init, 0}, out);
  }
  void down_near(const Vec<A>* in, const Vec<A>* taps, Vec<A>* out) const {
    if (is_near(k0))
      conv_near<A>({in, strips.H, strips.V, strips.V, taps, k0, zero, 0}, out, strips.V);
    else
      conv_line<A>(down(in, taps, k0, 1, zero), out);
  }
  Line<A> down(const Vec<A>* in, const Vec<A>* taps, int k, int dilation, const Vec<A>* init) const {
    return {in, strips.H * strips.V, taps, k, dilation * strips.V, init, 0};
  }
};

}  // namespace lska_ops::LSKA_OPS_ISA
