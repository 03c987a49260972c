// One convolution at a time through global memory: for what fits no other kernel (taps that reach across very
// large maps). Simple on purpose.
#pragma once

#include "csrc/lska/kernels_backward.cuh"

namespace lska_ops {

struct LskaStageArguments {
  const void *in, *taps, *bias;  // map of T or float; [C, k], [C] of T, the latter may be null
  void* out;                     // map of T or float
  bool in_float, out_float, vertical, turned;
  LskaStage stage;
  LskaMap map;
  const void *grad_y, *product, *conv1_bias;  // the gate's part of grad_x, as in LskaBackwardArguments
};

template <class T>
LSKA_DEVICE float load_either(const void* p, int64_t i, bool is_float) {
  return is_float ? load(static_cast<const float*>(p) + i) : load(static_cast<const T*>(p) + i);
}

// A block owns some pixels of one plane, in channels_last some elements of one image. Reads what their taps
// reach, writes them. It is one conv2d of the reference.
template <class T>
LSKA_KERNEL(256)
lska_stage_kernel(const LskaStageArguments a) {
  const int64_t H = a.map.H, W = a.map.W, lanes = a.map.channels_last ? a.map.C : 1;
  const int64_t elements = H * W * lanes, base = block_x() * elements;
  const int k = a.stage.used, d = a.stage.dilation;
  const int64_t length = a.vertical ? H : W, stride = (a.vertical ? W : 1) * lanes;
  for (int64_t e = int64_t(block_y()) * thread_count() + thread_index(); e < elements;
       e += int64_t(blocks_y()) * thread_count()) {
    const int64_t p = e / lanes, y = p / W, at = a.vertical ? y : p - y * W;
    const int channel = int(a.map.channels_last ? e - p * lanes : block_x() % a.map.C);
    const T* taps = static_cast<const T*>(a.taps) + int64_t(channel) * a.stage.k + a.stage.skip;
    float sum = 0.f;
    for (int t = 0; t < k; ++t) {
      const int64_t shift = int64_t(t - k / 2) * d, there = at + shift;
      if (there < 0 || there >= length) continue;
      const float tap = load(taps + (a.turned ? k - 1 - t : t));
      sum = multiply_add(tap, load_either<T>(a.in, base + e + shift * stride, a.in_float), sum);
    }
    float v = sum + load_bias<T>(a.bias, channel);
    if (a.grad_y)
      v = multiply_add(
          load(static_cast<const T*>(a.grad_y) + base + e),
          load(static_cast<const T*>(a.product) + base + e) + load_bias<T>(a.conv1_bias, channel), v);
    if (a.out_float)
      store(static_cast<float*>(a.out) + base + e, v);
    else
      store(static_cast<T*>(a.out) + base + e, v);
  }
}

struct LskaStageSumsArguments {
  const void* in;        // map of T or float: what the stage convolved
  const void* gradient;  // the same: of what it gave
  float* sums;           // [B, C, width], at this stage's offset
  int sums_width;
  bool in_float, gradient_float, vertical;
  LskaStage stage;
  LskaMap map;
};

// A block owns one tap's gradient in one plane, in channels_last in a warp's width of channels; the last is
// the bias's.
template <class T>
LSKA_KERNEL(256)
lska_stage_sums_kernel(const LskaStageSumsArguments a) {
  const bool last = a.map.channels_last;
  const int64_t H = a.map.H, W = a.map.W, C = a.map.C, pixels = H * W, lanes = last ? C : 1;
  const int64_t groups = last ? (C + kWarp - 1) / kWarp : C, image = block_x() / groups;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp, warps = thread_count() / kWarp;
  const int64_t channel = last ? (block_x() - image * groups) * kWarp + lane : block_x() - image * groups;
  const int64_t base = last ? image * pixels * C + channel : block_x() * pixels;
  const int64_t first = last ? warp : thread_index(), step = last ? warps : thread_count();
  const int k = a.stage.k, d = a.stage.dilation;
  const int64_t length = a.vertical ? H : W, stride = a.vertical ? W : 1;
  float* const shared = shared_floats();
  for (int tap = block_y(); tap <= k; tap += blocks_y()) {
    const int t = tap - a.stage.skip;
    const int64_t shift = int64_t(t - a.stage.used / 2) * d;
    float sum = 0.f;
    if (channel < C && (tap == k || (t >= 0 && t < a.stage.used)))
      for (int64_t p = first; p < pixels; p += step) {
        const float g = load_either<T>(a.gradient, base + p * lanes, a.gradient_float);
        if (tap == k) {
          sum += g;
          continue;
        }
        const int64_t y = p / W, there = (a.vertical ? y : p - y * W) + shift;
        if (there >= 0 && there < length)
          sum = multiply_add(g, load_either<T>(a.in, base + (p + shift * stride) * lanes, a.in_float), sum);
      }
    bool writes = thread_index() == 0;
    if (last) {
      barrier();
      shared[thread_index()] = sum;
      barrier();
      writes = warp == 0 && channel < C;
      for (int w = 1; writes && w < warps; ++w) sum += shared[w * kWarp + lane];
    } else {
      sum = block_sum(sum, shared);
    }
    if (writes) write_global(a.sums + (image * C + channel) * a.sums_width + tap, sum);
  }
}

}  // namespace lska_ops
