// Backward, key by key: the gradients of k and v from the queries in whose windows they are, and the shift's.
#pragma once

#include "csrc/acmix/kernels_query.cuh"

namespace lska_ops {

// Of the queries around a tile, in the window's region: lse, delta, slopes in x and y.
template <class T>
LSKA_DEVICE void query_facts(const AcmixArguments& a, const AcmixTile& t, int head, const Staged<T>& q,
                             int dim, int dims, const float* position, float* facts) {
  const int elements = q.elements();
  for (int n = thread_index(); n < elements; n += thread_count()) {
    const int row = n / q.pitch, y = q.top + row, x = q.left + n - row * q.pitch;
    if (y < 0 || y >= a.Ho || x < 0 || x >= a.Wo) continue;
    if (dim == 0) {
      const int64_t at = ((t.image * a.G + head) * a.Ho + y) * a.Wo + x;
      facts[n] = read_global(a.lse + at);
      facts[elements + n] = read_global(a.delta + at);
    }
    float sum_x = dim ? facts[2 * elements + n] : 0.f, sum_y = dim ? facts[3 * elements + n] : 0.f;
    for (int d = 0; d < dims; ++d) {
      const float v = to_float(q.data[d * elements + n]);
      sum_x = multiply_add(v, position[2 * (dim + d)], sum_x);
      sum_y = multiply_add(v, position[2 * (dim + d) + 1], sum_y);
    }
    facts[2 * elements + n] = sum_x;
    facts[3 * elements + n] = sum_y;
  }
}

// A band's pairs, from the products k q and v grad_y: in place of the first the gradients of the logits'
// sums, of the second the softmax weights times rate1.
LSKA_DEVICE void key_pairs(const AcmixWindow<true>& w, const AcmixTile& t, int band_row, int top, int left,
                           float scale, float rate1, float* weights, float* second, const float* facts) {
  const AcmixArguments& a = w.a;
  const AcmixLayout& l = a.layout;
  const int of_row = l.runs * kAcmixRun, pixels = min(l.band, t.rows - band_row) * of_row;
  const int elements = l.window.elements;
  for (int i = thread_index(); i < pixels * l.taps * l.taps; i += thread_count()) {
    const int tap = i / pixels, n = i - tap * pixels, tap_y = tap / l.taps, tap_x = tap - tap_y * l.taps;
    const int row = n / of_row, y = t.row + band_row + row, x = t.col + n - row * of_row;
    const float count = w.count_y(band_row + row, tap_y);
    if (x >= t.col + t.cols || count == 0.f) continue;
    float &weight = weights[tap * l.band_pixels + n], &product = second[tap * l.band_pixels + n];
    const float times = count * w.count_x(x, tap_x);
    if (times == 0.f) {
      weight = product = 0.f;
      continue;
    }
    const float* query = facts + (w.first(y) + tap_y - top) * l.window.pitch + w.first(x) + tap_x - left;
    const float rises =
        query[2 * elements] * w.distance(x, tap_x, a.W) + query[3 * elements] * w.distance(y, tap_y, a.H);
    const float p = rate1 * times * exponential(scale * (weight + rises) - query[0]);
    weight = p * scale * (product - query[elements]);
    product = p;
  }
}

// A block owns a tile of keys, of all heads (attention and shift), of one (attention), or of some dims (the
// shift alone, and then of q too). Reads k and v, q and grad_y with the halo of the windows, lse and delta;
// writes each gradient once.
template <class T>
LSKA_KERNEL_FEW_BLOCKS(kAcmixThreads)
acmix_key_bwd_kernel(const AcmixArguments a) {
  const AcmixLayout& l = a.layout;
  const AcmixTile t = acmix_tile(a, a.H, a.W);
  const AcmixWindow<true> w(a, t);
  const AcmixPlaces of_grad(a.grad_last, a.C, a.Ho, a.Wo);
  float *position = shared_at<float>(l.position), *weights = shared_at<float>(l.weights);
  float *second = shared_at<float>(l.products), *facts = shared_at<float>(l.pixels);
  float* composite = shared_at<float>(l.composite);
  T *own = shared_at<T>(l.own_at), *window = shared_at<T>(l.window_at), *grads = shared_at<T>(l.grads_at);
  T* const own_v = own + l.dims * l.own.elements;
  const int top = a.stride > 1 ? first_query(t.row, l.window.ahead_y, a.stride) : t.row - l.window.ahead_y;
  const int left = a.stride > 1 ? first_query(t.col, l.window.ahead_x, a.stride) : t.col - l.window.ahead_x;
  const Staged<T> k{own, l.own, t.row, t.col}, v{own_v, l.own, t.row, t.col}, q{window, l.window, top, left},
      g{grads, l.window, top, left};
  const float rate1 = rate_of<T>(a.rate1), rate2 = rate_of<T>(a.rate2), scale = 1.f / square_root(float(a.D));
  const T* grad_y = static_cast<const T*>(a.grad_y) + t.image * a.C * a.Ho * a.Wo;
  const int some_dims = min(l.dims, a.D - t.dim);

  if (l.attention) {
    w.fill();
    for (int i = thread_index(); i < 2 * a.D; i += thread_count())
      position[i] = load(static_cast<const T*>(a.conv_p) + i);
  }
  if (l.shift)
    stage(grad_y + t.dim * a.G * of_grad.plane, of_grad.plane, a.Wo, l.attention ? a.C : some_dims * a.G, 1,
          a.Ho, a.Wo, top, left, l.window, grads, of_grad.pixel);
  // The gradient of part `part` at a run, with what the shift and `initial` add; to global memory in NCHW.
  const auto finish = [&](int part, int channel, const AcmixRun& run, int count, float(&sum)[4],
                          const float(&shifted)[4]) LSKA_INLINE {
    const int64_t at = (((t.image * 3 + part) * a.C + channel) * a.H + run.y) * a.W + run.x;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (l.shift) sum[i] = multiply_add(rate2, shifted[i], sum[i]);
      if (i < count && a.initial) sum[i] += read_global(a.initial + at + i);
    }
    if (!a.out_last) store_four<T>(a.out, a.out_float, at, sum, count);
  };
  const auto pixel_of = [&](int part, int channel, const AcmixRun& run, int i) LSKA_INLINE {
    const int64_t at = (t.image * a.H + run.y) * a.W + run.x + i;
    return static_cast<T*>(a.out) + (at * 3 + part) * a.C + channel;
  };
  const auto write_pixels = [&](int part, int channel, const AcmixRun& run, int count, int dims,
                                const float(&sum)[4][4]) LSKA_INLINE {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float channels[4] = {sum[0][i], sum[1][i], sum[2][i], sum[3][i]};
      if (i < count) store_four(pixel_of(part, channel, run, i), channels, dims);
    }
  };

  for (int h = t.head; h < t.head + l.heads; ++h) {
    if (!l.attention) {
      barrier();
      stage_composite(a, h, 0, 3, t.dim, some_dims, composite);
      barrier();
      const int runs = t.rows * l.runs;
      for (int task = thread_index(); task < runs * some_dims; task += thread_count()) {
        const int d = task / runs;
        const AcmixRun run = acmix_run(l, t, task - d * runs, 0);
        const int count = min(kAcmixRun, t.col + t.cols - run.x);
        float shifted[3][4] = {};
        shift_backward(a, g, run, count, composite, d * a.G, d, some_dims, shifted);
#pragma unroll
        for (int part = 0; part < 3; ++part) {
          float sum[4] = {};
          const int channel = h * a.D + t.dim + d;
          finish(part, channel, run, count, sum, shifted[part]);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (a.out_last && i < count) store(pixel_of(part, channel, run, i), sum[i]);
        }
      }
      continue;
    }
    const auto bring = [&](int dim, int dims, bool all) LSKA_INLINE {
      barrier();
      stage_parts<T>(a, t.image, h * a.D + dim, dims, (all ? 0b0111 : 0b0001) | (l.shift ? 0 : 0b1000),
                     l.window, l.own, {window, own, own_v, grads, top, left, t.row, t.col});
      if (l.shift) stage_composite(a, h, 1, 2, dim, dims, composite);
      barrier();
      if (all) query_facts(a, t, h, q, dim, dims, position, facts);
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
        products(w, band_row, k, 1, q, dims, put(weights));
        Staged<T> of_head = g;
        if (l.shift) of_head.data += (h * a.D + dim) * l.window.elements;
        products(w, band_row, v, 1, of_head, dims, put(second));
      }
      barrier();
      key_pairs(w, t, band_row, top, left, scale, rate1, weights, second, facts);
      barrier();
      for (int dim = 0; dim < a.D; dim += l.dims) {
        const int dims = min(l.dims, a.D - dim);
        if (!l.whole) bring(dim, dims, false);
        Staged<T> of_head = g;
        if (l.shift) of_head.data += (h * a.D + dim) * l.window.elements;
        const auto gradients = [&](const AcmixRun& run, int first, int some) LSKA_INLINE {
          float of_k[4][4] = {}, of_v[4][4] = {};
          accumulate(w, run, weights, q, first, some, of_k);
          accumulate(w, run, second, of_head, first, some, of_v);
          const int count = min(kAcmixRun, t.col + t.cols - run.x);
#pragma unroll
          for (int d = 0; d < 4; ++d) {
            if (d >= some) continue;
            float shifted[2][4] = {};
            if (l.shift)
              shift_backward(a, g, run, count, composite, (dim + first + d) * a.G, first + d, dims, shifted);
            const int channel = h * a.D + dim + first + d;
            finish(1, channel, run, count, of_k[d], shifted[0]);
            finish(2, channel, run, count, of_v[d], shifted[1]);
          }
          if (!a.out_last) return;
          write_pixels(1, h * a.D + dim + first, run, count, some, of_k);
          write_pixels(2, h * a.D + dim + first, run, count, some, of_v);
        };
        for_runs_and_dims(l, t, band_row, dims, gradients, a.out_last ? fours_of_sector<T>(dims) : 0);
      }
      barrier();
    }
  }
}

}  // namespace lska_ops
