// What all of LSKA's kernels stand on: runs of outputs along lines, the convolution of a run, and the way
// between global memory and a region of floats in shared memory.
#pragma once

#include "csrc/common/pick.h"
#include "csrc/common/quotient.cuh"
#include "csrc/lska/plan.h"
#include "csrc/lska/plan_tile.h"

namespace lska_ops {

// Depthwise weights [C, k] and biases [C], all of one dtype; a bias may be null, and so is the dilated pair.
struct LskaWeightPointers {
  const void *h0, *h0_bias, *v0, *v0_bias, *h1, *h1_bias, *v1, *v1_bias;
};

// Maps [B, C, H, W] in NCHW or, all of a call, in channels_last; planes = B C.
struct LskaMap {
  int64_t planes;
  int C, H, W;
  bool channels_last;
};

// What the kernels of a region share: the plan, and its divisors.
struct LskaRegion {
  LskaStages stages;
  int planes, band, strip, rows, cols, pitch, tap_pitch, threads_per_plane, step, reach_h, reach_v;
  int maps, lines;  // backward: floats of all planes' maps, of one plane's taps and lines
  Divisor by_rows, by_cols, by_tap_pitch, by_h1, by_v1;
};

inline LskaRegion lska_region(const LskaSize& s, const LskaPlan& p) {
  const LskaStages g = lska_plan::stages(s);
  const int64_t tap_pitch = lska_plan::tap_pitch(g);
  return {g,
          p.planes,
          p.band,
          p.strip,
          p.rows,
          p.cols,
          p.pitch,
          int(tap_pitch),
          p.threads_per_plane,
          p.step,
          g.reach_h(),
          g.reach_v(),
          p.planes * p.rows * p.pitch,
          int(lska_plan::backward_lines(g, p.cols, p.threads_per_plane / kWarp)),
          divisor(p.rows),
          divisor(p.cols),
          divisor(tap_pitch),
          divisor(g.h1.dilation),
          divisor(g.v1.dilation)};
}

// The planes of a block follow each other; in channels_last they are of one image.
struct Planes {
  int64_t first;
  int count;
};

LSKA_DEVICE Planes planes_of(const LskaMap& m, const LskaRegion& r, int64_t block) {
  if (!m.channels_last) {
    const int64_t first = block * r.planes;
    return {first, int(min(int64_t(r.planes), m.planes - first))};
  }
  const int groups = (m.C + r.planes - 1) / r.planes;
  const int64_t image = block / groups;
  const int channel = int(block - image * groups) * r.planes;
  return {image * m.C + channel, min(r.planes, m.C - channel)};
}

// Where a plane's pixel lies, in elements.
LSKA_DEVICE int64_t offset_of(const LskaMap& m, int64_t plane, int row, int col) {
  if (!m.channels_last) return (plane * m.H + row) * m.W + col;
  const int64_t image = plane / m.C;
  return ((image * m.H + row) * m.W + col) * m.C + plane - image * m.C;
}

// The tile a block owns in its planes, and the region around it that it loads.
struct Tile {
  int row, rows, col, cols;      // what it owns
  int top, height, left, width;  // what it loads
};

LSKA_DEVICE Tile tile_of(const LskaMap& m, const LskaRegion& r, int reach_v, int reach_h) {
  Tile t;
  t.row = block_y() * r.band;
  t.rows = min(r.band, m.H - t.row);
  t.col = block_z() * r.strip;
  t.cols = min(r.strip, m.W - t.col);
  t.top = max(0, t.row - reach_v);
  t.height = min(m.H, t.row + t.rows + reach_v) - t.top;
  t.left = max(0, t.col - reach_h);
  t.width = min(m.W, t.col + t.cols + reach_h) - t.left;
  return t;
}

// A line of floats in shared memory, zero beyond its ends.
struct Line {
  const float* first;
  int stride, length;
  LSKA_DEVICE float operator()(int at) const {
    return uint32_t(at) < uint32_t(length) ? first[at * stride] : 0.f;
  }
};

// A column of a ring of rows. What is above the map, or has not entered the ring, is zero.
struct RingColumn {
  const float* first;
  int pitch, slots, end, end_slot;  // the row after the last in the ring, and the slot it would have
  LSKA_DEVICE float operator()(int y) const {
    const int slot = y - end + end_slot;
    return uint32_t(y) < uint32_t(end) ? first[(slot < 0 ? slot + slots : slot) * pitch] : 0.f;
  }
};

// sum[r] += sum over t of taps[t] line(first + (r + t - K/2) d): each value is read once and serves all of
// its taps.
template <int K, int R, class Values>
LSKA_DEVICE void convolve_run(const Values& line, int first, int d, const float* taps, float (&sum)[R]) {
#pragma unroll
  for (int j = 0; j < R + K - 1; ++j) {
    const float v = line(first + (j - K / 2) * d);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (j >= r && j - r < K) sum[r] = multiply_add(taps[j - r], v, sum[r]);
  }
}

template <int R, class Values>
LSKA_DEVICE void convolve_run_any(const Values& line, int first, int d, const float* taps, int k,
                                  float (&sum)[R]) {
  float window[R];
  int at = first - k / 2 * d;
#pragma unroll
  for (int r = 1; r < R; ++r, at += d) window[r] = line(at);
  for (int t = 0; t < k; ++t, at += d) {
    const float tap = taps[t];
#pragma unroll
    for (int r = 0; r + 1 < R; ++r) window[r] = window[r + 1];
    window[R - 1] = line(at);
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = multiply_add(tap, window[r], sum[r]);
  }
}

// The published sizes are unrolled; any other odd k is a loop.
template <int R, class Values>
LSKA_DEVICE void convolve(const Values& line, int first, int d, const float* taps, int k, float (&sum)[R]) {
  const bool done = pick<3, 5, 7, 11, 13, 17>(
      k, [&](auto size) { convolve_run<decltype(size)::value>(line, first, d, taps, sum); });
  if (!done) convolve_run_any(line, first, d, taps, k, sum);
}

// v turned by `by` < N places: v[i] = v[(i + by) % N].
template <int N>
LSKA_DEVICE void rotate(float (&v)[N], int by) {
#pragma unroll
  for (int bit = 1; bit < N; bit *= 2) {
    float turned[N];
#pragma unroll
    for (int i = 0; i < N; ++i) turned[i] = by & bit ? v[(i + bit) % N] : v[i];
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = turned[i];
  }
}

// `count` lines of `length` elements in global memory, `stride` apart, seen as rows of `cols` floats in
// shared memory. Several rows that follow each other in both are one line.
struct Lines {
  int count, length;
  int64_t stride;
};

// Calls inside(line, element) for each aligned group of 16 bytes and beside(line, element) for each element
// at the ends of a line. Lines are shared out among warps, the groups of a single line among all threads.
template <class T, class Inside, class Beside>
LSKA_DEVICE void for_each_group(const T* global, const Lines& lines, const Inside& inside,
                                const Beside& beside) {
  const bool one = lines.count == 1;
  const int t = thread_index(), threads = thread_count();
  for (int line = one ? 0 : t / kWarp; line < lines.count; line += one ? 1 : threads / kWarp) {
    const T* start = global + line * lines.stride;
    const int ahead = int(reinterpret_cast<uintptr_t>(start) % 16 / sizeof(T));
    const int groups = (ahead + lines.length + kVector<T> - 1) / kVector<T>;
    for (int group = one ? t : t % kWarp; group < groups; group += one ? threads : kWarp) {
      const int first = group * kVector<T> - ahead;
      if (first >= 0 && first + kVector<T> <= lines.length) {
        inside(line, first);
        continue;
      }
      for (int i = max(first, 0); i < min(first + kVector<T>, lines.length); ++i) beside(line, i);
    }
  }
}

// Where element i of a line lies in rows of `cols` floats, `pitch` apart. `turned` spreads the lanes of a
// warp, each of which holds consecutive elements, over different banks.
struct Rows {
  int cols, pitch;
  Divisor by_cols;
  LSKA_DEVICE int at(int line, int i) const {
    const int row = quotient(i, by_cols);
    return (line + row) * pitch + i - row * cols;
  }
};
template <int N>
LSKA_DEVICE int bank_turn() {
  return thread_index() % kWarp * N / kWarp % N;
}

template <class T>
LSKA_DEVICE void copy_in(const T* global, const Lines& lines, float* shared, const Rows& rows) {
  for_each_group(
      global, lines,
      [&](int line, int first) {
        float v[kVector<T>];
        load_vector(global + line * lines.stride + first, v);
        const int by = bank_turn<kVector<T>>();
        rotate(v, by);
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) shared[rows.at(line, first + (i + by) % kVector<T>)] = v[i];
      },
      [&](int line, int i) { shared[rows.at(line, i)] = load(global + line * lines.stride + i); });
}

// N elements from any address, in accesses of 16 bytes where it allows them. As they are: floats would take
// twice the registers.
template <class T, int N>
LSKA_DEVICE void load_some(const T* p, T (&v)[N]) {
  constexpr int n = kVector<T>;
  if constexpr (N % n == 0) {
    if (reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < N; i += n) {
        const Bits16Bytes bits = read_global(reinterpret_cast<const Bits16Bytes*>(p + i));
        memcpy(v + i, &bits, 16);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = read_global(p + i);
}

// value(index in shared memory, element of global memory) is what is stored, after finish(element, values)
// has seen as many consecutive ones as are stored together.
template <class T, class Value, class Finish>
LSKA_DEVICE void copy_out(T* global, const Lines& lines, const Rows& rows, const Value& value,
                          const Finish& finish) {
  for_each_group(
      global, lines,
      [&](int line, int first) {
        float v[kVector<T>];
        const int by = bank_turn<kVector<T>>();
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) v[i] = value(rows.at(line, first + (i + by) % kVector<T>));
        rotate(v, (kVector<T> - by) % kVector<T>);
        finish(line * lines.stride + first, v);
        store_vector(global + line * lines.stride + first, v);
      },
      [&](int line, int i) {
        float v[1] = {value(rows.at(line, i))};
        finish(line * lines.stride + i, v);
        store(global + line * lines.stride + i, v[0]);
      });
}

template <class T>
LSKA_DEVICE void copy_out(T* global, const Lines& lines, const Rows& rows, const float* shared) {
  copy_out(global, lines, rows, [&](int i) { return shared[i]; }, [](int64_t, auto&) {});
}

// The same region of neighbouring channels in channels_last: pixels in global memory, planes in shared
// memory.
struct Pixels {
  int rows, cols, channels, C;
  int64_t row_stride;
  int pitch, plane_pitch;
  template <class T>
  LSKA_DEVICE bool in_vectors(const T* global) const {
    return channels % kVector<T> == 0 && C % kVector<T> == 0 && reinterpret_cast<uintptr_t>(global) % 16 == 0;
  }
};

// Calls body(element of global memory, index in shared memory, channel) for each N channels of each pixel.
template <int N, class Body>
LSKA_DEVICE void for_each_pixel(const Pixels& p, const Body& body) {
  const int groups = p.channels / N;
  for (int i = thread_index(); i < p.rows * p.cols * groups; i += thread_count()) {
    const int pixel = i / groups, channel = (i - pixel * groups) * N, row = pixel / p.cols;
    const int col = pixel - row * p.cols;
    body(row * p.row_stride + int64_t(col) * p.C + channel, channel * p.plane_pitch + row * p.pitch + col,
         channel);
  }
}

template <class T>
LSKA_DEVICE void copy_in(const T* global, const Pixels& p, float* shared) {
  if (!p.in_vectors(global)) {
    for_each_pixel<1>(p, [&](int64_t element, int at, int) { shared[at] = load(global + element); });
    return;
  }
  for_each_pixel<kVector<T>>(p, [&](int64_t element, int at, int) {
    float v[kVector<T>];
    load_vector(global + element, v);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) shared[at + i * p.plane_pitch] = v[i];
  });
}

// finish(element, values, channel) sees what is stored together.
template <class T, class Finish>
LSKA_DEVICE void copy_out(T* global, const Pixels& p, const float* shared, const Finish& finish) {
  if (!p.in_vectors(global)) {
    for_each_pixel<1>(p, [&](int64_t element, int at, int channel) {
      float v[1] = {shared[at]};
      finish(element, v, channel);
      store(global + element, v[0]);
    });
    return;
  }
  for_each_pixel<kVector<T>>(p, [&](int64_t element, int at, int channel) {
    float v[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) v[i] = shared[at + i * p.plane_pitch];
    finish(element, v, channel);
    store_vector(global + element, v);
  });
}

// The taps of `planes` planes as floats: [planes][h0, h1, v0, v1][tap_pitch], planes `plane_pitch`
// apart; with `turned`, back to front.
template <class T>
LSKA_DEVICE void load_taps(const LskaWeightPointers& w, const LskaRegion& r, int planes, int channel, int C,
                           float* taps, int plane_pitch, bool turned) {
  for (int i = thread_index(); i < planes * 4 * r.tap_pitch; i += thread_count()) {
    const int line = quotient(i, r.by_tap_pitch), t = i - line * r.tap_pitch, stage = line % 4;
    const LskaStage s = stage == 0   ? r.stages.h0
                        : stage == 1 ? r.stages.h1
                        : stage == 2 ? r.stages.v0
                                     : r.stages.v1;
    const void* from = stage == 0 ? w.h0 : stage == 1 ? w.h1 : stage == 2 ? w.v0 : w.v1;
    if (t >= s.used) continue;
    const int64_t c = (channel + line / 4) % C;
    taps[line / 4 * plane_pitch + stage * r.tap_pitch + t] =
        load(static_cast<const T*>(from) + c * s.k + s.skip + (turned ? s.used - 1 - t : t));
  }
}

template <class T>
LSKA_DEVICE float load_bias(const void* bias, int channel) {
  return bias ? load(static_cast<const T*>(bias) + channel) : 0.f;
}

// What conv_spatial_h makes of a line of ones, at column x of the map: how much of its taps lies inside.
LSKA_DEVICE float inside_h1(const LskaStage& h1, const float* taps, int x, int W) {
  if (h1.k == 0) return 1.f;
  float sum = 0.f;
  for (int t = 0; t < h1.used; ++t) {
    const int at = x + (t - h1.used / 2) * h1.dilation;
    if (at >= 0 && at < W) sum += taps[t];
  }
  return sum;
}

}  // namespace lska_ops
