// The cascade's backward of published taps: tiles of either layout, each line walked by one thread with its
// windows in registers. kernels_backward.cuh serves every other size.
//
// Rows and columns commute, so three walks over a tile are enough. Per channel, with `t` (conv0h and
// conv_spatial_h of x, without the latter's bias) and `u` (ds through both vertical convolutions turned
// around):
//   rows     x      -> t                       kept in shared memory
//   columns  t, ds  -> u, the vertical taps' gradients; u takes t's place
//   rows     x, u   -> grad_x, the horizontal taps' gradients
#pragma once

#include "csrc/lska/plan_tile_backward.h"
#include "csrc/lska/walk_backward.cuh"

namespace lska_ops {

struct LskaTileBackwardArguments {
  const void *x, *ds;   // maps of T
  const void* grad_y;   // the same
  const void* product;  // the same: conv1 s, without its bias
  const void* bias;     // conv1's [C] of T, or null
  void* grad_x;         // the same as x
  float* sums;          // [B * tiles, C, width]: a tile's tap gradients, tensor after tensor
  LskaWeightPointers weights;
  int C, H, W;
  uint32_t bytes;  // of an element: see element_of
  bool vectors;    // grad_x by four channels, or by four columns
  int sums_width;
  int tile_rows, tile_cols, tiles_x;  // outputs of a block
  int channels, slots;                // of a block: its threads
  int row_pitch, channel_pitch;  // of the shared map, in floats; of the staged ones, in elements, NCHW only:
  int staged_pitch, staged_channel, staged_ds_channel;
};

// What a block owns, [top, top + rows) x [left, left + cols), and what it keeps beside it in shared memory.
struct BackwardTile {
  int top, rows, left, cols;
  int first_row, last_row, first_col, last_col;  // of the shared map
};

// Elements of [channels][rows][cols] shared out among all threads, `V` at a time: start(j, channel, row,
// col), which reads, for each j below BATCH, then end(j).
template <int V, int BATCH, class Start, class End>
LSKA_DEVICE void for_each_element(int channels, int rows, int cols, const Start& start, const End& end) {
  const int units = cols / V, threads = thread_count();
  int row = thread_index() / units, unit = thread_index() - row * units, channel = row / rows;
  row -= channel * rows;
  const int rows_on = threads / units, units_on = threads - rows_on * units;
  while (channel < channels) {
    int started = 0;
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      if (channel >= channels) continue;
      started = j + 1;
      start(j, channel, row, unit * V);
      unit += units_on, row += rows_on;
      if (unit >= units) unit -= units, ++row;
      while (row >= rows) row -= rows, ++channel;
    }
#pragma unroll
    for (int j = 0; j < BATCH; ++j)
      if (j < started) end(j);
  }
}

// V neighbours at once, where they are 4, 8 or 16 bytes and lie at a multiple of that; or one value. In words
// from where they are read to where they are wanted, as Word is.
template <class T, int V>
struct alignas(V * sizeof(T)) Group {
  static_assert(V * sizeof(T) % 4 == 0);
  uint32_t words[V * sizeof(T) / 4];
};
template <class T, int V>
using Neighbour = std::conditional_t<V == 1, Word<T>, Group<T, V>>;
template <int V, class T>
LSKA_DEVICE Neighbour<T, V> read_neighbours(const T* from) {
  if constexpr (V == 1)
    return {read_word(from)};
  else
    return read_global(reinterpret_cast<const Group<T, V>*>(from));
}
template <int V, class T>
LSKA_DEVICE void write_neighbours(T* to, const T (&from)[V]) {
  if constexpr (V == 1) {
    write_global(to, from[0]);
  } else {
    Group<T, V> group;
    memcpy(&group, from, sizeof group);
    write_global(reinterpret_cast<Group<T, V>*>(to), group);
  }
}
template <class T>
LSKA_DEVICE void keep_neighbours(const Word<T>& from, T* to) {  // in shared memory
  memcpy(to, &from, sizeof(T));
}
template <int V, class T>
LSKA_DEVICE void keep_neighbours(const Group<T, V>& from, T* to) {
#pragma unroll
  for (int i = 0; i < int(sizeof from / 4); ++i) reinterpret_cast<uint32_t*>(to)[i] = from.words[i];
}
template <bool ALIGNED, int V>
LSKA_DEVICE void copy_words(const float* from, float (&to)[V]) {
  if constexpr (ALIGNED && V % 4 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const Bits16Bytes bits = *reinterpret_cast<const Bits16Bytes*>(from + i);
      memcpy(to + i, &bits, sizeof bits);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = from[i];
  }
}

// [channels][rows][cols] of a map of W columns in NCHW, as it is, into shared memory; pitches even for
// halves.
template <class T>
LSKA_DEVICE void stage_rows(const T* from, int64_t plane, int W, int channels, int rows, int cols, T* to,
                            int pitch, int channel_pitch) {
  const auto copy = [&](auto size) {
    constexpr int V = decltype(size)::value, BATCH = 4;
    Neighbour<T, V> read[BATCH];
    T* kept[BATCH];
    for_each_element<V, BATCH>(
        channels, rows, cols,
        [&](int j, int channel, int row, int col) LSKA_INLINE {
          read[j] = read_neighbours<V>(from + channel * plane + int64_t(row) * W + col);
          kept[j] = to + channel * channel_pitch + row * pitch + col;
        },
        [&](int j) LSKA_INLINE { keep_neighbours(read[j], kept[j]); });
  };
  constexpr int MOST = kVector<T>;
  const uint32_t together =
      uint32_t(W) | uint32_t(cols) | uint32_t(reinterpret_cast<uintptr_t>(from) / sizeof(T));
  if (together % MOST == 0) return copy(Constant<MOST>{});
  if (together % (MOST / 2) == 0) return copy(Constant<MOST / 2>{});
  if (MOST > 4 && together % (MOST / 4) == 0) return copy(Constant<(MOST > 4 ? MOST / 4 : 1)>{});
  copy(Constant<1>{});
}

// Taps and biases of a block's channels, where sums_offset says of each channel's, into shared memory: one
// row for each, with a column for each channel. In the place of conv_spatial_v's bias, which no gradient
// needs, is conv1's.
template <class T, int K0, int K1>
LSKA_DEVICE void stage_taps(const LskaWeightPointers& w, const void* gate_bias, int first_channel,
                            int channels, float* to, int pitch) {
  constexpr int WIDTH = sums_offset(3, K0, K1) + K1 + 1, BATCH = 4;
  for (int first = thread_index(); first < channels * WIDTH; first += BATCH * thread_count()) {
    T read[BATCH] = {};
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      const int i = first + j * thread_count(), of = i / WIDTH;
      int row = i - of * WIDTH, k = 1;
      const void* from = nullptr;
      const auto next = [&](const void* weights, int taps) LSKA_INLINE {
        if (row >= 0) from = weights, k = taps;
        row -= taps;
        return row < 0;
      };
      if (of >= channels) continue;
      next(w.h0, K0) || next(w.h0_bias, 1) || next(w.v0, K0) || next(w.v0_bias, 1) || next(w.h1, K1) ||
          next(w.h1_bias, 1) || next(w.v1, K1) || next(gate_bias, 1);
      if (from)
        read[j] = read_weight(static_cast<const T*>(from) + int64_t(first_channel + of) * k + k + row);
    }
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      const int i = first + j * thread_count(), of = i / WIDTH;
      if (of < channels) to[(i - of * WIDTH) * pitch + of] = to_float(read[j]);
    }
  }
}

// A block owns a tile of `channels` channels of one image. Reads x and ds (with what its taps reach), grad_y
// and product; writes grad_x = grad_y (product + bias) + cascade^T(ds), and its tap sums.
template <class T, class P, bool LAST>
LSKA_KERNEL_FEW_BLOCKS(lska_plan::kBackwardThreads)
lska_tile_bwd_kernel(const LskaTileBackwardArguments a) {
  constexpr int K0 = P::K0, K1 = P::K1, D = P::D, R0 = P::R0, REACH = P::R0 + P::R1;
  constexpr int VALUES = K0 + K1 + 1;
  const int C = a.C, H = a.H, W = a.W, t = thread_index();
  using V = std::conditional_t<LAST && P::TOGETHER, ChannelPair, float>;
  constexpr int N = sizeof(V) / sizeof(float),
                LANES = kBackwardChannels / N;  // channels of a thread; threads of a place
  const int here = LAST ? t % LANES * N : t / a.slots;
  const int first_channel = int(block_x()) * a.channels, channels = min(a.channels, C - first_channel);
  // Of the lines, which are shared out among slots; a thread without a channel has none.
  const int slot = here >= channels ? kMaxGridYZ : LAST ? t / LANES : t - here * a.slots;
  const int channel = min(first_channel + here, C - N);
  const int tile_y = block_y() / a.tiles_x, tile_x = block_y() - tile_y * a.tiles_x;
  BackwardTile tile;
  tile.top = tile_y * a.tile_rows, tile.left = tile_x * a.tile_cols;
  tile.rows = min(a.tile_rows, H - tile.top), tile.cols = min(a.tile_cols, W - tile.left);
  tile.first_row = max(0, tile.top - R0), tile.last_row = min(H, tile.top + tile.rows + R0);
  tile.first_col = max(0, tile.left - REACH), tile.last_col = min(W, tile.left + tile.cols + REACH);
  const int below = H - tile.top - tile.rows, right = W - tile.left - tile.cols;

  // Shared memory: the map of t, then u; column sums and, of each tap of conv_spatial_h, those it meets;
  // taps and biases; the sums of all threads; in NCHW x and ds as they are.
  const int reduced = LAST ? thread_count() / kWarp * kBackwardChannels : thread_count();
  float* const map = shared_floats() + (LAST ? here : here * a.channel_pitch);
  float* const column_sums =
      shared_floats() + (LAST ? a.row_pitch * (a.tile_rows + 2 * R0) : a.channels * a.channel_pitch);
  float* const met = column_sums + a.tile_cols * a.channels;
  float* const taps = met + K1 * a.channels;
  float* const scratch = taps + (sums_offset(3, K0, K1) + K1 + 1) * a.channels;
  float* const of_warps = scratch + VALUES * reduced;
  T* const staged = reinterpret_cast<T*>(of_warps + kMaxThreads / kWarp);
  constexpr int NEXT = LAST ? kBackwardChannels : 1;  // from a column of the map to the next
  const auto column_sum = [&](int i) LSKA_INLINE {
    return reinterpret_cast<V*>(column_sums + i * a.channels + here);
  };
  const auto map_at = [&](int row, int col) LSKA_INLINE {
    return map + (row - tile.first_row) * a.row_pitch + (col - tile.first_col) * NEXT;
  };

  const int64_t image = int64_t(block_z()) * C * H * W;
  const int64_t plane = int64_t(H) * W;
  // Where the thread's channel begins.
  const int64_t base = image + (LAST ? channel : channel * plane);
  const T *const x = static_cast<const T*>(a.x), *const ds = static_cast<const T*>(a.ds);

  const int staged_rows = tile.last_row - tile.first_row;
  const int ds_first = max(0, tile.top - REACH), ds_rows = min(H, tile.top + tile.rows + REACH) - ds_first;
  T* const staged_ds = staged + a.channels * a.staged_channel;
  const int staged_first = tile.first_col / kVector<T> * kVector<T>;
  stage_taps<T, K0, K1>(a.weights, a.bias, first_channel, channels, taps, a.channels);
  if constexpr (!LAST) {
    const int cols = min(W, (tile.last_col + kVector<T> - 1) / kVector<T> * kVector<T>) - staged_first;
    const int64_t corner = image + first_channel * plane + staged_first;
    stage_rows(x + corner + int64_t(tile.first_row) * W, plane, W, channels, staged_rows, cols, staged,
               a.staged_pitch, a.staged_channel);
    stage_rows(ds + corner + int64_t(ds_first) * W, plane, W, channels, ds_rows, cols, staged_ds,
               a.staged_pitch, a.staged_ds_channel);
  }
  barrier();
  // Lines of x along rows and of ds along columns, from any place of the tile's first row or column on.
  const auto x_cursor = [&](int row, int place) LSKA_INLINE {
    if constexpr (LAST)
      return GlobalCursor<T, V>{x + (base + int64_t(row * W + tile.left + place) * C), C};
    else
      return SharedCursor<const T, V>{staged + here * a.staged_channel +
                                          (row - tile.first_row) * a.staged_pitch + tile.left + place -
                                          staged_first,
                                      1};
  };
  const auto ds_cursor = [&](int col, int place) LSKA_INLINE {
    if constexpr (LAST)
      return GlobalCursor<T, V>{ds + (base + int64_t((tile.top + place) * W + col) * C), W * C};
    else
      return SharedCursor<const T, V>{staged_ds + here * a.staged_ds_channel +
                                          (tile.top + place - ds_first) * a.staged_pitch + col - staged_first,
                                      a.staged_pitch};
  };

  const int tap_column = min(here, channels - N);
  const auto tap_of = [&](int stage, int tap) LSKA_INLINE {
    return *reinterpret_cast<const V*>(taps + (sums_offset(stage, K0, K1) + tap) * a.channels + tap_column);
  };
  LskaPairTaps<P, V> pair;
  const auto load_pair = [&](int stage) LSKA_INLINE {  // the stage's, and those of its dilated convolution
#pragma unroll
    for (int i = 0; i < K0; ++i) pair.w0[i] = tap_of(stage, i);
#pragma unroll
    for (int i = 0; i < K1; ++i) pair.w1[i] = tap_of(stage + 1, i);
  };
  load_pair(0);
  V h0_bias = tap_of(0, K0);

  float not_finite = 0.f;
  for (int row = tile.first_row + slot; row < tile.last_row; row += a.slots) {
    walk_pair(pair, tile.cols, tile.left, right, h0_bias, x_cursor(row, -R0 - P::R1),
              SharedCursor<float, V>{map_at(row, tile.left), NEXT}, not_finite);
  }
  const V h1_bias = tap_of(1, K1), v0_bias = tap_of(2, K0);
  for (int i = slot; i < tile.cols; i += a.slots) {  // until the column's sum: its bias
    V inside{};
#pragma unroll
    for (int tap = 0; tap < K1; ++tap)
      inside += uint32_t(tile.left + i + (tap - K1 / 2) * D) < uint32_t(W) ? pair.w1[tap] : V{};
    *column_sum(i) = multiply_add(v0_bias, inside, h1_bias);
  }
  not_finite = warp_sum(not_finite);
  if (t % kWarp == 0) of_warps[t / kWarp] = not_finite;
  barrier();

  load_pair(2);
  not_finite = 0.f;
  for (int warp = 0; warp < thread_count() / kWarp; ++warp) not_finite += of_warps[warp];
  const bool exact = not_finite != 0.f;
  // A value of each thread: summed over the slots of its channel, in their order.
  const auto put = [&](int value, V v) LSKA_INLINE {
    if constexpr (LAST) {
#pragma unroll
      for (int mask = LANES; mask < kWarp; mask *= 2) v += from_lane(v, mask);
      if (t % kWarp < LANES)
        *reinterpret_cast<V*>(scratch + value * reduced + t / kWarp * kBackwardChannels + here) = v;
    } else {
      scratch[value * reduced + t] = v;
    }
  };
  LskaPairSums<P, V> sums;
  const auto column = [&](int col, auto with_sums, const V& bias) LSKA_INLINE {
    walk_pair_back<decltype(with_sums)::value != 0>(
        pair, tile.rows, tile.top, below, bias, sums, ds_cursor(col, -REACH),
        SharedCursor<float, V>{map_at(tile.top - R0, col), a.row_pitch},
        SharedCursor<float, V>{map_at(tile.top, col), a.row_pitch});
  };
  const auto put_second = [&](const V(&second)[K1]) LSKA_INLINE {
#pragma unroll
    for (int i = 0; i < K1; ++i) put(K0 + i, second[i]);
  };
  if (exact) {
    V second[K1] = {};
    for (int i = slot; i < tile.cols; i += a.slots)
      sums_of_not_finite(
          pair, tile.rows, tile.top, below, *column_sum(i), second,
          [&](int place) LSKA_INLINE { return value_of(ds_cursor(tile.left + i, place).take(true)); },
          [&](int place) LSKA_INLINE {
            const bool here = tile.top + place >= tile.first_row && tile.top + place < tile.last_row;
            return value_of(SharedCursor<float, V>{map_at(tile.top + place, tile.left + i), 0}.take(here));
          });
    put_second(second);
  }
  for (int i = slot; i < tile.cols; i += a.slots) {
    sums.between = V{};
    column(tile.left + i, Constant<1>{}, *column_sum(i));
    *column_sum(i) = sums.between;
  }
  const int before = tile.left - tile.first_col, halo = before + tile.last_col - tile.left - tile.cols;
  int i = slot - tile.cols % a.slots;
  for (i += i < 0 ? a.slots : 0; i < halo; i += a.slots)
    column(i < before ? tile.first_col + i : tile.left + tile.cols + i - before, Constant<0>{}, V{});

  const auto total = [&](int value, int of) LSKA_INLINE {
    const float* p = scratch + value * reduced + (LAST ? of : of * a.slots);
    float sum = 0.f;
    for (int i = 0; i < (LAST ? thread_count() / kWarp : a.slots); ++i) sum += p[i * NEXT];
    return sum;
  };
  const int64_t part = int64_t(block_z()) * blocks_y() + block_y();
  const auto write = [&](int of, int stage, int tap, float v) LSKA_INLINE {
    // A tap that meets no pixel has met zeros beside the map, and NaN beside zeros.
    const int k = stage % 2 ? K1 : K0, reach = abs(tap - k / 2) * (stage % 2 ? D : 1);
    if (tap < k && reach >= (stage >= 2 ? H : W)) v = 0.f;
    write_global(a.sums + (part * C + first_channel + of) * a.sums_width + sums_offset(stage, K0, K1) + tap,
                 v);
  };
#pragma unroll
  for (int i = 0; i < K0; ++i) put(i, sums.w0[i]);
  if (!exact) put_second(sums.w1);
  put(K0 + K1, sums.out);
  barrier();
  for (int i = t; i < channels * (VALUES + K1 + 1); i += thread_count()) {
    const int value = i / channels, of = i - value * channels;
    if (value < VALUES) {
      const float v = total(value, of);
      write(of, value < K0 ? 2 : 3, value < K0 ? value : value - K0, v);  // the last: conv_spatial_v's bias
    } else {  // what conv_spatial_h's taps meet of the gradient behind conv0v; the last: all of it
      const int tap = value - VALUES, shift = tap < K1 ? (tap - K1 / 2) * D : 0;
      const int from = max(0, -shift - tile.left), to = min(tile.cols, W - shift - tile.left);
      float sum = 0.f;
      for (int col = from; col < to; ++col) sum += column_sums[col * a.channels + of];
      if (tap < K1)
        met[tap * a.channels + of] = sum;
      else
        write(of, 1, K1, sum);
    }
  }
  barrier();

  load_pair(0);
  h0_bias = tap_of(0, K0);
  sums = {};
  if (exact) {
    V second[K1] = {};
    for (int row = tile.top + slot; row < tile.top + tile.rows; row += a.slots)
      sums_of_not_finite(
          pair, tile.cols, tile.left, right, h0_bias, second,
          [&](int place) LSKA_INLINE { return *reinterpret_cast<const V*>(map_at(row, tile.left + place)); },
          [&](int place) LSKA_INLINE {
            const bool here = uint32_t(tile.left + place) < uint32_t(W);
            return value_of(x_cursor(row, place).take(here));
          });
    put_second(second);
  }
  for (int row = tile.top + slot; row < tile.top + tile.rows; row += a.slots) {
    walk_pair_back<true>(pair, tile.cols, tile.left, right, h0_bias, sums,
                         SharedCursor<float, V>{map_at(row, tile.left - REACH), NEXT}, x_cursor(row, -R0),
                         SharedCursor<float, V>{map_at(row, tile.left), NEXT});
  }
#pragma unroll
  for (int i = 0; i < K0; ++i) put(i, sums.w0[i]);
  if (!exact) put_second(sums.w1);
  put(K0 + K1, sums.between);
  barrier();
  for (int i = t; i < channels * (VALUES + 1); i += thread_count()) {
    const int value = i / channels, of = i - value * channels;
    if (value < VALUES) {
      float v = total(value, of);
      const int tap = value - K0;
      if (tap >= 0 && tap < K1)
        v += taps[(sums_offset(2, K0, K1) + K0) * a.channels + of] * met[tap * a.channels + of];
      if (tap < 0 || tap == K1)
        write(of, 0, tap < 0 ? value : K0, v);
      else
        write(of, 1, tap, v);
    } else {
      float v = 0.f;
      for (int tap = 0; tap < K1; ++tap)
        v = multiply_add(taps[(sums_offset(1, K0, K1) + tap) * a.channels + of], met[tap * a.channels + of],
                         v);
      write(of, 2, K0, v);
    }
  }

  // grad_x: what the cascade gives of it is in shared memory.
  const T *const grad_y = static_cast<const T*>(a.grad_y), *const product = static_cast<const T*>(a.product);
  T* const grad_x = static_cast<T*>(a.grad_x);
  const auto finish = [&](auto size) LSKA_INLINE {
    constexpr int V = decltype(size)::value, BATCH = 4;
    Neighbour<T, V> gradients[BATCH], gates[BATCH];
    uint32_t at[BATCH];
    const float *from[BATCH], *bias[BATCH];
    const auto start = [&](int j, int of, int row, int col) LSKA_INLINE {
      row += tile.top, col += tile.left;
      const int c = first_channel + of;
      at[j] = uint32_t(image) + uint32_t(LAST ? (row * W + col) * C + c : (c * H + row) * W + col);
      from[j] = shared_floats() + (LAST ? of : of * a.channel_pitch) + (row - tile.first_row) * a.row_pitch +
                (col - tile.first_col) * NEXT;
      gradients[j] = read_neighbours<V>(element_of(grad_y, at[j], a.bytes));
      gates[j] = read_neighbours<V>(element_of(product, at[j], a.bytes));
      bias[j] = taps + (sums_offset(3, K0, K1) + K1) * a.channels + of;
    };
    const auto end = [&](int j) LSKA_INLINE {
      float v[V];
      T gradient[V], gate[V], out[V];
      memcpy(gradient, &gradients[j], sizeof gradient);
      memcpy(gate, &gates[j], sizeof gate);
      copy_words<LAST>(from[j], v);
#pragma unroll
      for (int i = 0; i < V; ++i)
        round_to(multiply_add(to_float(gradient[i]), to_float(gate[i]) + bias[j][LAST ? i : 0], v[i]),
                 out[i]);
      write_neighbours(element_of(grad_x, at[j], a.bytes), out);
    };
    if constexpr (LAST) {
      const int of = t % (kBackwardChannels / V) * V;  // of all that the thread starts
      if (of >= channels) return;
      for_each_element<V, BATCH>(
          tile.rows, tile.cols, kBackwardChannels,
          [&](int j, int row, int col, int) LSKA_INLINE { start(j, of, row, col); }, end);
    } else {
      for_each_element<V, BATCH>(channels, tile.rows, tile.cols, start, end);
    }
  };
  if (!a.vectors)
    finish(Constant<1>{});
  else
    finish(Constant<4>{});
}

}  // namespace lska_ops
