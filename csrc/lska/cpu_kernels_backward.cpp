// LSKA's cascade on CPU, backward.
#include "csrc/lska/cpu_cascade.h"
#include "csrc/lska/cpu_kernels_parts.h"

namespace lska_ops::LSKA_OPS_ISA {

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

  Vec<A>*& captured = grad_row;  // clang 14 has no capture of a structured binding
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
        out, y, [&](int64_t i) { return captured[i]; },
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

void add_backward(Dtype dtype, LskaCpuKernels& kernels) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    using A = Acc<T>;
    kernels.bwd_workspace_bytes = [](const LskaShape& shape) {
      Arena<A> arena{nullptr};
      Cascade<T>(arena, shape, {}, 0);
      BackwardBuffers<T>(arena, shape, {}, 0);
      return arena.used * kVectorBytes;
    };
    kernels.cascade_bwd = [](const LskaShape& shape, const LskaTaps& taps, const void* x, const void* end,
                             const void* ds, const void* ds_end, const void* grad_y, const void* product,
                             const void* bias, void* grad_x, const LskaTapGrads& grads, int block,
                             void* workspace) {
      lska_cascade_bwd_kernel<T>(
          shape, taps, static_cast<const T*>(x), static_cast<const T*>(end), static_cast<const A*>(ds),
          static_cast<const A*>(ds_end), static_cast<const T*>(grad_y), static_cast<const A*>(product),
          static_cast<const A*>(bias), static_cast<T*>(grad_x), grads, block, workspace);
    };
  });
}

}  // namespace lska_ops::LSKA_OPS_ISA
