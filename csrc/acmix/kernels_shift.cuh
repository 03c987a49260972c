// The shift: fc and dep_conv as one convolution per dim, whose weights are composed once a call. Its passes
// over tiles are called by the kernels of the three passes; here are also the sums of its weights' gradients.
#pragma once

#include "csrc/acmix/kernels_tile.cuh"

namespace lska_ops {

// The composite weights of `parts` of q, k, v from `part` on, for some dims of one head:
// [parts][dims][G][taps].
LSKA_DEVICE void stage_composite(const AcmixArguments& a, int head, int part, int parts, int dim, int dims,
                                 float* to) {
  const int of_dim = a.G * a.kernel_conv * a.kernel_conv, of_part = dims * of_dim;
  for (int i = thread_index(); i < parts * of_part; i += thread_count()) {
    const int p = i / of_part;
    const int64_t from = (int64_t(head * 3 + part + p) * a.D + dim) * of_dim;
    to[i] = read_weight(a.composite + from + i - p * of_part);
  }
}

// sum[o][i] += what the map's channel sends to (or, transposed, hears from) output o's pixel i, for a run of
// `count` neighbours at (y, x). The weights of outputs are `between` apart.
template <int O, bool kTransposed, class T>
LSKA_DEVICE void shift_run(const AcmixArguments& a, const Staged<T>& map, int channel, int y, int x,
                           int count, const float* weights, int between, float (&sum)[O][4]) {
  const int height = kTransposed ? a.Ho : a.H, width = kTransposed ? a.Wo : a.W, k = a.kernel_conv, c = k / 2;
  if (a.layout.regular && k == 3) {
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
      if (uint32_t(y + dy - 1) >= uint32_t(height)) continue;
      float v[12];
      const T* from = map.at(channel, y + dy - 1, x - kAcmixAhead);
#pragma unroll
      for (int j = 0; j < 3; ++j) load_four(from + 4 * j, v + 4 * j);
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) {
        const int tap = kTransposed ? 8 - 3 * dy - dx : 3 * dy + dx;
#pragma unroll
        for (int o = 0; o < O; ++o) {
          const float w = weights[o * between + tap];
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[o][i] = multiply_add(w, v[3 + i + dx], sum[o][i]);
        }
      }
    }
    return;
  }
  for (int tap = 0; tap < k * k; ++tap) {
    const int dy = tap / k - c, dx = tap % k - c;
    const int there_y = kTransposed ? y - dy : y * a.stride + dy;
    if (kTransposed && there_y % a.stride) continue;
    const int at_y = kTransposed ? there_y / a.stride : there_y;
    if (there_y < 0 || at_y >= height) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int there = kTransposed ? x + i - dx : (x + i) * a.stride + dx;
      if (i >= count || there < 0 || (kTransposed && there % a.stride)) continue;
      const int at_x = kTransposed ? there / a.stride : there;
      if (at_x >= width) continue;
      const float v = to_float(*map.at(channel, at_y, at_x));
#pragma unroll
      for (int o = 0; o < O; ++o) sum[o][i] = multiply_add(weights[o * between + tap], v, sum[o][i]);
    }
  }
}

// What `parts` maps of one head, maps(0) and so on, add to all G outputs of their dims: total
// [channel][tile's pixels].
template <class Maps>
LSKA_DEVICE void shift_forward(const AcmixArguments& a, const AcmixTile& t, const Maps& maps, int parts,
                               const float* composite, int dim, int dims, float rate2, float* total) {
  const AcmixLayout& l = a.layout;
  const int taps = a.kernel_conv * a.kernel_conv, runs = t.rows * l.runs, pixels = l.tile_pixels;
  for (int task = thread_index(); task < runs * dims; task += thread_count()) {
    const int d = task / runs;
    const AcmixRun run = acmix_run(l, t, task - d * runs, 0);
    const int count = min(kAcmixRun, t.col + t.cols - run.x);
    const auto outputs = [&](int g, auto size) LSKA_INLINE {
      constexpr int O = decltype(size)::value;
      float sum[O][4] = {};
      for (int p = 0; p < parts; ++p)
        shift_run<O, false>(a, maps(p), d, run.y, run.x, count, composite + ((p * dims + d) * a.G + g) * taps,
                            taps, sum);
      float* out = total + ((dim + d) * a.G + g) * pixels + run.place;
#pragma unroll
      for (int o = 0; o < O; ++o)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (i < count) out[o * pixels + i] = multiply_add(rate2, sum[o][i], out[o * pixels + i]);
    };
    int g = 0;
    for (; g + 4 <= a.G; g += 4) outputs(g, Constant<4>{});
    for (; g < a.G; ++g) outputs(g, Constant<1>{});
  }
}

// What the gradients of all outputs of a dim send back to `O` parts of one head's pixels.
template <int O, class T>
LSKA_DEVICE void shift_backward(const AcmixArguments& a, const Staged<T>& grads, const AcmixRun& run,
                                int count, const float* composite, int channel, int dim, int dims,
                                float (&sum)[O][4]) {
  const int taps = a.kernel_conv * a.kernel_conv;
  for (int g = 0; g < a.G; ++g)
    shift_run<O, true>(a, grads, channel + g, run.y, run.x, count, composite + (dim * a.G + g) * taps,
                       dims * a.G * taps, sum);
}

// to [D][G][3][G][taps] += the gradients of one head's composite weights for some dims, from q, k and v of a
// tile and grad_y around it. A task is a channel of grad_y and a row of taps (or one tap). Where tasks are
// few, neighbouring lanes share one's runs and add theirs up, in a fixed order. Each lane starts at a run of
// its own, as a warp's channels may lie in the same banks.
template <class T>
LSKA_DEVICE void shift_weights(const AcmixArguments& a, const AcmixTile& t, const Staged<T> (&maps)[3],
                               const Staged<T>& grads, int head, int dim, int dims, float* to) {
  const AcmixLayout& l = a.layout;
  const int k = a.kernel_conv, c = k / 2, taps = k * k, channels = dims * a.G, runs = t.rows * l.runs;
  const bool fast = l.regular && k == 3;
  const int tasks = channels * (fast ? k : taps);
  int splits = 1;  // lanes that share a task
  while (splits < kWarp && 2 * splits * tasks <= thread_count()) splits *= 2;
  const int split = thread_index() % splits;
  for (int from = 0; from < tasks; from += thread_count() / splits) {  // all lanes reach the shuffles
    const int task = from + thread_index() / splits;
    const int line = task / channels, channel = task - line * channels, d = channel / a.G;
    const int dy = (fast ? line : line / k) - c, dx = line % k - c;
    float sum[3][3] = {};
    int nth = (task * splits + split) % runs;
    for (int i = split; task < tasks && i < runs;
         i += splits, nth += nth + splits < runs ? splits : splits - runs) {
      const AcmixRun run = acmix_run(l, t, nth, 0);
      const int count = min(kAcmixRun, t.col + t.cols - run.x);
      if (uint32_t(run.y - dy) >= uint32_t(a.Ho)) continue;
      float grad[12], v[4];
      if (fast) {
        const T* from = grads.at(dim * a.G + channel, run.y - dy, run.x - kAcmixAhead);
#pragma unroll
        for (int j = 0; j < 3; ++j) load_four(from + 4 * j, grad + 4 * j);
      }
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        const T* from = maps[part].at(d, run.y, run.x);
        if (fast) load_four(from, v);
#pragma unroll
        for (int j = 0; j < kAcmixRun; ++j) {
          if (j >= count) continue;
          if (fast) {
#pragma unroll
            for (int tap = 0; tap < 3; ++tap)
              sum[part][tap] = multiply_add(grad[kAcmixAhead + 1 + j - tap], v[j], sum[part][tap]);
          } else if (uint32_t(run.x + j - dx) < uint32_t(a.Wo)) {
            const float there = to_float(*grads.at(dim * a.G + channel, run.y - dy, run.x + j - dx));
            sum[part][0] = multiply_add(there, to_float(from[j]), sum[part][0]);
          }
        }
      }
    }
    for (int mask = splits / 2; mask > 0; mask /= 2) {
#pragma unroll
      for (int part = 0; part < 3; ++part)
#pragma unroll
        for (int tap = 0; tap < 3; ++tap) sum[part][tap] += shuffle_xor(sum[part][tap], mask);
    }
    if (task >= tasks || split != 0) continue;
    float* const out = to + ((int64_t(dim) * a.G + channel) * 3 * a.G + head) * taps + line * (fast ? 3 : 1);
#pragma unroll
    for (int part = 0; part < 3; ++part)
#pragma unroll
      for (int tap = 0; tap < 3; ++tap)
        if (fast || tap == 0) out[part * a.G * taps + tap] += sum[part][tap];
  }
}

struct AcmixComposeArguments {
  const void* fc;        // [taps, 3 G] of T
  const void* dep_conv;  // [D, G, taps, taps] of T
  float* composite;      // [G, 3, D, G, taps]
  int G, D, taps;
};

// A thread owns one composite weight: dep_conv after fc, which are one convolution as fc has no bias.
template <class T>
LSKA_KERNEL(256)
acmix_compose_kernel(const AcmixComposeArguments a) {
  const int64_t i = block_x() * thread_count() + thread_index(), of_dim = int64_t(a.G) * a.taps;
  if (i >= 3 * a.G * a.D * of_dim) return;
  const int64_t map = i / (a.D * of_dim), output = i / a.taps % (int64_t(a.D) * a.G), tap = i % a.taps;
  const int64_t m = map % 3 * a.G + map / 3;  // fc's input: q's heads, then k's, then v's
  const T *fc = static_cast<const T*>(a.fc),
          *dep_conv = static_cast<const T*>(a.dep_conv) + output * a.taps * a.taps;
  float sum = 0.f;
  for (int p = 0; p < a.taps; ++p)
    sum = multiply_add(load(dep_conv + p * a.taps + tap), load(fc + p * 3 * a.G + m), sum);
  write_global(a.composite + i, sum);
}

struct AcmixShiftGradArguments {
  const void *qkv, *grad_y;
  float* parts;  // [groups, D, G, 3 G, taps]
  AcmixRegion maps, grads;
  int64_t units;  // tiles of all images; a group takes every `groups`-th
  int C, G, D, H, W, Ho, Wo, kernel_conv, stride, rows, cols, runs, parts_at_once, tasks, splits, groups;
  bool fast, last, grad_last;  // the latter: qkv and grad_y lie pixel by pixel
  int grads_at, sums_at;       // in shared memory, in bytes
};

// A block owns one dim, some of the tiles and some of its composite weights: the sums over pixels of grad_y
// times what each tap read. A task is a map, four outputs and a row of taps (or one tap); several threads
// share its runs, and add theirs up in the order of their numbers.
template <class T>
LSKA_KERNEL_TWO_BLOCKS(256)
acmix_shift_grad_kernel(const AcmixShiftGradArguments a) {
  const AcmixPlaces of_maps(a.last, 3 * a.C, a.H, a.W), of_grad(a.grad_last, a.C, a.Ho, a.Wo);
  const int64_t dim = block_x(), pixels = int64_t(a.H) * a.W, out_pixels = int64_t(a.Ho) * a.Wo;
  const int k = a.kernel_conv, c = k / 2, G = a.G, taps = k * k, t = thread_index();
  const int quads = (G + 3) / 4, of_map = quads * (a.fast ? k : taps);
  const int shares =
      (a.parts_at_once * G * of_map + a.tasks - 1) / a.tasks;  // blocks that share a part's sums
  const int first_task = block_z() % shares * a.tasks, split = t / a.tasks,
            task = first_task + t - split * a.tasks;
  const int all = a.parts_at_once * G * of_map, first_part = block_z() / shares * a.parts_at_once;
  const bool active = split < a.splits && task < all;
  const int m = task / of_map, g0 = (task - m * of_map) % quads * 4, tap = (task - m * of_map) / quads;
  T *maps = shared_at<T>(0), *grads = shared_at<T>(a.grads_at);
  float* sums = shared_at<float>(a.sums_at);
  float sum[4][3] = {};

  const int down = (a.Ho + a.rows - 1) / a.rows, across = (a.Wo + a.cols - 1) / a.cols;
  for (int64_t unit = block_y(); unit < a.units; unit += a.groups) {
    const int64_t image = unit / (down * across);
    const int nth = int(unit - image * down * across), row = nth / across * a.rows,
              col = nth % across * a.cols;
    const int top = row * a.stride - a.maps.ahead_y, left = col * a.stride - a.maps.ahead_x;
    barrier();
#pragma unroll 1
    for (int part = 0; part <= a.parts_at_once; ++part) {  // and grad_y, by the same code: it is long
      const bool grad = part == a.parts_at_once;
      const T* of_image = grad ? static_cast<const T*>(a.grad_y) + image * a.C * out_pixels
                               : static_cast<const T*>(a.qkv) + image * 3 * a.C * pixels;
      const int64_t plane = grad ? of_grad.plane : of_maps.plane,
                    first = grad ? dim * G : (first_part + part) * a.C + dim;
      stage(of_image + first * plane, grad ? plane : a.D * plane, grad ? a.Wo : a.W, G, 1, grad ? a.Ho : a.H,
            grad ? a.Wo : a.W, grad ? row : top, grad ? col : left, grad ? a.grads : a.maps,
            grad ? grads : maps + part * G * a.maps.elements, grad ? of_grad.pixel : of_maps.pixel);
    }
    barrier();
    const Staged<T> in{maps, a.maps, top, left}, out{grads, a.grads, row, col};
    const int rows = min(a.rows, a.Ho - row), cols = min(a.cols, a.Wo - col);
    for (int r = split; active && r < rows * a.runs; r += a.splits) {
      const int y = row + r / a.runs, x = col + r % a.runs * kAcmixRun;
      if (a.fast) {
        if (uint32_t(y + tap - 1) >= uint32_t(a.H)) continue;
        float v[12];
#pragma unroll
        for (int j = 0; j < 3; ++j) load_four(in.at(m, y + tap - 1, x - kAcmixAhead + 4 * j), v + 4 * j);
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          float grad[4];
          load_four(out.at(min(g0 + g, G - 1), y, x), grad);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (x + i >= col + cols) continue;
#pragma unroll
            for (int dx = 0; dx < 3; ++dx) sum[g][dx] = multiply_add(grad[i], v[3 + i + dx], sum[g][dx]);
          }
        }
      } else {
        const int at_y = y * a.stride + tap / k - c;
        if (at_y < 0 || at_y >= a.H) continue;
        for (int i = 0; i < kAcmixRun && x + i < col + cols; ++i) {
          const int at_x = (x + i) * a.stride + tap % k - c;
          if (at_x < 0 || at_x >= a.W) continue;
          const float v = to_float(*in.at(m, at_y, at_x));
#pragma unroll
          for (int g = 0; g < 4; ++g)
            sum[g][0] = multiply_add(to_float(*out.at(min(g0 + g, G - 1), y, x + i)), v, sum[g][0]);
        }
      }
    }
  }
  if (split < a.splits) {
#pragma unroll
    for (int g = 0; g < 4; ++g)
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) sums[t * 12 + g * 3 + dx] = sum[g][dx];
  }
  barrier();
  const int wide = a.fast ? 3 : 1;
  for (int i = t; i < a.tasks * 12; i += thread_count()) {
    const int nth = i / 12, g = i % 12 / 3, dx = i % 3, of = first_task + nth;
    const int map = of / of_map, output = (of - map * of_map) % quads * 4 + g,
              at = (of - map * of_map) / quads * wide + dx;
    if (of >= all || output >= G || dx >= wide) continue;
    float total = 0.f;
    for (int s = 0; s < a.splits; ++s) total += sums[(s * a.tasks + nth) * 12 + g * 3 + dx];
    const int64_t in = (((int64_t(block_y()) * a.D + dim) * G + output) * 3 + first_part) * G + map;
    write_global(a.parts + in * taps + at, total);
  }
}

struct AcmixSumArguments {
  const float* parts;  // [count, n]
  int64_t count, n;
  float* out;  // [n]
};

// A block owns as many of the n sums as a warp has lanes. Each warp adds its share of the parts, which are
// too many for one thread, and the first warp adds the warps' sums in their order.
LSKA_KERNEL(256)
acmix_sum_kernel(const AcmixSumArguments a) {
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp, warps = thread_count() / kWarp;
  const int64_t i = block_x() * kWarp + lane;
  float *sums = shared_floats(), sum = 0.f;
  for (int64_t part = warp; i < a.n && part < a.count; part += warps)
    sum += read_global(a.parts + part * a.n + i);
  sums[thread_index()] = sum;
  barrier();
  if (warp != 0 || i >= a.n) return;
  for (int w = 1; w < warps; ++w) sum += sums[w * kWarp + lane];
  write_global(a.out + i, sum);
}

struct AcmixShiftEndArguments {
  const float *total, *composite;              // [D, G, 3 G, taps]; as above
  const void *fc, *dep_conv, *rate2;           // of T
  void *grad_fc, *grad_dep_conv, *grad_rate2;  // like them
  int G, D, taps;
};

// From the composite weights' gradients to those of fc, dep_conv and rate2. The first taps * 3 G + 1 blocks
// own one sum each, fc's and the rate's; a thread of the others owns one weight of dep_conv.
template <class T>
LSKA_KERNEL(256)
acmix_shift_end_kernel(const AcmixShiftEndArguments a) {
  const int maps = 3 * a.G, outputs = a.D * a.G,
            sums = a.taps * maps;  // plan.h's limits keep these and n int
  const int64_t block = block_x();
  const T *fc = static_cast<const T*>(a.fc), *dep_conv = static_cast<const T*>(a.dep_conv);
  const float rate2 = rate_of<T>(a.rate2);
  if (block <= sums) {
    const int p = int(block) / maps, m = int(block) % maps;
    float sum = 0.f;
    const int n = block < sums ? outputs * a.taps : outputs * maps * a.taps;
    for (int i = thread_index(); i < n; i += thread_count()) {
      const int tap = i % a.taps;
      if (block < sums) {
        const int64_t output = i / a.taps;
        sum = multiply_add(read_global(a.total + (output * maps + m) * a.taps + tap),
                           load(dep_conv + (output * a.taps + p) * a.taps + tap), sum);
      } else {
        const int map = i / a.taps % maps, output = i / a.taps / maps;
        const int at = ((map % a.G * 3 + map / a.G) * outputs + output) * a.taps + tap;
        sum = multiply_add(read_global(a.total + i), read_global(a.composite + at), sum);
      }
    }
    sum = block_sum(sum, shared_floats());
    if (thread_index() != 0) return;
    if (block < sums)
      store(static_cast<T*>(a.grad_fc) + block, rate2 * sum);
    else
      store(static_cast<T*>(a.grad_rate2), sum);
    return;
  }
  const int64_t i = (block - sums - 1) * thread_count() + thread_index();
  if (i >= int64_t(outputs) * a.taps * a.taps) return;
  const int64_t output = i / a.taps / a.taps, p = i / a.taps % a.taps, tap = i % a.taps;
  float sum = 0.f;
  for (int m = 0; m < maps; ++m)
    sum =
        multiply_add(read_global(a.total + (output * maps + m) * a.taps + tap), load(fc + p * maps + m), sum);
  store(static_cast<T*>(a.grad_dep_conv) + i, rate2 * sum);
}

struct AcmixQueryEndArguments {
  const float* parts;  // [blocks, 2 D + 1]
  int64_t count;
  void *grad_conv_p, *grad_rate1;  // [D, 2], [1] of T
  int D;
};

// A block owns one of the sums over all query blocks: conv_p's gradient, then rate1's.
template <class T>
LSKA_KERNEL(256)
acmix_query_end_kernel(const AcmixQueryEndArguments a) {
  const int width = 2 * a.D + 1, i = int(block_x());
  float sum = 0.f;
  for (int64_t part = thread_index(); part < a.count; part += thread_count())
    sum += read_global(a.parts + part * width + i);
  sum = block_sum(sum, shared_floats());
  if (thread_index() != 0) return;
  if (i < 2 * a.D)
    store(static_cast<T*>(a.grad_conv_p) + i, sum);
  else
    store(static_cast<T*>(a.grad_rate1), sum);
}

}  // namespace lska_ops
