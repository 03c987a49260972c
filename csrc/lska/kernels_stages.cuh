// One convolution at a time through global memory: for what fits no other kernel (taps that reach across very
// large maps). Simple on purpose.
#pragma once

#include "csrc/lska/kernels_backward.cuh"

namespace lska_ops {

struct LskaStageArguments {
  const void *in, *taps, *bias;  // [planes, H, W] of T or float; [C, k], [C] of T, the latter may be null
  void* out;                     // [planes, H, W] of T or float
  bool in_float, out_float, vertical, turned;
  LskaStage stage;
  LskaMap map;
  const void *grad_y, *product, *conv1_bias;  // the gate's part of grad_x, as in LskaBackwardArguments
};

template <class T>
LSKA_DEVICE float load_either(const void* p, int64_t i, bool is_float) {
  return is_float ? load(static_cast<const float*>(p) + i) : load(static_cast<const T*>(p) + i);
}

// A block owns some pixels of one plane. Reads what their taps reach, writes them. It is one conv2d of the
// reference.
template <class T>
LSKA_KERNEL(256)
lska_stage_kernel(const LskaStageArguments a) {
  const int64_t plane = block_x(), H = a.map.H, W = a.map.W, pixels = H * W, base = plane * pixels;
  const int channel = int(plane % a.map.C), k = a.stage.used, d = a.stage.dilation;
  const T* taps = static_cast<const T*>(a.taps) + int64_t(channel) * a.stage.k + a.stage.skip;
  const int64_t length = a.vertical ? H : W, stride = a.vertical ? W : 1;
  for (int64_t p = int64_t(block_y()) * thread_count() + thread_index(); p < pixels;
       p += int64_t(blocks_y()) * thread_count()) {
    const int64_t y = p / W, at = a.vertical ? y : p - y * W;
    float sum = 0.f;
    for (int t = 0; t < k; ++t) {
      const int64_t shift = int64_t(t - k / 2) * d, there = at + shift;
      if (there < 0 || there >= length) continue;
      const float tap = load(taps + (a.turned ? k - 1 - t : t));
      sum = multiply_add(tap, load_either<T>(a.in, base + p + shift * stride, a.in_float), sum);
    }
    float v = sum + load_bias<T>(a.bias, channel);
    if (a.grad_y)
      v = multiply_add(
          load(static_cast<const T*>(a.grad_y) + base + p),
          load(static_cast<const T*>(a.product) + base + p) + load_bias<T>(a.conv1_bias, channel), v);
    if (a.out_float)
      store(static_cast<float*>(a.out) + base + p, v);
    else
      store(static_cast<T*>(a.out) + base + p, v);
  }
}

struct LskaStageSumsArguments {
  const void* in;        // [planes, H, W] of T or float: what the stage convolved
  const void* gradient;  // the same: of what it gave
  float* sums;           // [B, C, width], at this stage's offset
  int sums_width;
  bool in_float, gradient_float, vertical;
  LskaStage stage;
  LskaMap map;
};

// A block owns one tap's gradient in one plane; the last is the bias's.
template <class T>
LSKA_KERNEL(256)
lska_stage_sums_kernel(const LskaStageSumsArguments a) {
  const int64_t plane = block_x(), H = a.map.H, W = a.map.W, pixels = H * W, base = plane * pixels;
  const int k = a.stage.k, d = a.stage.dilation;
  const int64_t length = a.vertical ? H : W, stride = a.vertical ? W : 1;
  for (int tap = block_y(); tap <= k; tap += blocks_y()) {
    const int t = tap - a.stage.skip;
    const int64_t shift = int64_t(t - a.stage.used / 2) * d;
    float sum = 0.f;
    if (tap == k || (t >= 0 && t < a.stage.used))
      for (int64_t p = thread_index(); p < pixels; p += thread_count()) {
        const float g = load_either<T>(a.gradient, base + p, a.gradient_float);
        if (tap == k) {
          sum += g;
          continue;
        }
        const int64_t y = p / W, there = (a.vertical ? y : p - y * W) + shift;
        if (there >= 0 && there < length)
          sum = multiply_add(g, load_either<T>(a.in, base + p + shift * stride, a.in_float), sum);
      }
    sum = block_sum(sum, shared_floats());
    if (thread_index() == 0) write_global(a.sums + plane * a.sums_width + tap, sum);
  }
}

}  // namespace lska_ops
