// The gate around the vendor library's product, and the sums that end every weight's gradient.
#pragma once

#include "csrc/lska/kernels_stages.cuh"

namespace lska_ops {

struct LskaGateArguments {
  const void *x, *product;  // maps of T; product: conv1 s (forward)
  const void* bias;         // conv1's [C] of T, or null (forward)
  const void* grad_y;       // map of T (backward)
  void *y, *grad_product;   // maps of T (forward; backward)
  float* sums;              // [B, parts, C] (backward): grad_product, before it was rounded, over some pixels
  LskaMap map;
  LskaGatePlan plan;
};

// n / d without a 64-bit division, which would be a call: bit by bit where n has more than 31.
LSKA_DEVICE int64_t divided(int64_t n, int64_t d) {
  if ((n | d) >> 31 == 0) return int64_t(uint32_t(n) / uint32_t(d));
  int64_t q = 0, rest = 0;
#pragma unroll 1
  for (int bit = 62; bit >= 0; --bit) {
    rest = 2 * rest + (n >> bit & 1);
    if (rest < d) continue;
    rest -= d;
    q |= int64_t(1) << bit;
  }
  return q;
}

LSKA_DEVICE int64_t divided_rest(int64_t n, int64_t d) { return n - divided(n, d) * d; }

// conv1's bias for N elements in a row of which `first` is the first: channels change after each `run`.
template <class T, int N>
LSKA_DEVICE void gate_biases(const LskaGateArguments& a, int64_t run, int64_t first, float (&bias)[N]) {
  const int64_t plane = divided(first, run), C = a.map.C;
  int64_t left = run - (first - plane * run);
  int channel = int(plane - divided(plane, C) * C);
  float v = load_bias<T>(a.bias, channel);
  bias[0] = v;
  const bool one = left >= N;
#pragma unroll
  for (int i = 1; i < N; ++i) {
    if (!one && --left == 0) {
      left = run;
      channel = channel + 1 == int(C) ? 0 : channel + 1;
      v = load_bias<T>(a.bias, channel);
    }
    bias[i] = v;
  }
}

// Elements [begin, end) of y, N at a time.
template <class T, int N>
LSKA_DEVICE void gate_elements(const LskaGateArguments& a, int64_t begin, int64_t end) {
  const int64_t run = a.map.channels_last ? 1 : int64_t(a.map.H) * a.map.W;
  const int64_t step = a.plan.step * N;
  const int64_t nth = block_x() * thread_count() + thread_index();
  if (nth >= a.plan.step) return;
  const T *x = static_cast<const T*>(a.x), *product = static_cast<const T*>(a.product);
  const bool same = a.plan.same_channels && N > 1;
  float bias[N] = {};
  if (same && a.bias) {
    T of_channels[N];
    load_some(static_cast<const T*>(a.bias) + divided_rest(nth * N, a.map.C), of_channels);
#pragma unroll
    for (int i = 0; i < N; ++i) bias[i] = to_float(of_channels[i]);
  }
  for (int64_t at = begin + nth * N; at < end; at += step) {
    T in[N], gate[N];
    load_some(x + at, in);
    load_some(product + at, gate);
    if (!same) gate_biases<T>(a, run, at, bias);
    float v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = to_float(in[i]) * (to_float(gate[i]) + bias[i]);
    if constexpr (N > 1)
      store_vector(static_cast<T*>(a.y) + at, v);
    else
      store(static_cast<T*>(a.y) + at, v[0]);
  }
}

// A thread owns every plan.step-th group of 16 bytes, or element, of y = x (product + bias). It is the last
// line of reference.gate.
template <class T>
LSKA_KERNEL(256)
lska_gate_fwd_kernel(const LskaGateArguments a) {
  const int64_t n = a.map.planes * a.map.H * a.map.W;
  const int64_t whole = a.plan.vectors ? n / kVector<T> * kVector<T> : 0;
  if (whole) gate_elements<T, kVector<T>>(a, 0, whole);
  gate_elements<T, 1>(a, whole, n);
}

// N products of elements from `at` on: added to `sum` and written, as they are N channels or one.
template <class T, int N, int M>
LSKA_DEVICE void gate_bwd_elements(const LskaGateArguments& a, int64_t at, float (&sum)[M]) {
  T in[N], grad[N];
  load_some(static_cast<const T*>(a.x) + at, in);
  load_some(static_cast<const T*>(a.grad_y) + at, grad);
  float v[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = to_float(in[i]) * to_float(grad[i]);
    sum[M == 1 ? 0 : i] += v[i];
  }
  if constexpr (N > 1)
    store_vector(static_cast<T*>(a.grad_product) + at, v);
  else
    store(static_cast<T*>(a.grad_product) + at, v[0]);
}

// NCHW: a warp owns a part of a plane.
template <class T>
LSKA_DEVICE void gate_bwd_plane(const LskaGateArguments& a) {
  constexpr int N = kVector<T>;
  const int lane = thread_index() % kWarp;
  const int64_t pixels = int64_t(a.map.H) * a.map.W;
  const int64_t nth = block_x() * (thread_count() / kWarp) + thread_index() / kWarp;
  const int64_t plane = divided(nth, a.plan.parts), part = nth - plane * a.plan.parts;
  if (plane >= a.map.planes) return;
  const int64_t first = plane * pixels, begin = first + part * a.plan.pixels;
  const int64_t end = min(begin + a.plan.pixels, first + pixels);
  const int64_t from = a.plan.vectors ? min((begin + N - 1) / N * N, end) : end;
  const int64_t to = a.plan.vectors ? max(end / N * N, from) : end;
  float sum[1] = {};
#pragma unroll 1  // not unrolled, it leaves the loop below enough registers
  for (int64_t at = begin + lane; at < from; at += kWarp) gate_bwd_elements<T, 1>(a, at, sum);
  for (int64_t at = from + lane * N; at < to; at += kWarp * N) gate_bwd_elements<T, N>(a, at, sum);
#pragma unroll 1
  for (int64_t at = to + lane; at < end; at += kWarp) gate_bwd_elements<T, 1>(a, at, sum);
  const float total = warp_sum(sum[0]);
  const int64_t image = divided(plane, a.map.C);
  if (lane == 0)
    write_global(a.sums + (image * a.plan.parts + part) * a.map.C + plane - image * a.map.C, total);
}

// channels_last: a block owns some pixels of some channels, a thread some pixels of N of these.
template <class T, int N>
LSKA_DEVICE void gate_bwd_pixels(const LskaGateArguments& a) {
  const int across = a.plan.across, rows = a.plan.rows, t = thread_index(), C = a.map.C;
  const int64_t pixels = int64_t(a.map.H) * a.map.W, image = divided(block_x(), a.plan.groups);
  const int group = int(block_x() - image * a.plan.groups), row = t / across, nth = t - row * across;
  const int first = group * across * N, channel = first + nth * N;
  float sum[N] = {};
  if (row < rows && channel < C) {
    // In 32 bits, since a compiler that unrolls the loop divides its length by its step.
    const int64_t begin = block_y() * a.plan.pixels, at = (image * pixels + begin) * C + channel;
    const int end = int(min(a.plan.pixels, pixels - begin));
    for (int p = row; p < end; p += rows) gate_bwd_elements<T, N>(a, at + int64_t(p) * C, sum);
  }
  float* const shared = shared_floats();
  const int pitch = thread_count() + 8;  // neighbouring channels in different banks
#pragma unroll
  for (int i = 0; i < N; ++i) shared[i * pitch + t] = sum[i];
  barrier();
  for (int i = t; i < across * N; i += thread_count()) {
    const int of = i / across, at = i - of * across, c = first + at * N + of;
    float total = 0.f;
    for (int r = 0; r < rows; ++r) total += shared[of * pitch + r * across + at];
    if (c < C) write_global(a.sums + (image * a.plan.parts + block_y()) * C + c, total);
  }
}

// grad_product = grad_y x, and its sums over a block's or warp's pixels.
template <class T>
LSKA_KERNEL(256)
lska_gate_bwd_kernel(const LskaGateArguments a) {
  if (!a.map.channels_last) return gate_bwd_plane<T>(a);
  if (a.plan.vectors) return gate_bwd_pixels<T, kVector<T>>(a);
  gate_bwd_pixels<T, 1>(a);
}

struct LskaSum {
  void* out;      // [rows, k] of T
  int offset, k;  // its place in a row of sums
};

// Sums over `count` parts, by the launch's blocks from first_block on.
struct LskaSums {
  const void* parts;  // [count, rows, width] of float, or of T
  int64_t rows, first_block;
  int count, width;
  int split;  // threads that share an element's parts
  bool parts_float;
  int outs_count;
  LskaSum outs[8];
};

constexpr int kMostSums = 3;  // of the taps and their biases, of conv1's bias, of conv1's weight
struct LskaSumsArguments {
  int count;
  LskaSums of[kMostSums];
};

// `split` threads own one element of the gradients. Each adds every split-th of its parts, in their order;
// the first adds the others' sums to its own.
template <class T>
LSKA_KERNEL(256)
lska_sums_kernel(const LskaSumsArguments a) {
  int which = 0;
#pragma unroll
  for (int i = 1; i < kMostSums; ++i)
    if (i < a.count && block_x() >= a.of[i].first_block) which = i;
  const LskaSums& sums = a.of[which];
  const int mine = thread_count() / sums.split, nth = thread_index() / mine,
            at_here = thread_index() - nth * mine;
  const int64_t n = sums.rows * sums.width, i = (block_x() - sums.first_block) * mine + at_here;
  float sum = 0.f;
  if (i < n) {
#pragma unroll 8
    for (int part = nth; part < sums.count; part += sums.split)
      sum += load_either<T>(sums.parts, part * n + i, sums.parts_float);
  }
  if (sums.split > 1) {
    float* const shared = shared_floats();
    shared[thread_index()] = sum;
    barrier();
    for (int w = 1; nth == 0 && w < sums.split; ++w) sum += shared[w * mine + at_here];
  }
  if (nth > 0 || i >= n) return;
  const int64_t row = divided(i, sums.width);
  const int at = int(i - row * sums.width);
  for (int j = 0; j < sums.outs_count; ++j) {
    const LskaSum& s = sums.outs[j];
    if (at < s.offset || at >= s.offset + s.k) continue;
    store(static_cast<T*>(s.out) + row * s.k + at - s.offset, sum);
  }
}

}  // namespace lska_ops
