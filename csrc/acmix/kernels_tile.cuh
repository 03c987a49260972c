// What ACmix's kernels share: tiles in shared memory, the two products of attention over runs of four
// neighbouring pixels, and how often a query's window holds a key.
//
// The window is clipped to the map: a reflected tap repeats a pixel that is inside of it, so a pair of query
// and key counts as often as taps fall on the key. Rows and columns count by themselves.
#pragma once

#include "csrc/acmix/plan.h"
#include "csrc/common/block_sum.cuh"
#include "csrc/common/pick.h"
#include "csrc/common/quotient.cuh"

namespace lska_ops {

struct AcmixArguments {
  const void* qkv;            // [B, 3, C, H, W] of T: q, k, v
  const void* grad_y;         // [B, C, Ho, Wo] of T (backward)
  const void* conv_p;         // [D, 2] of T
  const void *rate1, *rate2;  // [1] of T; null where its half is not computed
  const float* composite;     // [G, 3, D, G, kernel_conv^2]: what head's part goes to which dim's output
  float *lse, *delta;         // [B, G, Ho, Wo]
  const float* initial;       // like out: what another kernel has computed; null for nothing
  void* out;                  // forward [B, C, Ho, Wo], backward [B, 3, C, H, W]; of T or float
  float* parts;               // query: [blocks, 2 D + 1], of conv_p's gradient and rate1's
  float* shift_parts;  // query: [blocks, D, G, 3 G, kernel_conv^2], of the composite weights' gradients
  bool out_float;
  bool last, grad_last, out_last;  // qkv, grad_y and out lie pixel by pixel
  int64_t B;
  int C, G, D, H, W, Ho, Wo, kernel_att, kernel_conv, stride, dilation;
  AcmixLayout layout;
};

// How maps lie that are NCHW or, if `last`, channels_last: from a channel and from a pixel to the next.
struct AcmixPlaces {
  int64_t plane;
  int pixel;
  LSKA_DEVICE AcmixPlaces(bool last, int channels, int height, int width)
      : plane(last ? 1 : int64_t(height) * width), pixel(last ? channels : 1) {}
};

// Where a block's tile lies, in the map it owns.
struct AcmixTile {
  int64_t image;
  int head, dim;             // the first ones
  int row, rows, col, cols;  // rows, cols: how many of the layout's lie in the map
};

LSKA_DEVICE AcmixTile acmix_tile(const AcmixArguments& a, int height, int width) {
  const AcmixLayout& l = a.layout;
  const int shares = l.shift ? (l.attention ? 1 : (a.D + l.dims - 1) / l.dims) : a.G;
  AcmixTile t;
  t.image = block_x() / shares;
  const int share = int(block_x() - t.image * shares);
  t.head = l.shift ? 0 : share;
  t.dim = l.attention ? 0 : share * l.dims;
  t.row = block_y() * l.rows;
  t.rows = min(l.rows, height - t.row);
  t.col = block_z() * l.cols;
  t.cols = min(l.cols, width - t.col);
  return t;
}

template <class P>
LSKA_DEVICE P* shared_at(int bytes) {
  return reinterpret_cast<P*>(reinterpret_cast<char*>(shared_floats()) + bytes);
}

template <class T>
LSKA_DEVICE float rate_of(const void* rate) {
  return rate ? load(static_cast<const T*>(rate)) : 1.f;
}

// Four neighbouring numbers from an address that is a multiple of their size.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};
template <class T>
LSKA_DEVICE void load_four(const T* p, float* v) {
  const Four<T> four = *reinterpret_cast<const Four<T>*>(p);
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = to_float(four.v[i]);
}

// The `count` first of four numbers to global memory, together where the address allows it.
template <class T>
LSKA_DEVICE void store_four(T* p, const float (&v)[4], int count) {
  if (count == 4 && reinterpret_cast<uintptr_t>(p) % sizeof(Four<T>) == 0) {
    Four<T> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) round_to(v[i], four.v[i]);
    write_global(reinterpret_cast<Four<T>*>(p), four);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) store(p + i, v[i]);
}
template <class T>
LSKA_DEVICE void store_four(void* out, bool is_float, int64_t at, const float (&v)[4], int count) {
  if (is_float)
    store_four(static_cast<float*>(out) + at, v, count);
  else
    store_four(static_cast<T*>(out) + at, v, count);
}

// Lanes on pixels that have their channels side by side: as many of a warp share a pixel as a sector holds of
// what each reads at a time, the others have the next ones, whose places in shared memory are neighbours.
struct LanesOnPixels {
  int first, step;    // what a lane has of a pixel
  int pixel, pixels;  // a lane's first pixel, and how far it is to its next
  LSKA_DEVICE LanesOnPixels(int of_pixel, int bytes) {
    int bits = 0;
    while (bytes << bits < 32 && 1 << bits < of_pixel) ++bits;
    step = 1 << bits, first = thread_index() & (step - 1);
    pixel = thread_index() >> bits, pixels = thread_count() >> bits;
  }
};

// Whether kAtOnce channels at a time can be read, of each pixel from the first one's on.
template <int kAtOnce, class T>
LSKA_DEVICE bool reads_at_once(const T* first, int pixel, int channels) {
  return channels % kAtOnce == 0 && pixel % kAtOnce == 0 &&
         reinterpret_cast<uintptr_t>(first) % (kAtOnce * sizeof(T)) == 0;
}

// As stage, of maps that lie pixel by pixel, `pixel` elements apart, kAtOnce channels at a time, or one of
// every `between`. Of four pixels they are on their way together.
template <int kAtOnce, class T>
LSKA_DEVICE void stage_pixels(const T* maps, int64_t pixel, int between, int map_width, int dims, int step,
                              int height, int width, int top, int left, const AcmixRegion& r, T* to) {
  struct alignas(kAtOnce * sizeof(T)) Channels {
    T v[kAtOnce];
  };
  constexpr int kPixels = 4;
  const int of_pixel = dims / kAtOnce, cols = int(r.by_loaded.d);
  const LanesOnPixels lanes(of_pixel, sizeof(Channels));
#pragma unroll 1
  for (int first = lanes.pixel; first < r.rows * cols; first += kPixels * lanes.pixels) {
    const T* from[kPixels];
    T* into[kPixels];
    bool there[kPixels];
#pragma unroll
    for (int n = 0; n < kPixels; ++n) {
      const int at = first + n * lanes.pixels, row = quotient(at, r.by_loaded),
                col = at - row * cols + r.spare, y = top + row, x = left + col;
      there[n] = row < r.rows && uint32_t(y) < uint32_t(height) && uint32_t(x) < uint32_t(width);
      from[n] = maps + (int64_t(y) * map_width + x) * step * pixel;
      into[n] = to + row * r.pitch + col;
    }
#pragma unroll 1
    for (int i = lanes.first; i < of_pixel; i += lanes.step) {
      Channels channels[kPixels];
#pragma unroll
      for (int n = 0; n < kPixels; ++n)
        if (there[n])
          channels[n] =
              read_global(reinterpret_cast<const Channels*>(from[n]) + (kAtOnce > 1 ? i : i * between));
#pragma unroll
      for (int n = 0; n < kPixels; ++n)
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
          if (there[n]) into[n][(i * kAtOnce + j) * r.elements] = channels[n].v[j];
    }
  }
}

// `dims` maps of [height, width] pixels, every step-th of every step-th row, to the region whose first pixel
// is (top, left). Columns beyond the map are zero there; rows beyond it are left alone, nobody reads them.
// `pixel`: elements from a pixel to the next; where that is more than one, maps are channels of pixels,
// map_elements apart.
template <class T>
LSKA_DEVICE void stage(const T* maps, int64_t map_elements, int map_width, int dims, int step, int height,
                       int width, int top, int left, const AcmixRegion& r, T* to, int pixel = 1) {
  constexpr int N = kVector<T>;
  const int from_x = left + r.spare, to_x = left + r.cols - r.spare, lines = dims * r.rows;
  const int begin = max(from_x, 0), end = min(to_x, width);
  const int groups = step > 1 ? r.cols : (max(end - begin, 0) + 2 * N - 2) / N;
  if (pixel > 1) {
    const int between = int(map_elements);
    if (between == 1 && reads_at_once<N>(maps, pixel, dims))
      stage_pixels<N>(maps, pixel, 1, map_width, dims, step, height, width, top, left, r, to);
    else if (between == 1 && reads_at_once<N / 2>(maps, pixel, dims))
      stage_pixels<N / 2>(maps, pixel, 1, map_width, dims, step, height, width, top, left, r, to);
    else
      stage_pixels<1>(maps, pixel, between, map_width, dims, step, height, width, top, left, r, to);
  }
  for (int i = pixel > 1 ? lines * groups : thread_index(); i < lines * groups; i += thread_count()) {
    const int line = i / groups, group = i - line * groups, dim = line / r.rows,
              y = top + line - dim * r.rows;
    if (y < 0 || y >= height) continue;
    const T* from = maps + dim * map_elements + int64_t(y) * step * map_width;
    T* const row = to + line * r.pitch;
    if (step > 1) {
      const int x = left + group;
      if (x >= 0 && x < width) row[group] = read_global(from + x * step);
      continue;
    }
    const int ahead = int(reinterpret_cast<uintptr_t>(from + begin) % 16 / sizeof(T));
    const int first = begin - ahead + group * N;
    if (first >= begin && first + N <= end) {
      const Bits16Bytes bits = read_global(reinterpret_cast<const Bits16Bytes*>(from + first));
      T parts[N];
      memcpy(parts, &bits, 16);
#pragma unroll
      for (int j = 0; j < N; ++j) row[first - left + j] = parts[j];
    } else {
      for (int x = max(first, begin); x < min(first + N, end); ++x) row[x - left] = read_global(from + x);
    }
  }
  const int before = min(max(-from_x, 0), to_x - from_x),
            beyond = before + min(max(to_x - width, 0), to_x - from_x - before);
  for (int i = thread_index(); i < lines * beyond; i += thread_count()) {
    const int line = i / beyond, nth = i - line * beyond;
    round_to(0.f, to[line * r.pitch + r.spare + (nth < before ? nth : to_x - from_x - beyond + nth)]);
  }
}

// Sides of one pixel apart, everything at a side's end is reflected again.
LSKA_DEVICE int reflected(int at, int length) {
  if (length == 1) return 0;
  const int period = 2 * (length - 1);
  at = at < 0 ? -at : at;
  at = at < period ? at : at % period;
  return at < length ? at : period - at;
}

// How many taps of query i's line fall on key j.
LSKA_DEVICE int multiplicity(int i, int j, int length, int kernel, int stride, int dilation) {
  int count = 0;
  for (int t = -(kernel / 2); t <= kernel / 2; ++t)
    count += reflected(i * stride + t * dilation, length) == j;
  return count;
}

LSKA_DEVICE int first_query(int key, int reach, int stride) {
  const int at = key - reach;
  return at >= 0 ? (at + stride - 1) / stride : -(-at / stride);
}

// [owned][taps]: for each owned pixel of a line, how often each tap counts; zero beyond the map.
template <bool kKey>
LSKA_DEVICE void fill_table(const AcmixArguments& a, int first, int owned, int length, int out_length,
                            float* table) {
  const int taps = a.layout.taps, reach = a.kernel_att / 2 * a.dilation;
  for (int n = thread_index(); n < owned * taps; n += thread_count()) {
    const int own = first + n / taps, tap = n % taps;
    const int there = (kKey ? first_query(own, reach, a.stride) : own * a.stride - reach) + tap;
    const bool inside =
        own < (kKey ? length : out_length) && there >= 0 && there < (kKey ? out_length : length);
    table[n] = !inside ? 0.f
                       : float(kKey ? multiplicity(there, own, length, a.kernel_att, a.stride, a.dilation)
                                    : multiplicity(own, there, length, a.kernel_att, a.stride, a.dilation));
  }
}

// A region of some maps in shared memory, addressed by the maps' own rows and columns.
template <class T>
struct Staged {
  const T* data;
  int rows, pitch;  // of the region; no more of it: the choice of one of three is made in registers
  int top, left;    // of the region, in the map's own pixels
  LSKA_DEVICE Staged(const T* data, const AcmixRegion& r, int top, int left)
      : data(data), rows(r.rows), pitch(r.pitch), top(top), left(left) {}
  LSKA_DEVICE int elements() const { return rows * pitch; }  // of one dim
  LSKA_DEVICE const T* at(int dim, int y, int x) const {
    return data + (dim * rows + y - top) * pitch + x - left;
  }
};

// Those of q, k, v and grad_y, numbers 0 to 3, of which `wanted` has the bit: from channel `dim` of head h
// on, of the queries (q and grad_y) to one region, of the keys to the other. One code for all, for it is
// long.
template <class T>
struct AcmixRegions {
  T *q, *k, *v, *grads;
  int query_top, query_left, key_top, key_left;
};
template <class T>
LSKA_DEVICE void stage_parts(const AcmixArguments& a, int64_t image, int channel, int dims, int wanted,
                             const AcmixRegion& of_queries, const AcmixRegion& of_keys,
                             const AcmixRegions<T>& to) {
  const AcmixPlaces of_maps(a.last, 3 * a.C, a.H, a.W), of_grad(a.grad_last, a.C, a.Ho, a.Wo);
  const T* maps = static_cast<const T*>(a.qkv) + image * 3 * a.C * a.H * a.W;
  const T* grad_y = static_cast<const T*>(a.grad_y) + image * a.C * a.Ho * a.Wo;
#pragma unroll 1
  for (int part = 0; part < 4; ++part) {
    if (!(wanted >> part & 1)) continue;
    const bool grad = part == 3, queries = part == 0 || grad;
    const AcmixRegion region = queries ? of_queries : of_keys;
    const int64_t plane = grad ? of_grad.plane : of_maps.plane;
    stage(grad ? grad_y + channel * plane : maps + (part * a.C + channel) * plane, plane, grad ? a.Wo : a.W,
          dims, part == 0 ? a.stride : 1, queries ? a.Ho : a.H, queries ? a.Wo : a.W,
          queries ? to.query_top : to.key_top, queries ? to.query_left : to.key_left, region,
          part == 0   ? to.q
          : part == 1 ? to.k
          : part == 2 ? to.v
                      : to.grads,
          grad ? of_grad.pixel : of_maps.pixel);
  }
}

// One run of a band: its first pixel in the map that the tile owns, and its place in a band's weights.
struct AcmixRun {
  int y, x, row, place;  // row: of the tile
};
LSKA_DEVICE AcmixRun acmix_run(const AcmixLayout& l, const AcmixTile& t, int nth, int band_row) {
  const int row = nth / l.runs, x = (nth - row * l.runs) * kAcmixRun;
  return {t.row + band_row + row, t.col + x, band_row + row, nth * kAcmixRun};
}

// sum[i][t] += own pixel i's dims times the window's tap t, for a row of taps of four neighbours.
template <int K, class T>
LSKA_DEVICE void products_run(const T* own, int own_dim, const T* window, int window_dim, int dims,
                              float (&sum)[4][K]) {
  for (int d = 0; d < dims; ++d, own += own_dim, window += window_dim) {
    float q[4], w[12];
    load_four(own, q);
#pragma unroll
    for (int j = 0; j < 3; ++j) load_four(window + 4 * j, w + 4 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int t = 0; t < K; ++t) sum[i][t] = multiply_add(q[i], w[4 + i + t - K / 2], sum[i][t]);
  }
}

// The geometry of attention in one pass: where an owned pixel's window begins among the staged ones, and
// where the pixel itself is.
template <bool kKey>
struct AcmixWindow {
  const AcmixArguments& a;
  const AcmixTile& t;
  const float *table_y, *table_x;
  int reach;
  LSKA_DEVICE AcmixWindow(const AcmixArguments& arguments, const AcmixTile& tile)
      : a(arguments),
        t(tile),
        table_y(shared_at<float>(arguments.layout.table_y)),
        table_x(shared_at<float>(arguments.layout.table_x)),
        reach(arguments.kernel_att / 2 * arguments.dilation) {}
  LSKA_DEVICE void fill() const {
    fill_table<kKey>(a, t.row, a.layout.rows, a.H, a.Ho, shared_at<float>(a.layout.table_y));
    fill_table<kKey>(a, t.col, a.layout.runs * kAcmixRun, a.W, a.Wo, shared_at<float>(a.layout.table_x));
  }
  LSKA_DEVICE int first(int own) const {
    return kKey ? first_query(own, reach, a.stride) : own * a.stride - reach;
  }
  LSKA_DEVICE float count_y(int row, int tap) const { return table_y[row * a.layout.taps + tap]; }
  LSKA_DEVICE float count_x(int own, int tap) const { return table_x[(own - t.col) * a.layout.taps + tap]; }
  // x_i - x_j as coordinates, of an owned pixel and the one at a tap; y_i - y_j alike.
  LSKA_DEVICE float distance(int own, int tap, int length) const {
    const int there = first(own) + tap, pixels = kKey ? there * a.stride - own : own * a.stride - there;
    return float(pixels) * (2.f / float(max(length - 1, 1)));
  }
};

// out(place among a band's weights, tap, sum): the products of a band's own pixels with all taps of their
// windows.
template <class T, bool kKey, class Out>
LSKA_DEVICE void products(const AcmixWindow<kKey>& w, int band_row, const Staged<T>& own, int own_step,
                          const Staged<T>& window, int dims, const Out& out) {
  const AcmixLayout& l = w.a.layout;
  const int rows = min(l.band, w.t.rows - band_row), runs = rows * l.runs, own_dim = own.elements(),
            window_dim = window.elements();
  for (int task = thread_index(); task < runs * l.taps; task += thread_count()) {
    const int tap_y = task / runs;
    const AcmixRun run = acmix_run(l, w.t, task - tap_y * runs, band_row);
    if (w.count_y(run.row, tap_y) == 0.f) continue;
    const int y = w.first(run.y) + tap_y;
    const bool done = l.regular && pick<3, 5, 7, 9>(l.taps, [&](auto size) LSKA_INLINE {
                        constexpr int K = decltype(size)::value;
                        float sum[4][K] = {};
                        products_run<K>(own.at(0, run.y, run.x), own_dim,
                                        window.at(0, y, run.x - kAcmixAhead), window_dim, dims, sum);
#pragma unroll
                        for (int t = 0; t < K; ++t)
#pragma unroll
                          for (int i = 0; i < 4; ++i) out(run.place + i, tap_y * K + t, sum[i][t]);
                      });
    if (done) continue;
    for (int i = 0; i < kAcmixRun && run.x + i < w.t.col + w.t.cols; ++i) {
      const int x = w.first(run.x + i);
      for (int t = 0; t < l.taps; ++t) {
        if (w.count_x(run.x + i, t) == 0.f) continue;
        float sum = 0.f;
        for (int d = 0; d < dims; ++d)
          sum = multiply_add(to_float(*own.at(d, run.y * own_step, (run.x + i) * own_step)),
                             to_float(*window.at(d, y, x + t)), sum);
        out(run.place + i, tap_y * l.taps + t, sum);
      }
    }
  }
}

// sum[d][i] += weights of pixel i's taps times the window's dims, over all rows of taps.
template <int K, class T, bool kKey>
LSKA_DEVICE void accumulate_run(const AcmixWindow<kKey>& w, const AcmixRun& run, const float* weights,
                                const Staged<T>& window, int dim, int dims, float (&sum)[4][4]) {
  const int band = w.a.layout.band_pixels;
  for (int tap_y = 0; tap_y < K; ++tap_y) {
    if (w.count_y(run.row, tap_y) == 0.f) continue;
    const float* at = weights + tap_y * K * band + run.place;
    float v[4][12];
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      const T* from = window.at(dim + min(d, dims - 1), w.first(run.y) + tap_y, run.x - kAcmixAhead);
#pragma unroll
      for (int j = 0; j < 3; ++j) load_four(from + 4 * j, v[d] + 4 * j);
    }
#pragma unroll
    for (int t = 0; t < K; ++t) {
      float p[4];
      load_four(at + t * band, p);
#pragma unroll
      for (int d = 0; d < 4; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[d][i] = multiply_add(p[i], v[d][4 + i + t - K / 2], sum[d][i]);
    }
  }
}

template <class T, bool kKey>
LSKA_DEVICE void accumulate(const AcmixWindow<kKey>& w, const AcmixRun& run, const float* weights,
                            const Staged<T>& window, int dim, int dims, float (&sum)[4][4]) {
  const AcmixLayout& l = w.a.layout;
  const bool done = l.regular && pick<3, 5, 7, 9>(l.taps, [&](auto size) LSKA_INLINE {
                      accumulate_run<decltype(size)::value>(w, run, weights, window, dim, dims, sum);
                    });
  if (done) return;
  for (int tap_y = 0; tap_y < l.taps; ++tap_y) {
    if (w.count_y(run.row, tap_y) == 0.f) continue;
    for (int tap_x = 0; tap_x < l.taps; ++tap_x) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (run.x + i >= w.t.col + w.t.cols || w.count_x(run.x + i, tap_x) == 0.f) continue;
        const float p = weights[(tap_y * l.taps + tap_x) * l.band_pixels + run.place + i];
#pragma unroll
        for (int d = 0; d < 4; ++d)
          if (d < dims)
            sum[d][i] = multiply_add(
                p, to_float(*window.at(dim + d, w.first(run.y) + tap_y, w.first(run.x + i) + tap_x)),
                sum[d][i]);
      }
    }
  }
}

// Calls f(run, first dim, dims) for each run of a band and each four dims. Neighbouring lanes have
// neighbouring runs, or first 2^bits fours of the same one.
template <class F>
LSKA_DEVICE void for_runs_and_dims(const AcmixLayout& l, const AcmixTile& t, int band_row, int dims,
                                   const F& f, int bits = 0) {
  const int runs = min(l.band, t.rows - band_row) * l.runs, groups = (dims + 3) / 4;
  for (int task = thread_index(); task < runs * groups; task += thread_count()) {
    const int fours = (task >> bits) / runs, nth = (task >> bits) - fours * runs;
    const int group = (fours << bits) + (task & ((1 << bits) - 1));
    f(acmix_run(l, t, nth, band_row), 4 * group, min(4, dims - 4 * group));
  }
}

// How many fours of a pixel's channels, if they fill a sector: 2^bits.
template <class T>
LSKA_DEVICE int fours_of_sector(int dims) {
  int bits = 0;
  while (4 * sizeof(T) << bits < 32 && dims % (8 << bits) == 0) ++bits;
  return bits;
}

}  // namespace lska_ops
