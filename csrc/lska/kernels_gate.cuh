// The gate around the vendor library's product, and the sums that end every weight's gradient.
#pragma once

#include "csrc/lska/kernels_stages.cuh"

namespace lska_ops {

struct LskaGateArguments {
  const void *x, *product;  // [planes, pixels] of T; product: conv1 s (forward)
  const void* bias;         // conv1's [C] of T, or null (forward)
  const void* grad_y;       // [planes, pixels] of T (backward)
  void *y, *grad_product;   // [planes, pixels] of T (forward; backward)
  float* sums;  // [planes] (backward): grad_product, before it was rounded, summed over the pixels
  int C;
  int64_t pixels;
};

constexpr int64_t kGateBlock = 8192;  // pixels of one block forward

// A block owns up to kGateBlock pixels of a plane: y = x (product + bias). It is the last line of
// reference.gate.
template <class T>
LSKA_KERNEL(256)
lska_gate_fwd_kernel(const LskaGateArguments a) {
  const int64_t plane = block_x();
  const float bias = load_bias<T>(a.bias, int(plane % a.C));
  for (int64_t begin = block_y() * kGateBlock; begin < a.pixels; begin += blocks_y() * kGateBlock) {
    const int64_t at = plane * a.pixels + begin;
    const T *x = static_cast<const T*>(a.x) + at, *product = static_cast<const T*>(a.product) + at;
    T* y = static_cast<T*>(a.y) + at;
    const Lines line{1, int(min(kGateBlock, a.pixels - begin)), 0};
    for_each_group(
        y, line,
        [&](int, int first) {
          float v[kVector<T>];
          T in[kVector<T>], gate[kVector<T>];
          load_some(x + first, in);
          load_some(product + first, gate);
#pragma unroll
          for (int i = 0; i < kVector<T>; ++i) v[i] = to_float(in[i]) * (to_float(gate[i]) + bias);
          store_vector(y + first, v);
        },
        [&](int, int i) { store(y + i, load(x + i) * (load(product + i) + bias)); });
  }
}

// A block owns a plane: grad_product = grad_y x, and its sum.
template <class T>
LSKA_KERNEL(512)
lska_gate_bwd_kernel(const LskaGateArguments a) {
  const int64_t plane = block_x(), at = plane * a.pixels;
  const T *x = static_cast<const T*>(a.x) + at, *grad_y = static_cast<const T*>(a.grad_y) + at;
  T* out = static_cast<T*>(a.grad_product) + at;
  constexpr int N = kVector<T>;
  float sum = 0.f;
  for (int64_t begin = 0; begin < a.pixels; begin += 1 << 20) {
    const Lines line{1, int(min(int64_t(1 << 20), a.pixels - begin)), 0};
    for_each_group(
        out + begin, line,
        [&](int, int first) {
          float v[N];
          T in[N], grad[N];
          load_some(x + begin + first, in);
          load_some(grad_y + begin + first, grad);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            v[i] = to_float(in[i]) * to_float(grad[i]);
            sum += v[i];
          }
          store_vector(out + begin + first, v);
        },
        [&](int, int i) {
          const float v = load(x + begin + i) * load(grad_y + begin + i);
          sum += v;
          store(out + begin + i, v);
        });
  }
  sum = block_sum(sum, shared_floats());
  if (thread_index() == 0) write_global(a.sums + plane, sum);
}

struct LskaSum {
  void* out;      // [rows, k] of T or float; null: not wanted
  int offset, k;  // its place in a row of sums
};

struct LskaSumsArguments {
  const void* parts;     // [count, rows, width] of float, or of T
  const float* initial;  // [rows, width] to begin with, or null
  int64_t count, rows;
  int width;
  bool parts_float, out_float;
  LskaSum sums[8];
};

// A thread owns one element of the gradients and adds its parts in their order.
template <class T>
LSKA_KERNEL(256)
lska_sums_kernel(const LskaSumsArguments a) {
  const int64_t n = a.rows * a.width, i = block_x() * thread_count() + thread_index();
  if (i >= n) return;
  const int64_t row = i / a.width;
  const int at = int(i - row * a.width);
  float sum = a.initial ? load(a.initial + i) : 0.f;
  for (int64_t part = 0; part < a.count; ++part) sum += load_either<T>(a.parts, part * n + i, a.parts_float);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const LskaSum s = a.sums[j];
    if (!s.out || at < s.offset || at >= s.offset + s.k) continue;
    const int64_t to = row * s.k + at - s.offset;
    if (a.out_float)
      store(static_cast<float*>(s.out) + to, sum);
    else
      store(static_cast<T*>(s.out) + to, sum);
  }
}

}  // namespace lska_ops
