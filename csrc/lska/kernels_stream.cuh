// The cascade of planes too large for shared memory: a block walks down a strip of columns. A few rows at a
// time enter, pass the horizontal pair, and wait in a ring until the first vertical convolution has what it
// reaches below; its rows wait in a second ring for the dilated one. So only joints between strips and bands
// are read twice.
#pragma once

#include "csrc/lska/kernels_plane.cuh"

namespace lska_ops {

// Runs of the horizontal convolutions: `rows` rows of `width` columns, from `in` to `out` (both with `pitch`
// floats a row). `wanted` columns from `offset` on are kept, at out_pitch, rows in ring order.
struct RowsPass {
  const float* in;
  float* out;
  int rows, width, pitch, offset, wanted, out_pitch, first_slot, slots, k, d;
  float bias;
};

LSKA_DEVICE void convolve_rows(const RowsPass& p, const float* taps) {
  const int blocks = (p.width + p.d * kRun - 1) / (p.d * kRun), runs = blocks * p.d;
  for (int i = thread_index(); i < p.rows * runs; i += thread_count()) {
    const int nth = i / p.rows, row = i - nth * p.rows;  // lanes in different rows: different banks
    const int block = nth / p.d, first = block * kRun * p.d + nth - block * p.d;
    float sum[kRun] = {};
    convolve(Line{p.in + row * p.pitch, 1, p.width}, first, p.d, taps, p.k, sum);
    int slot = p.first_slot + row;
    slot -= slot >= p.slots ? p.slots : 0;
#pragma unroll
    for (int j = 0; j < kRun; ++j) {
      const int at = first + j * p.d - p.offset;
      if (at >= 0 && at < p.wanted) p.out[slot * p.out_pitch + at] = sum[j] + p.bias;
    }
  }
}

// Rows [begin, end) of a ring's convolution along columns, handed to put(row, column, value).
template <class Put>
LSKA_DEVICE void convolve_columns(RingColumn column, int begin, int end, int width, int d, int k,
                                  const float* taps, const Put& put) {
  constexpr int R = kStreamRun;
  const int runs = (end - begin + d * R - 1) / (d * R) * d;
  const float* const ring = column.first;
  for (int i = thread_index(); i < width * runs; i += thread_count()) {
    const int nth = i / width, x = i - nth * width;
    const int block = nth / d, first = begin + block * R * d + nth - block * d;
    if (first >= end) continue;
    float sum[R] = {};
    column.first = ring + x;
    convolve(column, first, d, taps, k, sum);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (first + r * d < end) put(first + r * d, x, sum[r]);
  }
}

// A block owns a strip of columns, or a band of it, of one plane. Reads the strip with its halo once, `step`
// rows at a time, and writes s. It is reference.cascade.
template <class T>
LSKA_KERNEL(512)
lska_cascade_fwd_stream_kernel(const LskaPlaneArguments a) {
  const LskaRegion& r = a.region;
  const int64_t plane = block_x();
  const int channel = int(plane % a.map.C), H = a.map.H, W = a.map.W, t = thread_index();
  const int reach0 = r.stages.v0.reach, reach1 = r.stages.v1.reach;
  const Tile tile = tile_of(a.map, r, reach0 + reach1, r.reach_h);
  const bool pair = r.stages.h1.k > 0;
  const int ring_pitch = r.strip | 1, slots0 = r.step + 2 * reach0, slots1 = r.step + 2 * reach1;
  float* in = shared_floats();
  float* between = in + r.step * r.pitch;
  float* ring0 = between + r.step * r.pitch;
  float* ring1 = ring0 + slots0 * ring_pitch;
  float* taps = ring1 + slots1 * ring_pitch;
  float* columns = taps + 4 * r.tap_pitch;

  load_taps<T>(a.weights, r, 1, channel, a.map.C, taps, 0, false);
  const float bias_h0 = load_bias<T>(a.weights.h0_bias, channel);
  const float bias_v1 = load_bias<T>(pair ? a.weights.v1_bias : nullptr, channel);
  barrier();
  for (int i = t; i < tile.cols; i += thread_count())
    columns[i] = load_bias<T>(a.weights.v0_bias, channel) *
                     inside_h1(r.stages.h1, taps + r.tap_pitch, tile.col + i, W) +
                 load_bias<T>(a.weights.h1_bias, channel);

  const T* x = static_cast<const T*>(a.x) + (plane * H + tile.top) * W + tile.left;
  T* s = static_cast<T*>(a.s) + plane * H * W;
  const int bottom = tile.top + tile.height, last = tile.row + tile.rows;
  const int end0 = min(H, last + reach1);  // rows the first vertical convolution has to give
  int entered = tile.top, done0 = max(0, tile.row - reach1), done1 = tile.row;
  int slot0 = 0, slot1 = 0;  // of row `entered` in the first ring, of row `done0` in the second
  while (done1 < last) {
    const int rows = min(r.step, bottom - entered);
    if (rows > 0) {
      const bool whole = tile.width == W;
      copy_in(x + int64_t(entered - tile.top) * W, whole ? Lines{1, rows * W, 0} : Lines{rows, tile.width, W},
              in, Rows{tile.width, r.pitch, whole ? r.by_cols : Divisor{0x7fffffff, 0}});
      barrier();
      const int offset = tile.col - tile.left;
      RowsPass pass{in,      between, rows, tile.width,       r.pitch, 0,      tile.width,
                    r.pitch, 0,       rows, r.stages.h0.used, 1,       bias_h0};
      if (pair) {
        convolve_rows(pass, taps);
        barrier();
        pass.in = between;
        pass.k = r.stages.h1.used;
        pass.d = r.stages.h1.dilation;
        pass.bias = 0.f;
      }
      pass.out = ring0;
      pass.offset = offset;
      pass.wanted = tile.cols;
      pass.out_pitch = ring_pitch;
      pass.first_slot = slot0;
      pass.slots = slots0;
      convolve_rows(pass, taps + (pair ? r.tap_pitch : 0));
      entered += rows;
      slot0 += rows;
      slot0 -= slot0 >= slots0 ? slots0 : 0;
    }
    barrier();

    // Below the last row that entered there is either another one or the map's end, where zeros follow.
    const int to0 = min(min(end0, done0 + r.step), entered < bottom ? entered - reach0 : end0);
    const RingColumn column0{ring0, ring_pitch, slots0, entered, slot0};
    const int begin0 = done0, begin_slot = slot1;
    convolve_columns(column0, done0, to0, tile.cols, 1, r.stages.v0.used, taps + 2 * r.tap_pitch,
                     [&](int y, int column, float v) {
                       const int at = begin_slot + y - begin0;
                       ring1[(at < slots1 ? at : at - slots1) * ring_pitch + column] = v + columns[column];
                     });
    if (to0 > done0) {
      slot1 += to0 - done0;
      slot1 -= slot1 >= slots1 ? slots1 : 0;
      done0 = to0;
    }
    barrier();

    const int to1 = min(min(last, done1 + r.step), done0 < end0 ? done0 - reach1 : last);
    const RingColumn column1{ring1, ring_pitch, slots1, done0, slot1};
    const auto put = [&](int y, int column, float v) {
      store(s + int64_t(y) * W + tile.col + column, v + bias_v1);
    };
    if (pair)
      convolve_columns(column1, done1, to1, tile.cols, r.stages.v1.dilation, r.stages.v1.used,
                       taps + 3 * r.tap_pitch, put);
    else
      for (int i = t; i < max(to1 - done1, 0) * tile.cols; i += thread_count()) {
        RingColumn column = column1;
        column.first = ring1 + i % tile.cols;
        put(done1 + i / tile.cols, i % tile.cols, column(done1 + i / tile.cols));
      }
    done1 = max(done1, to1);
  }
}

}  // namespace lska_ops
