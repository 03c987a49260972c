// LSKA on CPU: the cascade of one group of channels, forward and backward, and the gate around the 1x1
// product.
//
// Rows and columns commute, so both horizontal convolutions run along each row, then both vertical ones down
// strips of columns: nothing but x is read from memory and nothing but the result is written. With horizontal
// first, the zero padding of the biased conv0v output becomes a bias for conv0v that depends on the column:
//     r(x) = conv0v_bias * (sum of the conv_spatial_h taps that lie inside of the map at x) +
//     conv_spatial_h_bias.
#include "csrc/lska/cpu_kernels.h"

#include "csrc/lska/cpu_gate.h"
#include "csrc/lska/cpu_line.h"
#include "csrc/lska/cpu_plane.h"
#include "csrc/lska/cpu_rows.h"

namespace lska_ops::LSKA_OPS_ISA {

template <int N>
struct Number {
  static constexpr int value = N;
};

// Vectors handed out one after another; from a null base it only counts.
template <typename A>
struct Arena {
  Vec<A>* base;
  size_t used = 0;
  Vec<A>* take(int64_t n) {
    Vec<A>* p = base ? base + used : nullptr;
    used += size_t(n);
    return p;
  }
  Vec<A>* take_line(int64_t n, int64_t pad = kPad) {
    Vec<A>* p = take(n + 2 * pad);
    if (!p) return p;
    for (int64_t i = 0; i < pad; ++i) p[i] = p[pad + n + i] = Vec<A>{};
    return p + pad;
  }
};

// A plane cut into strips of V columns, each of them a line.
template <typename A>
struct Strips {
  static constexpr int kNarrow = 8;                  // columns: one block of conv_line
  static constexpr int64_t kWholeBytes = 24 * 1024;  // a plane this small is one strip: stays in L1
  int H, W, V, count;
  int64_t pad, pitch;
  explicit Strips(const LskaShape& shape) : H(shape.H), W(shape.W) {
    V = W <= kNarrow || int64_t(H) * W * kVectorBytes <= kWholeBytes ? W : kNarrow;
    if (V > kBlock && W > V) V = kNarrow;
    count = (W + V - 1) / V;
    pad = kPad + 2 * V;  // two rows: what conv_near reads
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
                          strip);
    for (int i = 0; i < V + kBlock; ++i) strip_bias[i] = column_bias[s * V + i % V];
    conv_line<A>({plane + s * strips.pitch, strips.H * V, conv0v, k0, V, strip_bias, V}, strip);
  }
  // k0 taps without dilation along a row, and down a strip
  void row_near(const Vec<A>* in, const Vec<A>* taps, const Vec<A>* init, Vec<A>* out) const {
    if (is_near(k0))
      conv_near<A>({in, strips.W, 1, 1, taps, k0, init, 0}, out);
    else
      conv_line<A>({in, strips.W, taps, k0, 1, init, 0}, out);
  }
  void down_near(const Vec<A>* in, const Vec<A>* taps, Vec<A>* out) const {
    if (is_near(k0))
      conv_near<A>({in, strips.H, strips.V, strips.V, taps, k0, zero, 0}, out);
    else
      conv_line<A>(down(in, taps, k0, 1, zero), out);
  }
  Line<A> down(const Vec<A>* in, const Vec<A>* taps, int k, int dilation, const Vec<A>* init) const {
    return {in, strips.H * strips.V, taps, k, dilation * strips.V, init, 0};
  }
};

// reference: cascade(x)
// owns    kLanes channels of one image
// reads   x [C, H, W] or [H, W, C], the taps
// writes  s, of the same layout, of T or of A
// keeps   one plane of vectors (after the horizontal pair) and one strip of it
template <typename T, typename S>
void lska_cascade_fwd_kernel(const LskaShape& shape, const LskaTaps& taps, const T* x, const T* end, S* s,
                             int block, void* workspace) {
  using A = Acc<T>;
  Arena<A> arena{static_cast<Vec<A>*>(workspace)};
  Cascade<T> cascade(arena, shape, taps, block);
  const Strips<A>& strips = cascade.strips;
  const auto in = channels_of<const T>(shape, x, end, block, kLanes<A>);
  for (int64_t y = 0; y < shape.H; ++y) {
    load_row<T>(in, y, cascade.x_row);
    cascade.horizontal(y);
  }
  for (int i = 0; i < strips.count; ++i) {
    Vec<A>* plane = cascade.plane + i * strips.pitch;
    cascade.vertical(i);
    conv_line<A>(cascade.down(cascade.strip, cascade.conv_spatial_v, cascade.k1, cascade.d,
                              cascade.conv_spatial_v_bias),
                 plane);
  }
  const auto out = channels_of<S>(shape, s, nullptr, block, kLanes<A>);
  const int64_t* column = cascade.column;
  for (int64_t y = 0; y < shape.H; ++y) {
    const Vec<A>* row = cascade.plane + y * strips.V;
    store_row<S>(
        out, y, [&](int64_t i) { return row[column[i]]; }, [](Vec<A> v, int64_t, int, int) { return v; });
  }
}

// NCHW by few taps, without transposing: what all planes of a group share, and the stages of one plane.
template <typename T, int K0, int K1, typename A = Acc<T>>
struct PlaneCascade {
  static constexpr int L = kLanes<A>;
  static constexpr int64_t kBandBytes = 12 * 1024;  // rows of x, and behind conv0h: both stay in L1
  const int H, W, d;
  const int64_t row_pad, pitch, plane_pad;
  const int band;  // rows at a time
  A *conv0h, *conv0v, *conv_spatial_h, *conv_spatial_v;
  A *x_rows, *mid_rows, *ones;  // a band of x, and behind conv0h
  A* column_bias;               // r of each column, and again behind the last one
  A *plane, *vertical;          // behind the horizontal pair, behind conv0v

  PlaneCascade(Arena<A>& arena, const LskaShape& shape)
      : H(shape.H),
        W(shape.W),
        d(shape.dilation),
        row_pad(whole(reach(1) + L)),
        pitch(whole(W) + row_pad),
        plane_pad(whole(reach(W) + L)),
        band(kBandBytes / (pitch * int64_t(sizeof(A))) < 1 ? 1
                                                           : int(kBandBytes / (pitch * int64_t(sizeof(A))))) {
    conv0h = take(arena, K0);
    conv0v = take(arena, K0);
    conv_spatial_h = take(arena, K1);
    conv_spatial_v = take(arena, K1);
    x_rows = take_zeros(arena, band * pitch, row_pad);
    mid_rows = take_zeros(arena, band * pitch, row_pad);
    ones = take_zeros(arena, pitch, row_pad);
    column_bias = take(arena, W + kAgain + L);
    plane = take_zeros(arena, int64_t(H) * W, plane_pad);
    vertical = take_zeros(arena, int64_t(H) * W, plane_pad);
    if (!arena.base) return;
    for (int x = 0; x < W; ++x) ones[x] = A(1);
  }

  static constexpr int kAgain = kColumnsAtOnce * L;
  static int64_t whole(int64_t n) { return (n + L - 1) / L * L; }
  int64_t reach(int64_t step) const { return (K1 / 2 * d > K0 / 2 ? K1 / 2 * d : K0 / 2) * step; }
  static A* take(Arena<A>& arena, int64_t n) { return reinterpret_cast<A*>(arena.take(whole(n) / L)); }
  static A* take_zeros(Arena<A>& arena, int64_t n, int64_t pad) {
    A* p = take(arena, n + 2 * pad);
    if (!p) return p;
    memset(p, 0, size_t(n + 2 * pad) * sizeof(A));
    return p + pad;
  }
  static void end_with_zeros(A* line, int64_t n) { store(line + n, Vec<A>{}); }
  static A bias(const void* bias, int c) { return bias ? to_acc(static_cast<const T*>(bias)[c]) : A(0); }

  void take_channel(const LskaTaps& taps, int c) {
    const auto copy = [&](const void* weight, int k, A* to) {
      // LSKA-trivial is the cascade whose dilated pair is the identity.
      for (int t = 0; t < k; ++t)
        to[t] = weight ? to_acc(static_cast<const T*>(weight)[int64_t(c) * k + t]) : A(1);
    };
    copy(taps.conv0h, K0, conv0h);
    copy(taps.conv0v, K0, conv0v);
    copy(taps.conv_spatial_h, K1, conv_spatial_h);
    copy(taps.conv_spatial_v, K1, conv_spatial_v);
    plane_rows<A, K1>({ones, pitch}, 1, W, {conv_spatial_h, d}, A(0), {column_bias, pitch});
    const Vec<A> factor = broadcast(bias(taps.conv0v_bias, c)),
                 more = broadcast(bias(taps.conv_spatial_h_bias, c));
    for (int i = 0; i < W; i += L) store(column_bias + i, factor * load(column_bias + i) + more);
    for (int i = W; i < W + kAgain; ++i) column_bias[i] = column_bias[i - W];
  }
  // Rows [y, y + rows) of x to those of `plane`.
  void horizontal(const T* x, const T* end, int y, int rows, A conv0h_bias) {
    for (int r = 0; r < rows; ++r) {
      const T* from = x + int64_t(y + r) * W;
      A* to = x_rows + r * pitch;
      if (from + whole(W) <= end)
        for (int i = 0; i < W; i += L) store(to + i, load(from + i));
      else
        for (int i = 0; i < W; i += L) store(to + i, W - i < L ? load(from + i, W - i) : load(from + i));
      end_with_zeros(to, W);
    }
    plane_rows<A, K0>({x_rows, pitch}, rows, W, {conv0h, 1}, conv0h_bias, {mid_rows, pitch});
    for (int r = 0; r < rows; ++r) end_with_zeros(mid_rows + r * pitch, W);
    plane_rows<A, K1>({mid_rows, pitch}, rows, W, {conv_spatial_h, d}, A(0), {plane + int64_t(y) * W, W});
  }
};

// reference: cascade(x), for NCHW and few taps
// owns    kLanes channels of one image, one after another
// reads   x [C, H, W], the taps
// writes  s [C, H, W], of T or of A
// keeps   a band of rows and two planes of one channel
template <typename T, typename S, int K0, int K1>
void lska_plane_fwd_kernel(const LskaShape& shape, const LskaTaps& taps, const T* x, const T* end, S* s,
                           int block, void* workspace) {
  using A = Acc<T>;
  Arena<A> arena{static_cast<Vec<A>*>(workspace)};
  PlaneCascade<T, K0, K1> cascade(arena, shape);
  const int64_t W = shape.W, n = shape.H * W;
  const int first = block * kLanes<A>, last = first + kLanes<A> < shape.C ? first + kLanes<A> : shape.C;
  for (int c = first; c < last; ++c) {
    cascade.take_channel(taps, c);
    const A conv0h_bias = cascade.bias(taps.conv0h_bias, c),
            last_bias = cascade.bias(taps.conv_spatial_v_bias, c);
    for (int y = 0; y < shape.H; y += cascade.band)
      cascade.horizontal(x + c * n, end, y, shape.H - y < cascade.band ? shape.H - y : cascade.band,
                         conv0h_bias);
    cascade.end_with_zeros(cascade.plane, n);
    plane_columns<A, K0, false>(cascade.plane, n, {cascade.conv0v, W}, cascade.column_bias, W,
                                cascade.vertical);
    plane_columns<A, K1, true>(cascade.vertical, n, {cascade.conv_spatial_v, cascade.d * W}, &last_bias, W,
                               s + c * n);
  }
}

// Loads along a row are mostly misaligned, which transposing avoids at a price of its own. On AVX2 it
// takes 1.25-1.4 times as long at k_size 7, 1.15 times at 23, and 0.65-0.85 times at 53, which is why 53 is
// not here.
template <typename T>
struct PlaneKernel {
  size_t (*workspace_bytes)(const LskaShape&) = nullptr;
  void (*to_t)(const LskaShape&, const LskaTaps&, const T*, const T*, T*, int, void*) = nullptr;
  void (*to_a)(const LskaShape&, const LskaTaps&, const T*, const T*, Acc<T>*, int, void*) = nullptr;
};
template <typename T, int K0, int K1>
size_t plane_workspace_bytes(const LskaShape& shape) {
  Arena<Acc<T>> arena{nullptr};
  PlaneCascade<T, K0, K1>(arena, shape);
  return arena.used * kVectorBytes;
}
template <typename T>
PlaneKernel<T> plane_kernel_for(const LskaShape& shape) {
  const auto kernel = [](auto k0, auto k1) {
    constexpr int K0 = decltype(k0)::value, K1 = decltype(k1)::value;
    return PlaneKernel<T>{plane_workspace_bytes<T, K0, K1>, lska_plane_fwd_kernel<T, T, K0, K1>,
                          lska_plane_fwd_kernel<T, Acc<T>, K0, K1>};
  };
  if (shape.channels_last || shape.dilation > 4) return {};
  if (shape.k0 == 3 && shape.k1 == 3) return kernel(Number<3>{}, Number<3>{});
  if (shape.k0 == 3 && shape.k1 == 5) return kernel(Number<3>{}, Number<5>{});
  if (shape.k0 == 5 && shape.k1 == 7) return kernel(Number<5>{}, Number<7>{});
  return {};
}

// What the backward needs beside: the transposed taps, sums of tap gradients, and the gradients' way back.
template <typename T, typename A = Acc<T>>
struct BackwardBuffers {
  Vec<A>*flipped0h, *flipped0v, *flipped1h, *flipped1v;
  Vec<A>* sums;  // 2 k0 + 3 k1 + 4
  Vec<A>*grad_row, *grad_mid_row;
  Vec<A>* columns;  // the gradient of conv0v's output, summed down each column
  Vec<A>*grad_plane, *grad_strip;

  BackwardBuffers(Arena<A>& arena, const LskaShape& shape, const LskaTaps& taps, int block) {
    const Strips<A> strips(shape);
    const int C = shape.C, k0 = shape.k0, k1 = shape.k1 ? shape.k1 : 1;
    flipped0h = take_taps<T>(arena, taps.conv0h, C, k0, block, true);
    flipped0v = take_taps<T>(arena, taps.conv0v, C, k0, block, true);
    flipped1h = take_taps<T>(arena, taps.conv_spatial_h, C, k1, block, true);
    flipped1v = take_taps<T>(arena, taps.conv_spatial_v, C, k1, block, true);
    sums = arena.take(2 * k0 + 3 * k1 + 4);
    grad_row = arena.take_line(shape.W);
    grad_mid_row = arena.take_line(shape.W);
    columns = arena.take_line(strips.count * strips.V);
    grad_plane = strips.take(arena);
    grad_strip = arena.take_line(int64_t(shape.H) * strips.V, strips.pad);
    if (!arena.base) return;
    for (int i = 0; i < 2 * k0 + 3 * k1 + 4; ++i) sums[i] = Vec<A>{};
    for (int i = 0; i < strips.count * strips.V; ++i) columns[i] = Vec<A>{};
  }
};

// reference: autograd of x * conv1(cascade(x)), the part behind the product
// owns    kLanes channels of one image
// reads   x, grad_y of T; ds = the gradient of s, product = conv1(s) without bias, of A; the taps
// writes  grad_x = grad_y * (product + bias) + the cascade's gradient, of T, and the partial sums of the tap
// gradients keeps   two planes of vectors (the horizontal pair's output; ds, then its gradient) and two
// strips
template <typename T, typename A = Acc<T>>
void lska_cascade_bwd_kernel(const LskaShape& shape, const LskaTaps& taps, const T* x, const T* end,
                             const A* ds, const A* ds_end, const T* grad_y, const A* product, const A* bias,
                             T* grad_x, const LskaTapGrads& grads, int block, void* workspace) {
  constexpr int L = kLanes<A>;
  Arena<A> arena{static_cast<Vec<A>*>(workspace)};
  Cascade<T> cascade(arena, shape, taps, block);
  const Strips<A>& strips = cascade.strips;
  const int H = shape.H, W = shape.W, V = strips.V, k0 = cascade.k0, k1 = cascade.k1, d = cascade.d;
  BackwardBuffers<T> buffers(arena, shape, taps, block);
  auto [flipped0h, flipped0v, flipped1h, flipped1v, sums, grad_row, grad_mid_row, columns, grad_plane,
        grad_strip] = buffers;
  Vec<A>*sum0h = sums, *sum0v = sum0h + k0, *sum1h = sum0v + k0, *sum1v = sum1h + k1, *columns1h = sum1v + k1;
  Vec<A>&sum0h_bias = columns1h[k1], &sum0v_bias = columns1h[k1 + 1], &sum1h_bias = columns1h[k1 + 2],
  &sum1v_bias = columns1h[k1 + 3];

  const auto in = channels_of<const T>(shape, x, end, block, L);
  const auto grad_s = channels_of<const A>(shape, ds, ds_end, block, L);
  for (int64_t y = 0; y < H; ++y) {
    load_row<T>(in, y, cascade.x_row);
    cascade.horizontal(y);
    load_row<A>(grad_s, y, grad_row);
    Vec<A>* row = grad_plane + y * V;
    for (int i = 0; i < W; ++i) row[cascade.column[i]] = grad_row[i];
  }

  for (int i = 0; i < strips.count; ++i) {
    const Vec<A>* plane = cascade.plane + i * strips.pitch;
    Vec<A>* grad = grad_plane + i * strips.pitch;
    cascade.vertical(i);
    tap_sums<A>(cascade.down(cascade.strip, nullptr, k1, d, nullptr), grad, sum1v);
    conv_line<A>(cascade.down(grad, flipped1v, k1, d, cascade.zero), grad_strip);
    tap_sums<A>(cascade.down(plane, nullptr, k0, 1, nullptr), grad_strip, sum0v);
    Vec<A> total{};
    for (int y = 0; y < H; ++y)
      for (int j = 0; j < V; ++j) {
        total += grad[y * V + j];
        columns[i * V + j] += grad_strip[y * V + j];
      }
    sum1v_bias += total;
    cascade.down_near(grad_strip, flipped0v, grad);
  }

  const auto out = channels_of<T>(shape, grad_x, nullptr, block, L);
  const auto grad_out = channels_of<const T>(shape, grad_y, nullptr, block, L);
  const auto factor = channels_of<const A>(shape, product, nullptr, block, L);
  const A* bias_here = bias + block * L;
  const Vec<A> bias_lanes = load(bias_here, in.live);
  for (int64_t y = 0; y < H; ++y) {
    load_row<T>(in, y, cascade.x_row);
    cascade.row_near(cascade.x_row, cascade.conv0h, cascade.conv0h_bias, cascade.mid_row);
    const Vec<A>* row = grad_plane + y * V;
    for (int i = 0; i < W; ++i) grad_row[i] = row[cascade.column[i]];
    tap_sums<A>({cascade.mid_row, W, nullptr, k1, d, nullptr, 0}, grad_row, sum1h);
    conv_line<A>({grad_row, W, flipped1h, k1, d, cascade.zero, 0}, grad_mid_row);
    tap_sums<A>({cascade.x_row, W, nullptr, k0, 1, nullptr, 0}, grad_mid_row, sum0h);
    Vec<A> total{};
    for (int i = 0; i < W; ++i) total += grad_mid_row[i];
    sum0h_bias += total;
    cascade.row_near(grad_mid_row, flipped0h, cascade.zero, grad_row);
    store_row<T>(
        out, y, [&](int64_t i) { return grad_row[i]; },
        [&](Vec<A> v, int64_t at, int n, int channel) {
          const Vec<A> b = channel < 0 ? bias_lanes : broadcast<A>(bias_here[channel]);
          if (n == L) return v + load(grad_out.data + at) * (load(factor.data + at) + b);
          return v + load(grad_out.data + at, n) * (load(factor.data + at, n) + b);
        });
  }

  // The column bias r hands its gradient on to conv0v_bias, conv_spatial_h and its bias.
  for (int i = 0; i < W; ++i) {
    sum1h_bias += columns[i];
    sum0v_bias += columns[i] * cascade.inside[i];
    cascade.mid_row[i] = broadcast<A>(1);
  }
  tap_sums<A>({cascade.mid_row, W, nullptr, k1, d, nullptr, 0}, columns, columns1h);
  for (int t = 0; t < k1; ++t) sum1h[t] += cascade.conv0v_bias * columns1h[t];

  const auto put = [&](const Vec<A>* sum, int k, void* grad) {
    for (int c = 0; c < in.live; ++c)
      for (int t = 0; t < k; ++t) static_cast<A*>(grad)[int64_t(block * L + c) * k + t] = sum[t][c];
  };
  put(sum0h, k0, grads.conv0h);
  put(sum0v, k0, grads.conv0v);
  put(sum1h, k1, grads.conv_spatial_h);
  put(sum1v, k1, grads.conv_spatial_v);
  put(&sum0h_bias, 1, grads.conv0h_bias);
  put(&sum0v_bias, 1, grads.conv0v_bias);
  put(&sum1h_bias, 1, grads.conv_spatial_h_bias);
  put(&sum1v_bias, 1, grads.conv_spatial_v_bias);
}

template <typename T>
size_t fwd_workspace_bytes(const LskaShape& shape) {
  Arena<Acc<T>> arena{nullptr};
  if (const auto plane = plane_kernel_for<T>(shape); plane.workspace_bytes)
    return plane.workspace_bytes(shape);
  Cascade<T>(arena, shape, {}, 0);
  return arena.used * kVectorBytes;
}
template <typename T>
size_t bwd_workspace_bytes(const LskaShape& shape) {
  Arena<Acc<T>> arena{nullptr};
  Cascade<T>(arena, shape, {}, 0);
  BackwardBuffers<T>(arena, shape, {}, 0);
  return arena.used * kVectorBytes;
}

// The table's void pointers to the kernels' types.
template <typename T, typename A = Acc<T>>
LskaCpuKernels kernels_of() {
  LskaCpuKernels k;
  k.lanes = kLanes<A>;
  k.fwd_workspace_bytes = fwd_workspace_bytes<T>;
  k.bwd_workspace_bytes = bwd_workspace_bytes<T>;
  k.cascade_fwd = [](const LskaShape& shape, const LskaTaps& taps, const void* x, const void* end, void* s,
                     bool accumulate, int block, void* workspace) {
    const auto plane = plane_kernel_for<T>(shape);
    const auto to_a = plane.to_a ? plane.to_a : lska_cascade_fwd_kernel<T, A>;
    const auto to_t = plane.to_t ? plane.to_t : lska_cascade_fwd_kernel<T, T>;
    if (accumulate)
      to_a(shape, taps, static_cast<const T*>(x), static_cast<const T*>(end), static_cast<A*>(s), block,
           workspace);
    else
      to_t(shape, taps, static_cast<const T*>(x), static_cast<const T*>(end), static_cast<T*>(s), block,
           workspace);
  };
  k.cascade_bwd = [](const LskaShape& shape, const LskaTaps& taps, const void* x, const void* end,
                     const void* ds, const void* ds_end, const void* grad_y, const void* product,
                     const void* bias, void* grad_x, const LskaTapGrads& grads, int block, void* workspace) {
    lska_cascade_bwd_kernel<T>(shape, taps, static_cast<const T*>(x), static_cast<const T*>(end),
                               static_cast<const A*>(ds), static_cast<const A*>(ds_end),
                               static_cast<const T*>(grad_y), static_cast<const A*>(product),
                               static_cast<const A*>(bias), static_cast<T*>(grad_x), grads, block, workspace);
  };
  k.gate_fwd = [](const GateBlock& block, const void* x, const void* product, const void* bias, void* y) {
    lska_gate_fwd_kernel<T>(block, static_cast<const T*>(x), static_cast<const A*>(product),
                            static_cast<const A*>(bias), static_cast<T*>(y));
  };
  k.gate_bwd = [](const GateBlock& block, const void* grad_y, const void* x, void* grad_product, void* sums) {
    lska_gate_bwd_kernel<T>(block, static_cast<const T*>(grad_y), static_cast<const T*>(x),
                            static_cast<A*>(grad_product), static_cast<A*>(sums));
  };
  k.to_accumulate = [](const void* in, void* out, int64_t n) {
    to_accumulate<T>(static_cast<const T*>(in), static_cast<A*>(out), n);
  };
  k.add = [](void* sum, const void* part, int64_t n) {
    add<A>(static_cast<A*>(sum), static_cast<const A*>(part), n);
  };
  k.sum_parts = [](const void* parts, int64_t count, int64_t stride, int64_t n, void* out) {
    sum_parts<T>(static_cast<const A*>(parts), count, stride, n, static_cast<T*>(out));
  };
  return k;
}

LskaCpuKernels lska_cpu_kernels(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return kernels_of<double>();
    case Dtype::f16:
      return kernels_of<Half>();
    case Dtype::bf16:
      return kernels_of<BFloat16>();
    default:
      return kernels_of<float>();
  }
}

}  // namespace lska_ops::LSKA_OPS_ISA
