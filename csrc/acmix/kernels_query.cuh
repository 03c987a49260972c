// Backward, query by query: the gradients of q and of the positions, and what each query's softmax subtracts.
#pragma once

#include "csrc/acmix/kernels_forward.cuh"

namespace lska_ops {

// A band's pairs, from the products q k and grad_y v: the softmax weights again, delta = sum of weight times
// product, and in place of the first products the gradients of the logits' sums, scale included. `pixels`:
// slopes in x and y, then those gradients' sums times x_i - x_j and y_i - y_j. Returns this thread's deltas.
template <class T>
LSKA_DEVICE float query_pairs(const AcmixWindow<false>& w, const AcmixTile& t, int head, int band_row,
                              float scale, float rate1, float* weights, const float* products,
                              float* pixels) {
  const AcmixArguments& a = w.a;
  const AcmixLayout& l = a.layout;
  const int band = l.band_pixels, rows = min(l.band, t.rows - band_row), of_row = l.runs * kAcmixRun;
  float deltas = 0.f;
  for (int n = thread_index(); n < rows * of_row; n += thread_count()) {
    const int row = n / of_row, y = t.row + band_row + row, x = t.col + n - row * of_row;
    if (x >= t.col + t.cols) continue;
    const float slope_x = pixels[n], slope_y = pixels[band + n];
    const int64_t at = ((t.image * a.G + head) * a.Ho + y) * a.Wo + x;
    const float lse = read_global(a.lse + at);
    float delta = 0.f, sum_x = 0.f, sum_y = 0.f;
    for (int tap_y = 0; tap_y < l.taps; ++tap_y) {
      const float count = w.count_y(band_row + row, tap_y), from_y = slope_y * w.distance(y, tap_y, a.H);
      if (count == 0.f) continue;
      for (int tap_x = 0; tap_x < l.taps; ++tap_x) {
        const int tap = (tap_y * l.taps + tap_x) * band + n;
        const float times = count * w.count_x(x, tap_x);
        if (times == 0.f) {
          weights[tap] = 0.f;
          continue;
        }
        const float logit = scale * (weights[tap] + (slope_x * w.distance(x, tap_x, a.W) + from_y));
        const float p = times * exponential(logit - lse);
        weights[tap] = p;
        delta = multiply_add(p, products[tap], delta);
      }
    }
    for (int tap_y = 0; tap_y < l.taps; ++tap_y) {
      if (w.count_y(band_row + row, tap_y) == 0.f) continue;
      const float far_y = w.distance(y, tap_y, a.H);
      for (int tap_x = 0; tap_x < l.taps; ++tap_x) {
        if (w.count_x(x, tap_x) == 0.f) continue;
        float& weight = weights[(tap_y * l.taps + tap_x) * band + n];
        weight *= rate1 * scale * (products[(tap_y * l.taps + tap_x) * band + n] - delta);
        sum_x = multiply_add(weight, w.distance(x, tap_x, a.W), sum_x);
        sum_y = multiply_add(weight, far_y, sum_y);
      }
    }
    pixels[2 * band + n] = sum_x;
    pixels[3 * band + n] = sum_y;
    write_global(a.delta + at, delta);
    deltas += delta;
  }
  return deltas;
}

// The gradient of q at a run, to global memory; at a stride also what lies between the queries, which only
// `initial` reaches.
template <class T>
LSKA_DEVICE void store_query(const AcmixArguments& a, int64_t plane_at, const AcmixRun& run, int count,
                             float (&sum)[4]) {
  if (a.stride == 1) {
    const int64_t at = plane_at + int64_t(run.y) * a.W + run.x;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count && a.initial) sum[i] += read_global(a.initial + at + i);
    store_four(static_cast<T*>(a.out) + at, sum, count);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= count) continue;
    for (int dy = 0; dy < a.stride && run.y * a.stride + dy < a.H; ++dy) {
      for (int dx = 0; dx < a.stride && (run.x + i) * a.stride + dx < a.W; ++dx) {
        const int64_t at = plane_at + int64_t(run.y * a.stride + dy) * a.W + (run.x + i) * a.stride + dx;
        const float from = a.initial ? read_global(a.initial + at) : 0.f;
        store(static_cast<T*>(a.out) + at, from + (dy || dx ? 0.f : sum[i]));
      }
    }
  }
}

// The same of up to four dims, from `channel` on, of maps that lie pixel by pixel.
template <class T>
LSKA_DEVICE void store_query_pixels(const AcmixArguments& a, int64_t image, int channel, const AcmixRun& run,
                                    int count, int dims, const float (&sum)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= count) continue;
    for (int dy = 0; dy < a.stride && run.y * a.stride + dy < a.H; ++dy) {
      for (int dx = 0; dx < a.stride && (run.x + i) * a.stride + dx < a.W; ++dx) {
        const int y = run.y * a.stride + dy, x = (run.x + i) * a.stride + dx;
        float v[4];
#pragma unroll
        for (int d = 0; d < 4; ++d) {
          v[d] = dy || dx ? 0.f : sum[d][i];
          if (d < dims && a.initial)
            v[d] += read_global(a.initial + ((image * 3 * a.C + channel + d) * a.H + y) * a.W + x);
        }
        store_four(static_cast<T*>(a.out) + ((image * a.H + y) * a.W + x) * 3 * a.C + channel, v, dims);
      }
    }
  }
}

// A block owns a tile of queries, of all heads (with the shift's part of q's gradient) or of one. Reads q and
// grad_y, k and v with the halo of the windows, lse; writes the gradient of q and delta once, and its part of
// the gradients of conv_p and rate1. It is the backward of reference.attention with respect to q and conv_p.
// Where there is room for all sums of the composite weights' gradients it adds them up, too, over the tiles
// at one place of several images.
template <class T>
LSKA_KERNEL_FEW_BLOCKS(kAcmixThreads)
acmix_query_bwd_kernel(const AcmixArguments a) {
  const AcmixLayout& l = a.layout;
  AcmixTile t = acmix_tile(a, a.Ho, a.Wo);
  const AcmixWindow<false> w(a, t);
  const AcmixPlaces of_grad(a.grad_last, a.C, a.Ho, a.Wo);
  float *position = shared_at<float>(l.position), *sums = shared_at<float>(l.sums);
  float *weights = shared_at<float>(l.weights), *second = shared_at<float>(l.products);
  float *pixels = shared_at<float>(l.pixels), *composite = shared_at<float>(l.composite);
  float* shift_sums = shared_at<float>(l.shift_sums);
  const int shift_count = l.shift_grad ? 3 * a.C * a.G * a.kernel_conv * a.kernel_conv : 0;
  const int band = l.band_pixels, of_row = l.runs * kAcmixRun;
  T *own = shared_at<T>(l.own_at), *window = shared_at<T>(l.window_at), *grads = shared_at<T>(l.grads_at);
  const int top = t.row * a.stride - l.window.ahead_y, left = t.col * a.stride - l.window.ahead_x;
  const AcmixRegion of_grads = l.shift ? l.grads : l.own;
  const int grads_top = t.row - of_grads.ahead_y, grads_left = t.col - of_grads.ahead_x;
  const Staged<T> q{own, l.own, t.row, t.col}, k{window, l.window, top, left},
      v{window + l.dims * l.window.elements, l.window, top, left}, g{grads, of_grads, grads_top, grads_left};
  const float rate1 = rate_of<T>(a.rate1), rate2 = rate_of<T>(a.rate2), scale = 1.f / square_root(float(a.D));

  w.fill();
  for (int i = thread_index(); i < 2 * a.D; i += thread_count()) {
    position[i] = load(static_cast<const T*>(a.conv_p) + i);
    sums[i] = 0.f;
  }
  for (int i = thread_index(); i < shift_count; i += thread_count()) shift_sums[i] = 0.f;
  float deltas = 0.f;
  for (; t.image < a.B; t.image += l.images) {
    const T* grad_y = static_cast<const T*>(a.grad_y) + t.image * a.C * a.Ho * a.Wo;
    if (l.shift)
      stage(grad_y, of_grad.plane, a.Wo, a.C, 1, a.Ho, a.Wo, grads_top, grads_left, of_grads, grads,
            of_grad.pixel);
    for (int h = t.head; h < t.head + l.heads; ++h) {
      const auto bring = [&](int dim, int dims, bool all) LSKA_INLINE {
        barrier();
        stage_parts<T>(a, t.image, h * a.D + dim, dims,
                       !all      ? 0b0011
                       : l.shift ? 0b0111
                                 : 0b1111,
                       l.own, l.window,
                       {own, window, window + l.dims * l.window.elements, grads, t.row, t.col, top, left});
        if (l.shift) stage_composite(a, h, 0, 1, dim, dims, composite);
        barrier();
        if (all && l.shift_grad) shift_weights(a, t, {q, k, v}, g, h, dim, dims, shift_sums);
      };
      for (int band_row = 0; band_row < t.rows; band_row += l.band) {
        for (int dim = 0; dim < a.D; dim += l.dims) {
          const int dims = min(l.dims, a.D - dim);
          if (!l.whole || band_row == 0) bring(dim, dims, true);
          const auto put = [&](float* to) LSKA_INLINE {
            return [=, &l](int pixel, int tap, float sum) LSKA_INLINE {
              float& at = to[tap * l.band_pixels + pixel];
              at = dim ? at + sum : sum;
            };
          };
          products(w, band_row, q, 1, k, dims, put(weights));
          Staged<T> of_head = g;
          if (l.shift) of_head.data += (h * a.D + dim) * of_grads.elements;
          products(w, band_row, of_head, 1, v, dims, put(second));
          slopes(l, t, band_row, q, 1, dim, dims, position, pixels, dim == 0);
        }
        barrier();
        deltas += query_pairs<T>(w, t, h, band_row, scale, rate1, weights, second, pixels);
        barrier();
        for (int dim = 0; dim < a.D; dim += l.dims) {
          const int dims = min(l.dims, a.D - dim);
          if (!l.whole) bring(dim, dims, false);
          const auto gradients = [&](const AcmixRun& run, int first, int some) LSKA_INLINE {
            float sum[4][4] = {};
            accumulate(w, run, weights, k, first, some, sum);
            const int count = min(kAcmixRun, t.col + t.cols - run.x);
#pragma unroll
            for (int d = 0; d < 4; ++d) {
              if (d >= some) continue;
              const float* p = position + 2 * (dim + first + d);
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                sum[d][i] = multiply_add(p[0], pixels[2 * band + run.place + i], sum[d][i]);
                sum[d][i] = multiply_add(p[1], pixels[3 * band + run.place + i], sum[d][i]);
              }
              if (l.shift) {
                float shifted[1][4] = {};
                shift_backward(a, g, run, count, composite, (dim + first + d) * a.G, first + d, dims,
                               shifted);
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[d][i] = multiply_add(rate2, shifted[0][i], sum[d][i]);
              }
              if (!a.out_last)
                store_query<T>(a, (t.image * 3 * a.C + h * a.D + dim + first + d) * a.H * a.W, run, count,
                               sum[d]);
            }
            if (a.out_last) store_query_pixels<T>(a, t.image, h * a.D + dim + first, run, count, some, sum);
          };
          for_runs_and_dims(l, t, band_row, dims, gradients, a.out_last ? fours_of_sector<T>(dims) : 0);
          // A warp owns one of the sums.
          const int lane = thread_index() % kWarp, pixels_here = min(l.band, t.rows - band_row) * of_row;
          for (int i = thread_index() / kWarp; i < 2 * dims; i += thread_count() / kWarp) {
            float sum = 0.f;
            for (int n = lane; n < pixels_here; n += kWarp) {
              const int row = n / of_row, x = n - row * of_row;
              if (x < t.cols)
                sum = multiply_add(to_float(*q.at(i / 2, t.row + band_row + row, t.col + x)),
                                   pixels[(2 + i % 2) * band + n], sum);
            }
            sum = warp_sum(sum);
            if (lane == 0) sums[2 * dim + i] += sum;
          }
        }
        barrier();
      }
    }
  }
  deltas = block_sum(deltas, shared_floats());
  const int64_t block = (block_x() * blocks_y() + block_y()) * blocks_z() + block_z();
  float* parts = a.parts + block * (2 * a.D + 1);
  for (int i = thread_index(); i < 2 * a.D; i += thread_count()) write_global(parts + i, sums[i]);
  if (thread_index() == 0) write_global(parts + 2 * a.D, deltas);
  for (int i = thread_index(); i < shift_count; i += thread_count())
    write_global(a.shift_parts + block * shift_count + i, shift_sums[i]);
}

}  // namespace lska_ops
