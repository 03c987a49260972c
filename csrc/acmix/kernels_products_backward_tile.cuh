// What the attention's backward by products has around them: the call, its tables in shared memory, what the
// key pass knows of queries, and both passes by the definition.
#pragma once

#include "csrc/acmix/kernels_products_shift_backward.cuh"
#include "csrc/acmix/kernels_products_window.cuh"
#include "csrc/acmix/plan_products_backward.h"

namespace lska_ops {

// Of a query: lse as a power of two, the sum of weights times (dy v), and how its logits rise along x and y,
// a pixel.
struct alignas(16) QueryFacts {
  float lse, delta, rise_x, rise_y;
};

struct AcmixProductsBackwardArguments : AcmixProductsArguments {
  const void* grad_y;  // [B, C, Ho, Wo] of T; in elements:
  int64_t grad_image, grad_row;
  int grad_channel, grad_pixel;
  bool grad_vectors, grad_quads;
  QueryFacts* facts;  // [B, G, Ho, Wo]
  float* parts;       // of conv_p's and rate1's gradients, [B, blocks, 2 D + 1]
  int64_t blocks;
  ShiftBackSource back;  // of the shift's gradients, if layout.shift
};

template <class T>
LSKA_DEVICE MapsInMemory<T> maps_of_grad(const AcmixProductsBackwardArguments& a,
                                         const ProductsImage<T>& of) {
  return {static_cast<const T*>(a.grad_y) + of.image * a.grad_image + int64_t(of.head * a.D) * a.grad_channel,
          a.grad_row,
          a.grad_channel,
          a.grad_pixel,
          a.Ho,
          a.Wo,
          0,
          a.grad_vectors,
          a.grad_quads};
}

// The query pass's tables beside the forward's: for each pair of neighbouring keys of a group's window where
// they are along x, for each column of groups, and along y, for each row of them; and conv_p.
template <class T, int kSide>
LSKA_DEVICE void fill_query_tables(const AcmixProductsArguments& a, const ProductsImage<T>& of) {
  const AcmixProductsLayout& l = a.layout;
  constexpr int kWords = kPairsOf<kSide> * 8;
  const int reach = kTapsOf<kSide> / 2 * l.unit, down = l.rows / 4;
  for (int n = thread_index(); n < (l.across + down) * kWords; n += thread_count()) {
    const int at = n / kWords, key = min(2 * (n - at * kWords), kSide * kSide - 2);
    const bool is_row = at >= l.across;
    const int group = is_row ? at - l.across : at;
    const int first = (is_row ? of.row : of.col) + group / l.unit * 4 * l.unit + group % l.unit - reach;
    const auto place = [&](int key) LSKA_INLINE {
      const int there = first + l.unit * (is_row ? key / kSide : key % kSide);
      return float((is_row ? of.row : of.col) - reflected(there, is_row ? a.H : a.W)) / kSlopeScale;
    };
    *reinterpret_cast<uint32_t*>(shared_bytes_at(l.pairs_at + 4 * n)) = pack<T>(place(key), place(key + 1));
  }
  for (int d = thread_index(); d < l.dims; d += thread_count()) {
    const T* conv_p = static_cast<const T*>(a.conv_p) + 2 * d;
    const bool real = d < a.D;
    *reinterpret_cast<Float2*>(shared_bytes_at(l.conv_p_at + 8 * d)) = {
        real ? load(conv_p) * a.step_x * kSlopeScale : 0.f,
        real ? load(conv_p + 1) * a.step_y * kSlopeScale : 0.f};
  }
}

// The key pass's: for each query of a window whether each column and each row of 4 keys is in its own, once
// for all groups; how often queries see keys, for each column of groups, 4 columns of keys, and column of
// queries, and for rows alike; and where the queries of each 16 are for a lane.
template <class T, int kSide>
LSKA_DEVICE void fill_key_tables(const AcmixProductsArguments& a, const ProductsImage<T>& of) {
  constexpr int kTaps = kTapsOf<kSide>;
  const AcmixProductsLayout& l = a.layout;
  const int reach = kTaps / 2 * l.unit, down = l.rows / 4;
  for (int n = thread_index(); n < kSide * kSide; n += thread_count()) {
    const int y = n / kSide, x = n - y * kSide;
    uint32_t* to = reinterpret_cast<uint32_t*>(shared_bytes_at(l.tables_at + 16 * n));
    const auto mask = [&](int query, int key)
                          LSKA_INLINE { return query < key || query >= key + kTaps ? -kFarBelow<T> : 0.f; };
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int query = j < 2 ? x : y, key = 2 * (j % 2);
      to[j] = pack<T>(mask(query, key), mask(query, key + 1));
    }
  }
  for (int n = thread_index(); n < (l.across + down) * 4 * kSide; n += thread_count()) {
    const int at = n / (4 * kSide), key = n / kSide % 4, query = n % kSide;
    const bool is_row = at >= l.across;
    const int group = is_row ? at - l.across : at, length = is_row ? a.H : a.W;
    const int first = (is_row ? of.row : of.col) + group / l.unit * 4 * l.unit + group % l.unit;
    const int j = first + key * l.unit, i = first - reach + query * l.unit;
    float count = 0.f;
    if (i >= 0 && i < length)
      for (int tap = 0; tap < kTaps; ++tap) count += reflected(i - reach + tap * l.unit, length) == j;
    *reinterpret_cast<float*>(shared_bytes_at(l.counts_at + 4 * n)) = count;
  }
  for (int n = thread_index(); n < kPairsOf<kSide> * kWarp; n += thread_count()) {
    const int lane = n % kWarp, nth = n / kWarp * 16 + lane % 16;
    const int query = nth < kSide * kSide ? nth : kSide * kSide - 2;  // which another one is behind
    const int y = query / kSide, x = query - y * kSide, half = lane / 16;
    int* to = reinterpret_cast<int*>(shared_bytes_at(l.places_at)) + n;
    to[0] = l.unit * (y * l.key_row_pitch + x * l.key_pitch) + 16 * half;
    to[kPairsOf<kSide> * kWarp] = half ? 16 * l.unit * (y * l.fact_pitch + x) : 16 * query;
  }
}

// Of the queries around a tile of keys: their rises in three parts, as a right operand wants them, and what
// their exponents have beside the products, and delta. A query beyond the map sees nothing.
template <class T>
LSKA_DEVICE void stage_facts(const AcmixProductsBackwardArguments& a, const ProductsImage<T>& of, int reach) {
  const AcmixProductsLayout& l = a.layout;
  const float exponent = a.scale / kLogOfTwo;
  const int pixels = l.region_rows * l.fact_pitch;
#pragma unroll 1
  for (int n = thread_index(); n < l.heads * pixels; n += thread_count()) {
    const int head = n / pixels, pixel = n - head * pixels, row = pixel / l.fact_pitch,
              col = pixel - row * l.fact_pitch;
    const int y = of.row - reach + row, x = of.col - reach + col;
    QueryFacts facts{};
    Float2 own{-1e30f, 0.f};
    if (uint32_t(y) < uint32_t(a.Ho) && uint32_t(x) < uint32_t(a.Wo) && col < l.region_cols) {
      const QueryFacts* from = a.facts + ((of.image * a.G + of.head + head) * a.Ho + y) * a.Wo + x;
      const Bits16Bytes bits = read_global(reinterpret_cast<const Bits16Bytes*>(from));
      memcpy(&facts, &bits, 16);
      const float rises = multiply_add(facts.rise_x, float(x - of.col), facts.rise_y * float(y - of.row));
      own = {multiply_add(exponent, rises, -facts.lse), facts.delta};
    }
    uint32_t x_two, x_third, y_two, y_third;
    in_parts<T>(facts.rise_x * kSlopeScale, x_two, x_third);
    in_parts<T>(facts.rise_y * kSlopeScale, y_two, y_third);
    *reinterpret_cast<Bits16Bytes*>(shared_bytes_at(l.rises_at + 16 * n)) = {
        x_two, low_halves(x_third, y_two), low_halves(y_two >> 16, y_third), 0};
    *reinterpret_cast<Float2*>(shared_bytes_at(l.facts_at + 8 * n)) = own;
  }
}

template <class T>
LSKA_DEVICE float number_at(int at) {
  return to_float(*reinterpret_cast<const T*>(shared_bytes_at(at)));
}
template <class T>
LSKA_DEVICE float dot_at(int a, int b, int dims) {
  float sum = 0.f;
  for (int d = 0; d < dims; ++d) sum = multiply_add(number_at<T>(a + 2 * d), number_at<T>(b + 2 * d), sum);
  return sum;
}

// One group of queries by the definition, for logits and maps that are not finite, which products would carry
// to the queries beside; a lane has one. Returns what they give to rate1's gradient.
template <class T, int kSide>
LSKA_DEVICE float exact_queries(const AcmixProductsBackwardArguments& a, int task) {
  constexpr int kTaps = kTapsOf<kSide>;
  const AcmixProductsLayout& l = a.layout;
  const ProductsImage<T> of = products_image<T>(a, block_x_again());
  const ProductsGroup g = products_group<kSide>(l, hidden(task));
  const int q = thread_index_again() % kWarp, qy = q / 4, qx = q % 4, reach = kTaps / 2 * l.unit;
  const int y = of.row + g.y + qy * l.unit, x = of.col + g.x + qx * l.unit;
  if (q >= kProductsQueries || y >= a.Ho || x >= a.Wo) return 0.f;
  const int pixel = (g.y + qy * l.unit) * l.cols + g.x + qx * l.unit, channels = 2 * l.heads * l.dims;
  const int query = l.queries_at + pixel * l.query_pitch + 2 * g.head * l.dims;
  const int grad = query + l.grads_at - l.queries_at,
            sums = l.sums_at + pixel * l.sum_pitch + 4 * g.head * l.dims;
  const float rate1 = load(static_cast<const T*>(a.rate1));
  const T* conv_p = static_cast<const T*>(a.conv_p);
  QueryFacts facts{};
  for (int d = 0; d < a.D; ++d) {
    facts.rise_x = multiply_add(number_at<T>(query + 2 * d), load(conv_p + 2 * d), facts.rise_x);
    facts.rise_y = multiply_add(number_at<T>(query + 2 * d), load(conv_p + 2 * d + 1), facts.rise_y);
  }
  facts.rise_x *= a.step_x, facts.rise_y *= a.step_y;
  const int64_t place = ((of.image * a.G + of.head + g.head) * a.Ho + y) * a.Wo + x;
  const float lse = read_global(a.lse + place);
  facts.lse = lse / kLogOfTwo;
  // Of the key at tap (i, j): where it is, how far, its weight, and dy v.
  const auto key_at = [&](int i, int j) LSKA_INLINE {
    return g.keys + (qy + i) * l.unit * l.key_row_pitch + (qx + j) * l.unit * l.key_pitch;
  };
  const auto far_y = [&](int i) LSKA_INLINE { return float(y - reflected(y - reach + i * l.unit, a.H)); };
  const auto far_x = [&](int j) LSKA_INLINE { return float(x - reflected(x - reach + j * l.unit, a.W)); };
  const auto weight = [&](int i, int j) LSKA_INLINE {
    const float rises = multiply_add(facts.rise_x, far_x(j), facts.rise_y * far_y(i));
    return exponential(a.scale * (dot_at<T>(query, key_at(i, j), a.D) + rises) - lse);
  };
  for (int i = 0; i < kTaps; ++i)
    for (int j = 0; j < kTaps; ++j)
      facts.delta = multiply_add(weight(i, j), dot_at<T>(grad, key_at(i, j) + channels, a.D), facts.delta);
  Bits16Bytes bits;
  memcpy(&bits, &facts, 16);
  write_global(reinterpret_cast<Bits16Bytes*>(a.facts + place), bits);
  float* const to = reinterpret_cast<float*>(shared_bytes_at(sums));
  for (int d = 0; d < a.D; ++d) to[d] = l.shift ? to[d] : 0.f;
  Float2 along{0.f, 0.f};
  for (int i = 0; i < kTaps; ++i)
    for (int j = 0; j < kTaps; ++j) {
      const float s =
          rate1 * a.scale * weight(i, j) * (dot_at<T>(grad, key_at(i, j) + channels, a.D) - facts.delta);
      along.x = multiply_add(s, far_x(j) * a.step_x, along.x);
      along.y = multiply_add(s, far_y(i) * a.step_y, along.y);
      for (int d = 0; d < a.D; ++d) to[d] = multiply_add(s, number_at<T>(key_at(i, j) + 2 * d), to[d]);
    }
  for (int d = 0; d < a.D; ++d) to[d] += load(conv_p + 2 * d) * along.x + load(conv_p + 2 * d + 1) * along.y;
  *reinterpret_cast<Float2*>(shared_bytes_at(l.along_at + 8 * (pixel * l.heads + g.head))) = along;
  return facts.delta;
}

// The same for a group of keys, from the queries that see each.
template <class T, int kSide>
LSKA_DEVICE void exact_keys(const AcmixProductsBackwardArguments& a, int task) {
  const AcmixProductsLayout& l = a.layout;
  const ProductsImage<T> of = products_image<T>(a, block_x_again());
  const ProductsGroup g = products_group<kSide>(l, hidden(task));
  const int k = thread_index_again() % kWarp, ky = k / 4, kx = k % 4, reach = kTapsOf<kSide> / 2 * l.unit;
  const int y = of.row + g.y + ky * l.unit, x = of.col + g.x + kx * l.unit;
  if (k >= kProductsQueries || y >= a.H || x >= a.W) return;
  const int pixel = (g.y + ky * l.unit) * l.cols + g.x + kx * l.unit, channels = l.heads * l.dims;
  const int key = l.queries_at + pixel * l.query_pitch + 2 * g.head * l.dims;
  const int value = key + l.grads_at - l.queries_at;
  const float rate1 = load(static_cast<const T*>(a.rate1));
  const float* const counts_x = reinterpret_cast<const float*>(shared_bytes_at(l.counts_at)) +
                                ((g.tables_x - l.tables_at) / (16 * kSide) * 4 + kx) * kSide;
  const float* const counts_y = reinterpret_cast<const float*>(shared_bytes_at(l.counts_at)) +
                                ((g.tables_y - l.tables_at) / (16 * kSide) * 4 + ky) * kSide;
  float* const of_key =
      reinterpret_cast<float*>(shared_bytes_at(l.sums_at + pixel * l.sum_pitch + 4 * g.head * l.dims));
  float* const of_value = of_key + channels;
  for (int d = 0; d < a.D; ++d)
    of_key[d] = l.shift ? of_key[d] : 0.f, of_value[d] = l.shift ? of_value[d] : 0.f;
  for (int i = ky; i < ky + kTapsOf<kSide>; ++i)
    for (int j = kx; j < kx + kTapsOf<kSide>; ++j) {
      const float count = counts_y[i] * counts_x[j];
      if (count == 0.f) continue;  // and a query beyond the map sees nothing
      const int there_y = of.row + g.y - reach + i * l.unit, there_x = of.col + g.x - reach + j * l.unit;
      QueryFacts facts;
      const Bits16Bytes bits = read_global(reinterpret_cast<const Bits16Bytes*>(
          a.facts + ((of.image * a.G + of.head + g.head) * a.Ho + there_y) * a.Wo + there_x));
      memcpy(&facts, &bits, 16);
      const int query = g.keys + i * l.unit * l.key_row_pitch + j * l.unit * l.key_pitch;
      const float rises = multiply_add(facts.rise_x, float(there_x - x), facts.rise_y * float(there_y - y));
      const float p = rate1 * count *
                      power_of_two(a.scale / kLogOfTwo * (dot_at<T>(query, key, a.D) + rises) - facts.lse);
      const float s = p * a.scale * (dot_at<T>(query + 2 * channels, value, a.D) - facts.delta);
      for (int d = 0; d < a.D; ++d) {
        of_key[d] = multiply_add(s, number_at<T>(query + 2 * d), of_key[d]);
        of_value[d] = multiply_add(p, number_at<T>(query + 2 * (channels + d)), of_value[d]);
      }
    }
}

}  // namespace lska_ops
