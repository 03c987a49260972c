// The cascade backward from x and ds alone, in shared memory: the stages are computed again, each beside the
// gradient it meets. Three maps are kept: x, one stage, one gradient.
#pragma once

#include "csrc/common/block_sum.cuh"
#include "csrc/lska/kernels_plane.cuh"

namespace lska_ops {

struct LskaBackwardArguments {
  const void *x, *ds;   // maps of T
  const void* grad_y;   // the same
  const void* product;  // the same: conv1 s, without its bias
  const void* bias;     // conv1's [C] of T, or null
  void* grad_x;         // the same as x
  float* sums;          // [B * tiles, C, width]: a tile's tap gradients, tensor after tensor
  int sums_width;
  LskaWeightPointers weights;
  LskaMap map;
  LskaRegion region;
};

// Where a stage's tap gradients stand among a channel's sums: conv0h, its bias, conv0v, its bias, then the
// others.
constexpr LSKA_BOTH int sums_offset(int stage, int k0, int k1) {
  const bool vertical = stage >= 2, dilated = stage % 2;
  return (dilated ? 2 * (k0 + 1) : 0) + (vertical ? (dilated ? k1 : k0) + 1 : 0);
}

// One plane's threads: sums over them of each tap's gradient and, behind those, of the gradient itself; one
// row of `warp_sums` per warp. Every thread takes part in the shuffles, with zeros where it has no run.
struct TapSums {
  float* row;  // this warp's
  bool first_lane;
  LSKA_DEVICE void put(int t, float v) const {
    v = warp_sum(v);
    if (first_lane) row[t] = v;
  }
};

// The gradients of taps Begin to K: sum over r in [from, to) of g[r] line(first + (r + t - K/2) d), where
// that lies in the line. Seven at a time: more would not stay in registers.
template <int K, int Begin = 0>
LSKA_DEVICE void correlate_run(const Line& line, const float (&g)[kRun], int from, int to, int first, int d,
                               const TapSums& out) {
  constexpr int n = K - Begin < 7 ? K - Begin : 7;
  float sum[n] = {};
#pragma unroll
  for (int j = 0; j < kRun + n - 1; ++j) {
    const int at = first + (j + Begin - K / 2) * d;
    if (uint32_t(at) >= uint32_t(line.length)) continue;
    const float v = line.first[at * line.stride];
#pragma unroll
    for (int r = 0; r < kRun; ++r)
      if (j >= r && j - r < n && r >= from && r < to) sum[j - r] = multiply_add(g[r], v, sum[j - r]);
  }
#pragma unroll
  for (int t = 0; t < n; ++t) out.put(Begin + t, sum[t]);
  if constexpr (Begin + n < K) correlate_run<K, Begin + n>(line, g, from, to, first, d, out);
}

LSKA_DEVICE void correlate(const Line& line, const float (&g)[kRun], int from, int to, int first, int d,
                           int k, const TapSums& out) {
  const bool done = pick<3, 5, 7, 11, 13, 17>(
      k, [&](auto size) { correlate_run<decltype(size)::value>(line, g, from, to, first, d, out); });
  for (int t = done ? k : 0; t < k; ++t) {
    float sum = 0.f;
#pragma unroll
    for (int r = 0; r < kRun; ++r) {
      const int at = first + (r + t - k / 2) * d;
      if (r >= from && r < to && uint32_t(at) < uint32_t(line.length))
        sum = multiply_add(g[r], line.first[at * line.stride], sum);
    }
    out.put(t, sum);
  }
  float total = 0.f;
#pragma unroll
  for (int r = 0; r < kRun; ++r)
    if (r >= from && r < to) total += g[r];
  out.put(k, total);
}

// The ten convolutions of the backward, one digit each: which stage (h0, h1, v0, v1), whether it runs from x
// (1), on the stage before (2) or on the gradient (3, then with its taps turned around), and which stage's
// tap gradients can be taken afterwards (4: none).
constexpr int kSteps = 10;
LSKA_DEVICE int digit(uint64_t digits, int step) { return int(digits >> 4 * step & 15); }
constexpr uint64_t kStepStage = 0x0102103210, kStepFrom = 0x3313213221, kStepSums = 0x4014244344;

// One plane's part of a block in shared memory. Two addresses and what the region says: more would not stay
// in registers.
struct BackwardPlane {
  const LskaRegion& r;
  float *x, *taps;

  LSKA_DEVICE BackwardPlane(const LskaRegion& region, int plane)
      : r(region),
        x(shared_floats() + plane * region.rows * region.pitch),
        taps(shared_floats() + 3 * region.maps + plane * region.lines) {}
  LSKA_DEVICE float* stage() const { return x + r.maps; }
  LSKA_DEVICE float* gradient() const { return x + 2 * r.maps; }
  LSKA_DEVICE float* turned() const { return taps + 4 * r.tap_pitch; }
  LSKA_DEVICE float* extra() const { return taps + 8 * r.tap_pitch; }   // of conv_spatial_h, by conv0v's bias
  LSKA_DEVICE float* inside() const { return taps + 9 * r.tap_pitch; }  // inside_h1 of each column
  LSKA_DEVICE float* columns() const { return inside() + r.cols; }      // the bias along columns
  LSKA_DEVICE float* column_sums() const { return inside() + 2 * r.cols; }  // of the gradient
  LSKA_DEVICE float* biases() const { return inside() + 3 * r.cols; }       // h0's, v0's, conv1's, h1's
  LSKA_DEVICE float* warp_sums() const { return inside() + 3 * r.cols + 6; }

  // Where the plane's sums go: needed a few times only, so it does not stay in registers either.
  LSKA_DEVICE void keep(float* sums) const { memcpy(biases() + 4, &sums, sizeof sums); }
  LSKA_DEVICE float* sums() const {
    float* kept;
    memcpy(&kept, biases() + 4, sizeof kept);
    return kept;
  }
};

// conv0v's bias reaches s through conv_spatial_h: its gradient, and what it adds to conv_spatial_h's, from
// the sums of the gradient between the vertical convolutions along columns.
LSKA_DEVICE void column_bias_gradients(const BackwardPlane& p, const LskaRegion& r, const Tile& tile, int t,
                                       int W, float* out_bias) {
  for (int x = t; x < tile.cols; x += r.threads_per_plane) {
    float sum = 0.f;
    const float* column = p.gradient() + (tile.row - tile.top) * r.pitch + tile.col - tile.left + x;
    for (int y = 0; y < tile.rows; ++y) sum += column[y * r.pitch];
    p.column_sums()[x] = sum;
  }
  barrier();
  const LskaStage h1 = r.stages.h1;
  for (int tap = t; tap <= h1.used; tap += r.threads_per_plane) {
    float sum = 0.f;
    for (int x = 0; x < tile.cols; ++x) {
      const int at = tile.col + x + (tap - h1.used / 2) * h1.dilation;
      if (tap == h1.used)
        sum += p.column_sums()[x] * p.inside()[tile.col - tile.left + x];
      else if (at >= 0 && at < W)
        sum += p.column_sums()[x] * p.biases()[1];
    }
    if (tap < h1.used)
      p.extra()[tap] = sum;
    else if (out_bias)
      write_global(out_bias, sum);
  }
}

// x and ds of a block's tile, into shared memory.
template <class T>
LSKA_DEVICE void read_maps(const LskaBackwardArguments& a, const Tile& tile, const BackwardPlane& first) {
  const LskaRegion& r = a.region;
  const auto [first_plane, planes] = planes_of(a.map, r, block_x_again());
  const int C = a.map.C, W = a.map.W;
  const int64_t start = offset_of(a.map, first_plane, tile.top, tile.left);
  const T *x = static_cast<const T*>(a.x) + start, *ds = static_cast<const T*>(a.ds) + start;
  if (a.map.channels_last) {
    const Pixels in{tile.height, tile.width, planes, C, int64_t(W) * C, r.pitch, r.rows * r.pitch};
#pragma unroll 1  // twice the code would cost the loop over the steps a register that it does not have
    for (int map = 0; map < 2; ++map) copy_in(map ? ds : x, in, map ? first.gradient() : first.x);
    return;
  }
  const bool whole = tile.width == W;
  const Lines in = whole ? Lines{1, planes * tile.height * W, 0} : Lines{tile.height, tile.width, W};
  const Rows rows{tile.width, r.pitch, whole ? r.by_cols : Divisor{0x7fffffff, 0}};
  copy_in(x, in, first.x, rows);
  copy_in(ds, in, first.gradient(), rows);
}

// grad_x of a block's tile, from the gradient in shared memory, with the gate's part.
template <class T>
LSKA_DEVICE void write_grad_x(const LskaBackwardArguments& a, const Tile& tile, const BackwardPlane& first) {
  const LskaRegion& r = a.region;
  const auto [first_plane, planes] = planes_of(a.map, r, block_x_again());
  const int C = a.map.C, W = a.map.W;
  const int64_t at = offset_of(a.map, first_plane, tile.row, tile.col);
  T* const grad_x = static_cast<T*>(a.grad_x) + at;
  const float* core = first.gradient() + (tile.row - tile.top) * r.pitch + tile.col - tile.left;
  const auto finish = [&](int64_t element, auto& v, const auto& plane_of) {
    constexpr int N = sizeof(v) / sizeof(v[0]);
    T grad[N], gate[N];
    load_some(static_cast<const T*>(a.grad_y) + at + element, grad);
    load_some(static_cast<const T*>(a.product) + at + element, gate);
#pragma unroll
    for (int i = 0; i < N; ++i)
      v[i] = multiply_add(to_float(grad[i]), to_float(gate[i]) + first.biases()[plane_of(i) * r.lines + 2],
                          v[i]);
  };
  if (a.map.channels_last) {
    const int64_t row_stride = int64_t(W) * C;
    copy_out(grad_x, Pixels{tile.rows, tile.cols, planes, C, row_stride, r.pitch, r.rows * r.pitch}, core,
             [&](int64_t element, auto& v, int channel) {
               finish(element, v, [&](int i) { return channel + i; });
             });
    return;
  }
  const bool owned = tile.cols == W;  // all columns that were loaded
  const Lines out = owned ? Lines{1, planes * tile.rows * W, 0} : Lines{tile.rows, tile.cols, W};
  const Rows out_rows{tile.cols, r.pitch, owned ? r.by_cols : Divisor{0x7fffffff, 0}};
  copy_out(
      grad_x, out, out_rows, [&](int i) { return core[i]; },
      [&](int64_t element, auto& v) {
        finish(element, v, [&](int i) {
          return r.planes > 1 ? quotient(quotient(int(element) + i, r.by_cols), r.by_rows) : 0;
        });
      });
}

// A block owns `planes` planes, each with its own warps, or a tile of one. Reads x and ds (a tile: with the
// halo its taps reach), writes grad_x = grad_y (product + bias) + cascade^T(ds), and for each plane and tile
// its sums.
template <class T>
LSKA_KERNEL(kMaxThreads)
lska_cascade_bwd_kernel(const LskaBackwardArguments a) {
  const LskaRegion& r = a.region;
  const int plane = thread_index() / r.threads_per_plane, t = thread_index() - plane * r.threads_per_plane;
  const auto [first_plane, planes] = planes_of(a.map, r, block_x());
  const int64_t nth = first_plane + plane;
  const int C = a.map.C, W = a.map.W, k0 = r.stages.h0.k, k1 = r.stages.h1.k;
  const int first_channel = int(first_plane % C), channel = (first_channel + plane) % C;
  const Tile tile = tile_of(a.map, r, r.reach_v, r.reach_h);
  const bool here = plane < planes;
  const BackwardPlane p(r, plane), first(r, 0);

  load_taps<T>(a.weights, r, planes, first_channel, C, first.taps, r.lines, false);
  load_taps<T>(a.weights, r, planes, first_channel, C, first.turned(), r.lines, true);
  read_maps<T>(a, tile, first);
  if (here && t == 0) {
    p.biases()[0] = load_bias<T>(a.weights.h0_bias, channel);
    p.biases()[1] = load_bias<T>(a.weights.v0_bias, channel);
    p.biases()[2] = load_bias<T>(a.bias, channel);
    p.biases()[3] = load_bias<T>(a.weights.h1_bias, channel);
    const int64_t part = (nth / C * blocks_y() + block_y()) * blocks_z() + block_z();
    p.keep(a.sums + (part * C + channel) * a.sums_width);
  }
  barrier();
  for (int i = t; here && i < tile.width; i += r.threads_per_plane) {
    p.inside()[i] = inside_h1(r.stages.h1, p.taps + r.tap_pitch, tile.left + i, W);
    p.columns()[i] = p.biases()[1] * p.inside()[i] + p.biases()[3];
  }
  const int warp = t / kWarp;
  const TapSums tap_sums{p.warp_sums() + warp * (r.tap_pitch + 1), t % kWarp == 0};

#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    const int stage = digit(kStepStage, step), from = digit(kStepFrom, step), summed = digit(kStepSums, step);
    const bool skipped = stage % 2 && k1 == 0;
    if (!skipped) {
      const bool vertical = stage >= 2;
      const int k = vertical ? (stage % 2 ? r.stages.v1.used : r.stages.v0.used)
                             : (stage % 2 ? r.stages.h1.used : r.stages.h0.used);
      const Run run = run_of(t, r, 1, tile.height, tile.width, vertical, stage % 2);
      const bool active = here && run.active && run.plane == 0;
      float sum[kRun] = {};
      if (active)
        convolve(Line{p.x + (from - 1) * r.maps + run.base, run.stride, run.length}, run.first, run.d,
                 (from == 3 ? p.turned() : p.taps) + stage * r.tap_pitch, k, sum);
      barrier();
      const float bias = from == 3              ? 0.f
                         : stage == 0           ? p.biases()[0]
                         : stage == 2 && active ? p.columns()[run.line]
                                                : 0.f;
      if (active) write_run(from == 3 ? p.gradient() : p.stage(), run, bias, sum);
      barrier();
    }
    if (step == 3) {
      column_bias_gradients(p, r, tile, t, W, here && k1 ? p.sums() + sums_offset(2, k0, k1) + k0 : nullptr);
      barrier();
    }
    if (summed == 4 || (summed % 2 && k1 == 0)) continue;

    const bool vertical = summed >= 2;
    const LskaStage s =
        vertical ? (summed % 2 ? r.stages.v1 : r.stages.v0) : (summed % 2 ? r.stages.h1 : r.stages.h0);
    const Run run = run_of(t, r, 1, tile.height, tile.width, vertical, summed % 2);
    const int line = run.line + (vertical ? tile.left - tile.col : tile.top - tile.row);
    const bool active =
        here && run.active && run.plane == 0 && line >= 0 && line < (vertical ? tile.cols : tile.rows);
    const int begin =
        vertical ? tile.row - tile.top : tile.col - tile.left;  // the run's outputs that are its own
    const int end = min(run.length, begin + (vertical ? tile.rows : tile.cols));
    float g[kRun] = {};
    int lowest = kRun, highest = 0;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int at = run.first + i * run.d;
      if (!active || at < begin || at >= end) continue;
      g[i] = p.gradient()[run.base + at * run.stride];
      lowest = min(lowest, i);
      highest = i + 1;
    }
    correlate(Line{(summed == 0 ? p.x : p.stage()) + run.base, run.stride, run.length}, g, lowest, highest,
              run.first, run.d, s.used, tap_sums);
    barrier();
    // The last stage before s adds its bias to it, the one before the columns' bias: b1h, or without a pair
    // b0v.
    const int bias_of = summed == 0 ? 0 : summed == 3 ? 3 : summed == 2 ? (k1 ? 1 : 2) : 4;
    for (int i = t; here && i <= s.k; i += r.threads_per_plane) {
      const bool bias = i == s.k;
      const int tap = bias ? s.used : i - s.skip;
      if (bias && bias_of == 4) continue;
      float sum = 0.f;
      if (tap >= 0 && tap <= s.used && (bias || tap < s.used)) {
        for (int w = 0; w < r.threads_per_plane / kWarp; ++w)
          sum += p.warp_sums()[w * (r.tap_pitch + 1) + tap];
        if (summed == 1) sum += p.extra()[tap];
      }
      const int of = bias ? bias_of : summed;
      write_global(p.sums() + sums_offset(of, k0, k1) + (bias ? (of % 2 ? k1 : k0) : i), sum);
    }
    barrier();
  }

  write_grad_x<T>(a, tile, first);
}

}  // namespace lska_ops
