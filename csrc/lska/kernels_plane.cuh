// The cascade of planes that fit in shared memory: read once, convolved in place, written once. Rows and
// columns commute, so both horizontal convolutions come first; the biases then become a constant per plane
// (conv0h, conv_spatial_v) and one value per column (what conv_spatial_h makes of conv0v's bias, plus its
// own).
#pragma once

#include "csrc/lska/kernels_line.cuh"

namespace lska_ops {

struct LskaPlaneArguments {
  const void* x;  // map of T
  void* s;        // the same
  LskaWeightPointers weights;
  LskaMap map;
  LskaRegion region;
};

// One run of one stage: where its line begins, where the run does, and how far it may go.
struct Run {
  int plane, line, base, stride, first, length, d;
  bool active;
};

// Thread t's run among `planes` planes' regions of height x width; runs next to each other lie in lines next
// to each other, so that a warp reads 32 rows or 32 columns at a time.
LSKA_DEVICE Run run_of(int t, const LskaRegion& r, int planes, int height, int width, bool vertical,
                       bool dilated) {
  const Divisor across = vertical ? r.by_cols : r.by_rows;
  const int lines = planes * int(across.d);
  Run run;
  const int nth = t / lines, line = t - nth * lines;
  run.plane = quotient(line, across);
  run.line = line - run.plane * int(across.d);
  run.length = vertical ? height : width;
  run.stride = vertical ? r.pitch : 1;
  run.base = run.plane * r.rows * r.pitch + run.line * (vertical ? 1 : r.pitch);
  run.d = !dilated ? 1 : vertical ? r.stages.v1.dilation : r.stages.h1.dilation;
  const int block = !dilated ? nth : quotient(nth, vertical ? r.by_v1 : r.by_h1);
  run.first = block * kRun * run.d + nth - block * run.d;
  run.active = run.line < (vertical ? width : height) && run.first < run.length;
  return run;
}

LSKA_DEVICE void write_run(float* map, const Run& run, float bias, const float (&sum)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const int at = run.first + i * run.d;
    if (at < run.length) map[run.base + at * run.stride] = sum[i] + bias;
  }
}

// A block owns `planes` planes, or a band of rows of one (in channels_last: any tile of them). Reads them (a
// part: with what its taps reach) and their weights, keeps one float per pixel, and writes s. It is
// reference.cascade.
template <class T>
LSKA_KERNEL(kMaxThreads)
lska_cascade_fwd_kernel(const LskaPlaneArguments a) {
  const LskaRegion& r = a.region;
  const auto [first_plane, planes] = planes_of(a.map, r, block_x());
  const int channel = int(first_plane % a.map.C), W = a.map.W, t = thread_index();
  const Tile tile = tile_of(a.map, r, r.reach_v, r.reach_h);
  float* map = shared_floats();
  float* taps = map + r.planes * r.rows * r.pitch;
  float* columns = taps + r.planes * 4 * r.tap_pitch;  // the bias along columns
  float* biases = columns + r.planes * r.cols;         // h0's, h1's, v0's, v1's

  load_taps<T>(a.weights, r, planes, channel, a.map.C, taps, 4 * r.tap_pitch, false);
  const T* x = static_cast<const T*>(a.x) + offset_of(a.map, first_plane, tile.top, tile.left);
  // Planes that are whole follow each other in shared memory as they do in global memory.
  const Rows rows{W, r.pitch, r.by_cols};
  const int64_t row_stride = int64_t(W) * a.map.C;
  const int plane_pitch = r.rows * r.pitch;
  if (a.map.channels_last)
    copy_in(x, Pixels{tile.height, tile.width, planes, a.map.C, row_stride, r.pitch, plane_pitch}, map);
  else
    copy_in(x, Lines{1, planes * tile.height * W, 0}, map, rows);
  for (int i = t; i < planes; i += thread_count()) {
    const int c = (channel + i) % a.map.C;
    biases[4 * i] = load_bias<T>(a.weights.h0_bias, c);
    biases[4 * i + 1] = load_bias<T>(a.weights.h1_bias, c);
    biases[4 * i + 2] = load_bias<T>(a.weights.v0_bias, c);
    biases[4 * i + 3] = load_bias<T>(a.weights.v1_bias, c);
  }
  barrier();
  for (int i = t; i < planes * r.cols; i += thread_count()) {
    const int plane = quotient(i, r.by_cols), x = tile.left + i - plane * r.cols;
    const float inside = inside_h1(r.stages.h1, taps + (4 * plane + 1) * r.tap_pitch, x, W);
    columns[i] = biases[4 * plane + 2] * inside + biases[4 * plane + 1];
  }

#pragma unroll 1
  for (int stage = 0; stage < 4; ++stage) {  // h0, h1, v0, v1
    const bool vertical = stage >= 2, dilated = stage % 2;
    if (dilated && r.stages.h1.k == 0) continue;
    const int k = vertical ? (dilated ? r.stages.v1.used : r.stages.v0.used)
                           : (dilated ? r.stages.h1.used : r.stages.h0.used);
    const Run run = run_of(t, r, planes, tile.height, tile.width, vertical, dilated);
    const bool active = run.active && run.plane < planes;
    float sum[kRun] = {};
    if (active)
      convolve(Line{map + run.base, run.stride, run.length}, run.first, run.d,
               taps + (4 * run.plane + stage) * r.tap_pitch, k, sum);
    barrier();
    if (active)
      write_run(map, run,
                stage == 0   ? biases[4 * run.plane]
                : stage == 1 ? 0.f
                : stage == 2 ? columns[run.plane * r.cols + run.line]
                             : biases[4 * run.plane + 3],
                sum);
    barrier();
  }

  const int64_t at = offset_of(a.map, first_plane, tile.row, tile.col);
  T* s = static_cast<T*>(a.s) + at;
  const float* core = map + (tile.row - tile.top) * r.pitch + tile.col - tile.left;
  if (a.map.channels_last)
    copy_out(s, Pixels{tile.rows, tile.cols, planes, a.map.C, row_stride, r.pitch, plane_pitch}, core,
             [](int64_t, auto&, int) {});
  else
    copy_out(s, Lines{1, planes * tile.rows * W, 0}, rows, core);
}

}  // namespace lska_ops
