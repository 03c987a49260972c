// Forward: attention and shift of one tile from the same q, k, v.
#pragma once

#include "csrc/acmix/kernels_shift.cuh"

namespace lska_ops {

// Logits of a band's pixels from their products; then exp(logit - largest) times how often the tap counts,
// and what 1 / their sum is. `pixels`: slopes in x and in y, one over the sum.
template <class T>
LSKA_DEVICE void softmax(const AcmixWindow<false>& w, const AcmixTile& t, int head, int band_row, float scale,
                         float* weights, float* pixels) {
  const AcmixArguments& a = w.a;
  const AcmixLayout& l = a.layout;
  const int band = l.band_pixels, rows = min(l.band, t.rows - band_row), of_row = l.runs * kAcmixRun;
  for (int n = thread_index(); n < rows * of_row; n += thread_count()) {
    const int row = n / of_row, y = t.row + band_row + row, x = t.col + n - row * of_row;
    if (x >= t.col + t.cols) continue;
    const float slope_x = pixels[n], slope_y = pixels[band + n];
    float top = -3.4e38f;
    for (int tap_y = 0; tap_y < l.taps; ++tap_y) {
      if (w.count_y(band_row + row, tap_y) == 0.f) continue;
      const float from_y = slope_y * w.distance(y, tap_y, a.H);
      for (int tap_x = 0; tap_x < l.taps; ++tap_x) {
        float& at = weights[(tap_y * l.taps + tap_x) * band + n];
        if (w.count_x(x, tap_x) == 0.f) continue;
        at = scale * (at + (slope_x * w.distance(x, tap_x, a.W) + from_y));
        top = at > top || at != at ? at : top;  // NaN stays
      }
    }
    float sum = 0.f;
    for (int tap_y = 0; tap_y < l.taps; ++tap_y) {
      const float count = w.count_y(band_row + row, tap_y);
      if (count == 0.f) continue;
      for (int tap_x = 0; tap_x < l.taps; ++tap_x) {
        float& at = weights[(tap_y * l.taps + tap_x) * band + n];
        const float times = count * w.count_x(x, tap_x);
        at = times == 0.f ? 0.f : times * exponential(at - top);
        sum += at;
      }
    }
    pixels[2 * band + n] = 1.f / sum;
    write_global(a.lse + ((t.image * a.G + head) * a.Ho + y) * a.Wo + x, top + logarithm(sum));
  }
}

// pixels[0], pixels[band] += q . conv_p of a band's pixels: how their logits rise along x and y.
template <class T>
LSKA_DEVICE void slopes(const AcmixLayout& l, const AcmixTile& t, int band_row, const Staged<T>& q, int step,
                        int dim, int dims, const float* position, float* pixels, bool first) {
  const int band = l.band_pixels, rows = min(l.band, t.rows - band_row), of_row = l.runs * kAcmixRun;
  for (int n = thread_index(); n < rows * of_row; n += thread_count()) {
    const int row = n / of_row, x = n - row * of_row;
    if (x >= t.cols) continue;
    float sum_x = first ? 0.f : pixels[n], sum_y = first ? 0.f : pixels[band + n];
    for (int d = 0; d < dims; ++d) {
      const float v = to_float(*q.at(d, (t.row + band_row + row) * step, (t.col + x) * step));
      sum_x = multiply_add(v, position[2 * (dim + d)], sum_x);
      sum_y = multiply_add(v, position[2 * (dim + d) + 1], sum_y);
    }
    pixels[n] = sum_x;
    pixels[band + n] = sum_y;
  }
}

// A tile's sums of `channels` channels, side by side in memory at each pixel, kAtOnce at a time.
template <class T, int kAtOnce>
LSKA_DEVICE void write_pixels(const AcmixArguments& a, const AcmixTile& t, const float* total, int channels,
                              T* to) {
  const AcmixLayout& l = a.layout;
  const int of_pixel = channels / kAtOnce;
  const LanesOnPixels lanes(of_pixel, kAtOnce * sizeof(T));
#pragma unroll 1
  for (int n = lanes.pixel; n < t.rows * l.cols; n += lanes.pixels) {
    const int row = quotient(n, l.by_cols), col = n - row * l.cols;
    if (col >= t.cols) continue;
    T* const pixel = to + (int64_t(t.row + row) * a.Wo + t.col + col) * a.C;
    const float* from = total + row * l.runs * kAcmixRun + col;
#pragma unroll 1
    for (int i = lanes.first; i < of_pixel; i += lanes.step) {
      if constexpr (kAtOnce == 1) {
        store(pixel + i, from[i * l.tile_pixels]);
      } else {
        float v[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) v[j] = from[(i * kAtOnce + j) * l.tile_pixels];
        store_vector(pixel + i * kAtOnce, v);
      }
    }
  }
}

// A block owns a tile of outputs, of all channels (attention and shift, or the shift of some dims) or of one
// head (attention). Head by head it reads q, k and v, k and v with the halo of their windows, and adds up in
// shared memory; writes y once, and lse. It is reference.attention and reference.shift_aggregate.
template <class T>
LSKA_KERNEL_FEW_BLOCKS(kAcmixThreads)
acmix_fwd_kernel(const AcmixArguments a) {
  const AcmixLayout& l = a.layout;
  const AcmixTile t = acmix_tile(a, a.Ho, a.Wo);
  const AcmixWindow<false> w(a, t);
  const AcmixPlaces of_maps(a.last, 3 * a.C, a.H, a.W);
  float *position = shared_at<float>(l.position), *weights = shared_at<float>(l.weights);
  float *pixels = shared_at<float>(l.pixels), *total = shared_at<float>(l.total);
  float* composite = shared_at<float>(l.composite);
  const int window_elements = l.dims * l.window.elements;
  T *own = shared_at<T>(l.own_at), *window = shared_at<T>(l.window_at);
  const int own_top = t.row * a.stride - l.own.ahead_y, own_left = t.col * a.stride - l.own.ahead_x;
  const int top = t.row * a.stride - l.window.ahead_y, left = t.col * a.stride - l.window.ahead_x;
  const bool two = l.whole || !l.attention;  // k and v at once
  const Staged<T> q{own, l.own, own_top, own_left}, k{window, l.window, top, left},
      v{two ? window + window_elements : window, l.window, top, left};
  const float rate1 = rate_of<T>(a.rate1), rate2 = rate_of<T>(a.rate2), scale = 1.f / square_root(float(a.D));

  if (l.attention) {
    w.fill();
    for (int i = thread_index(); i < 2 * a.D; i += thread_count())
      position[i] = load(static_cast<const T*>(a.conv_p) + i);
  }
  const int sums = !l.shift ? 0 : (l.attention ? a.C : a.G * l.dims) * l.tile_pixels;
  for (int i = thread_index(); i < sums; i += thread_count()) total[i] = 0.f;

  for (int h = t.head; h < t.head + l.heads; ++h) {
    const T* maps = static_cast<const T*>(a.qkv) + t.image * 3 * a.C * a.H * a.W + h * a.D * of_maps.plane;
    const auto bring = [&](int part, int dim, int dims) LSKA_INLINE {
      const Staged<T> to = part == 0 ? q : part == 1 ? k : v;
      stage(maps + (int64_t(part) * a.C + dim) * of_maps.plane, of_maps.plane, a.W, dims, 1, a.H, a.W, to.top,
            to.left, part == 0 ? l.own : l.window, const_cast<T*>(to.data), of_maps.pixel);
    };
    const auto shift = [&](int part, int parts, int dim, int dims) LSKA_INLINE {
      const auto staged = [&](int p) LSKA_INLINE { return part + p == 0 ? q : part + p == 1 ? k : v; };
      shift_forward(a, t, staged, parts, composite, l.attention ? dim : 0, dims, rate2, total);
    };
    if (two) {
      const int dims = min(l.dims, a.D - t.dim);
      barrier();
#pragma unroll
      for (int part = 0; part < 3; ++part) bring(part, t.dim, dims);
      if (l.shift) stage_composite(a, h, 0, 3, t.dim, dims, composite);
      barrier();
      if (l.shift) shift(0, 3, t.dim, dims);
      if (!l.attention) continue;
    }
    for (int band_row = 0; band_row < t.rows; band_row += l.band) {
      for (int dim = 0; dim < a.D; dim += l.dims) {
        const int dims = min(l.dims, a.D - dim);
        if (!l.whole) {
          barrier();
          bring(0, dim, dims);
          bring(1, dim, dims);
          if (l.shift) stage_composite(a, h, 0, 2, dim, dims, composite);
          barrier();
          if (l.shift) shift(0, 2, dim, dims);
        }
        products(w, band_row, q, a.stride, k, dims, [&](int pixel, int tap, float sum) LSKA_INLINE {
          float& at = weights[tap * l.band_pixels + pixel];
          at = dim ? at + sum : sum;
        });
        slopes(l, t, band_row, q, a.stride, dim, dims, position, pixels, dim == 0);
      }
      barrier();
      softmax<T>(w, t, h, band_row, scale, weights, pixels);
      barrier();
      for (int dim = 0; dim < a.D; dim += l.dims) {
        const int dims = min(l.dims, a.D - dim);
        if (!l.whole) {
          barrier();
          bring(2, dim, dims);
          if (l.shift) stage_composite(a, h, 2, 1, dim, dims, composite);
          barrier();
          if (l.shift) {
            shift(2, 1, dim, dims);
            barrier();
          }
        }
        const int bits = a.out_last && !l.shift ? fours_of_sector<T>(dims) : 0;
        const auto outputs = [&](const AcmixRun& run, int first, int some) LSKA_INLINE {
          float sum[4][4] = {};
          accumulate(w, run, weights, v, first, some, sum);
          const int count = min(kAcmixRun, t.col + t.cols - run.x);
#pragma unroll
          for (int d = 0; d < 4; ++d) {
            if (d >= some) continue;
            const int channel = h * a.D + dim + first + d;
            const int64_t at = ((t.image * a.C + channel) * a.Ho + run.y) * a.Wo + run.x;
            float* there = total + channel * l.tile_pixels + band_row * l.runs * kAcmixRun + run.place;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (i >= count) continue;
              sum[d][i] *= rate1 * pixels[2 * l.band_pixels + run.place + i];
              if (l.shift)
                there[i] += sum[d][i];
              else if (a.initial)
                sum[d][i] += read_global(a.initial + at + i);
            }
            if (!l.shift && !a.out_last) store_four<T>(a.out, a.out_float, at, sum[d], count);
          }
          if (l.shift || !a.out_last) return;
          T* const to = static_cast<T*>(a.out) + ((t.image * a.Ho + run.y) * a.Wo + run.x) * a.C;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float channels[4] = {sum[0][i], sum[1][i], sum[2][i], sum[3][i]};
            if (i < count) store_four(to + int64_t(i) * a.C + h * a.D + dim + first, channels, some);
          }
        };
        for_runs_and_dims(l, t, band_row, dims, outputs, bits);
      }
      barrier();
    }
  }
  if (!l.shift) return;
  barrier();
  const int channels = l.attention ? a.C : a.G * min(l.dims, a.D - t.dim), runs = t.rows * l.runs;
  if (a.out_last) {
    T* const to = static_cast<T*>(a.out) + t.image * a.Ho * a.Wo * a.C + t.dim * a.G;
    if (reads_at_once<kVector<T>>(to, a.C, channels))
      write_pixels<T, kVector<T>>(a, t, total, channels, to);
    else
      write_pixels<T, 1>(a, t, total, channels, to);
    return;
  }
  for (int task = thread_index(); task < channels * runs; task += thread_count()) {
    const int channel = task / runs;
    const AcmixRun run = acmix_run(l, t, task - channel * runs, 0);
    const int64_t at = ((t.image * a.C + t.dim * a.G + channel) * a.Ho + run.y) * a.Wo + run.x;
    float sum[4];
    load_four(total + channel * l.tile_pixels + run.place, sum);
    store_four<T>(a.out, a.out_float, at, sum, min(kAcmixRun, t.col + t.cols - run.x));
  }
}

}  // namespace lska_ops
