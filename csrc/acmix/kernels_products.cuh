// Forward by products on tensor cores, for 16-bit dtypes: attention and shift of one tile of outputs.
//
// A warp has 4 x 4 queries of one head. Their logits with the side x side keys that any of them sees are one
// product of matrices, whose left operand stays in registers; softmax is there, too; and where a product
// leaves its sums is where the next one, with v, wants its left operand. What the reflection repeats lies in
// shared memory as often as it is seen, so that every window is whole. Which keys are a query's own, and what
// positions add, is one product more: of a query's row, [its column of 4 | slope along x | its row of 4 |
// slope along y], and a key's, [0 or far below 0 for each column | x | the same of rows | y]. All that is
// rounded to 16 bits on the way, weights of the softmax and slopes, is kept in parts whose sum has float32's
// digits, about.
#pragma once

#include "csrc/acmix/kernels_products_shift.cuh"
#include "csrc/acmix/kernels_products_window.cuh"

namespace lska_ops {

constexpr float kLargestLogit = 1048576.f;
constexpr float kWeightExponent = 15.f;  // the largest weight of a softmax is 2^15, so that small ones count
constexpr float kLeastSum = 1 / 32768.f;
// Attention of one query by the definition, some dims of it: for logits and values that are not finite, or
// too large for products, which would reach the queries beside.
template <class T, int kSide>
LSKA_DEVICE void exact_attention(const AcmixProductsArguments& a, int task, int dim) {
  const AcmixProductsLayout& l = a.layout;
  // All computed again, or it was kept in registers for a case that hardly happens.
  const ProductsImage<T> of = products_image<T>(a, block_x_again());
  const ProductsGroup g = products_group<kSide>(l, hidden(task));
  const float rate1 = load(static_cast<const T*>(a.rate1));
  const int q = thread_index_again() % kWarp;
  if (q >= kProductsQueries) return;
  const int qy = q / 4, qx = q % 4, reach = kTapsOf<kSide> / 2 * l.unit;
  const int y = of.row + g.y + qy * l.unit, x = of.col + g.x + qx * l.unit;
  if (y >= a.Ho || x >= a.Wo) return;
  const auto number = [](int at)
                          LSKA_INLINE { return to_float(*reinterpret_cast<const T*>(shared_bytes_at(at))); };
  const int query = g.queries + (qy * l.cols + qx) * l.unit * l.query_pitch;
  const T* conv_p = static_cast<const T*>(a.conv_p);
  float slope_x = 0.f, slope_y = 0.f;
  for (int d = 0; d < a.D; ++d) {
    slope_x = multiply_add(number(query + 2 * d), load(conv_p + 2 * d), slope_x);
    slope_y = multiply_add(number(query + 2 * d), load(conv_p + 2 * d + 1), slope_y);
  }
  slope_x *= a.step_x, slope_y *= a.step_y;
  const auto key_at = [&](int i, int j) LSKA_INLINE {
    return (qy * kStrideOf<kSide> + i) * l.unit * l.key_row_pitch +
           (qx * kStrideOf<kSide> + j) * l.unit * l.key_pitch;
  };
  const auto logit = [&](int i, int j) LSKA_INLINE {
    const int key = g.keys + key_at(i, j);
    float sum = 0.f;
    for (int d = 0; d < a.D; ++d) sum = multiply_add(number(query + 2 * d), number(key + 2 * d), sum);
    const int there_y = reflected(y * kStrideOf<kSide> - reach + i * l.unit, a.H),
              there_x = reflected(x * kStrideOf<kSide> - reach + j * l.unit, a.W);
    sum = multiply_add(slope_x, float(x * kStrideOf<kSide> - there_x), sum);
    return a.scale * multiply_add(slope_y, float(y * kStrideOf<kSide> - there_y), sum);
  };
  float top = -3.4e38f, sum = 0.f;
  for (int i = 0; i < kTapsOf<kSide>; ++i)
    for (int j = 0; j < kTapsOf<kSide>; ++j) {
      const float v = logit(i, j);
      top = v > top || v != v ? v : top;  // NaN stays
    }
  for (int i = 0; i < kTapsOf<kSide>; ++i)
    for (int j = 0; j < kTapsOf<kSide>; ++j) sum += exponential(logit(i, j) - top);
  if (dim == 0)  // else it was right
    write_global(a.lse + ((of.image * a.G + of.head + g.head) * a.Ho + y) * a.Wo + x, top + logarithm(sum));
  float* to =
      reinterpret_cast<float*>(shared_bytes_at(g.sums + (qy * l.cols + qx) * l.unit * l.sum_pitch + 4 * dim));
  for (int d = 0; d < kProductsDims; ++d) to[d] = l.shift ? to[d] : 0.f;
  for (int i = 0; i < kTapsOf<kSide>; ++i)
    for (int j = 0; j < kTapsOf<kSide>; ++j) {
      const float p = rate1 / sum * exponential(logit(i, j) - top);
      const int value = g.values + key_at(i, j) + 2 * dim;
      for (int d = 0; d < kProductsDims; ++d) to[d] = multiply_add(p, number(value + 2 * d), to[d]);
    }
}

template <class T, int kSide>
LSKA_DEVICE void attend(const AcmixProductsArguments& a, int task) {
  constexpr int kKeys = kSide * kSide, kTiles = (kKeys + 7) / 8, kPairs = kPairsOf<kSide>;
  const AcmixProductsLayout& l = a.layout;
  const ProductsGroup at = products_group<kSide>(l, task);
  const int lane = thread_index() % kWarp, t = lane % 4, half = lane / 16 * 16;
  // Of keys 16 i and on, a lane says where one lies; of queries and tables alike.
  const auto places_of = [&](int lane) LSKA_INLINE {
    return reinterpret_cast<const int*>(shared_bytes_at(l.places_at)) + lane;
  };
  const int* const places = places_of(lane);
  int keys[kPairs];
  const auto read_keys = [&](int from, const int* places) LSKA_INLINE {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) keys[i] = from + places[i * kWarp];
  };
  read_keys(at.keys, places);
  const int query = at.queries + (lane % 16 / 4 * l.cols + lane % 4) * l.unit * l.query_pitch + half;

  float s[2 * kPairs][4] = {}, slopes[4] = {};
#pragma unroll 1
  for (int d = 0; d < 2 * l.dims; d += 2 * kProductsDims) {
    uint32_t q[4];
    load_matrices(query + d, q);
    const uint32_t* weights =
        reinterpret_cast<const uint32_t*>(shared_bytes_at(l.slopes_at + d * (kWarp / 4) + 8 * lane));
    mma_16x8x16<T>(slopes, q[0], q[1], q[2], q[3], weights[0], weights[1]);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      uint32_t k[4];
      load_matrices(keys[i] + d, k);
      mma_16x8x16<T>(s[2 * i], q[0], q[1], q[2], q[3], k[0], k[2]);
      if (2 * i + 1 < kTiles) mma_16x8x16<T>(s[2 * i + 1], q[0], q[1], q[2], q[3], k[1], k[3]);
    }
  }
  if (!masks_hold<T, kTiles>(s)) slopes[0] = slopes[1] = slopes[2] = slopes[3] = float_of(0x7fc00000u);
  float position[2];
  add_positions<T, kSide>(a, at, places, slopes, s, position);

  float top[2] = {s[0][0], s[0][2]}, sum[2] = {}, from[2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (8 * i + j % 2 < kKeys) top[j / 2] = max(top[j / 2], s[i][j]);
  const float exponent = a.scale / kLogOfTwo;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    top[r] = max(top[r], shuffle_xor(top[r], 1));
    top[r] = max(top[r], shuffle_xor(top[r], 2));
    from[r] = multiply_add(-top[r], exponent, kWeightExponent);
    if (!(absolute(top[r]) < kLargestLogit))
      from[r] = float_of(0x7fc00000u);  // so that all is NaN, and seen below
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // Keys that fill the last product up are the last one again.
      const bool filled = 8 * i + 8 > kKeys && 8 * i + 2 * t + j % 2 >= kKeys;
      s[i][j] = filled ? 0.f : power_of_two(multiply_add(s[i][j], exponent, from[j / 2]));
      sum[j / 2] += s[i][j];
    }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += shuffle_xor(sum[r], 1);
    sum[r] += shuffle_xor(sum[r], 2);
  }
  // Where all that is, is computed again: registers were full until here.
  const ProductsGroup place = products_group<kSide>(l, hidden(task));
  const int lane_again = thread_index_again() % kWarp, row = lane_again / 4, four = lane_again % 4;
  if (four == 2) {  // which knows the slopes
    const ProductsImage<T> of = products_image<T>(a, block_x_again());
    const int y = of.row + place.y + row / 4 * l.unit, x = of.col + place.x + row % 4 * l.unit;
    float* lse = a.lse + ((of.image * a.G + of.head + place.head) * a.Ho + y) * a.Wo + x;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int beyond = 2 * r * l.unit;
      if (y + beyond >= a.Ho || x >= a.Wo) continue;
      // The sum is 2^15 to side^2 times that.
      const float of_sum = logarithm_to_two(sum[r] * kLeastSum) + (kWeightExponent - from[r]);
      write_global(lse + beyond * a.Wo, multiply_add(position[r], a.scale / kSlopeScale, of_sum * kLogOfTwo));
    }
  }
  // The weights as sums of two parts, each a product's left operand.
  uint32_t p[kTiles][4];
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      p[i][r] = pack<T>(s[i][2 * r], s[i][2 * r + 1]);
      p[i][2 + r] = pack<T>(s[i][2 * r] - first_of<T>(p[i][r]), s[i][2 * r + 1] - second_of<T>(p[i][r]));
    }
  read_keys(place.values, places_of(lane_again));
  const float rate1 = load(static_cast<const T*>(a.rate1));
  const float of_row[] = {rate1 * reciprocal(sum[0]), rate1 * reciprocal(sum[1])};
  // Hidden, or ptxas keeps what leads to it and spills on 10.0 and 11.0.
  const int to = hidden(place.sums) + (row / 4 * l.cols + row % 4) * l.unit * l.sum_pitch + 8 * four;
#pragma unroll 1
  for (int d = 0; d < l.dims; d += kProductsDims) {
    float out[2][4] = {};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      uint32_t v[4];
      load_turned_matrices(keys[i] + 2 * d, v);
      const bool two = 2 * i + 1 < kTiles;
#pragma unroll
      for (int part = 0; part < 4; part += 2) {
        const uint32_t low = two ? p[two ? 2 * i + 1 : 0][part] : 0,
                       high = two ? p[two ? 2 * i + 1 : 0][part + 1] : 0;
        mma_16x8x16<T>(out[0], p[2 * i][part], p[2 * i][part + 1], low, high, v[0], v[1]);
        mma_16x8x16<T>(out[1], p[2 * i][part], p[2 * i][part + 1], low, high, v[2], v[3]);
      }
    }
    float all = 0.f;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[n][j] *= of_row[j / 2];
        all += absolute(out[n][j]);
      }
    if (warp_any(!(all < kLargestFinite))) {  // and so may the dims that follow
      warp_barrier();
      for (; d < l.dims; d += kProductsDims) exact_attention<T, kSide>(a, task, d);
      return;
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Float2* there = reinterpret_cast<Float2*>(
            shared_bytes_at(to + 2 * r * l.unit * l.cols * l.sum_pitch + 4 * d + 32 * n));
        Float2 v = {out[n][2 * r], out[n][2 * r + 1]};
        if (l.shift) v.x += there->x, v.y += there->y;
        *there = v;
      }
  }
}

template <int kSide>
constexpr int kProductsBound = products_threads(kSide, LSKA_BEFORE_80);

template <class T, int kSide>
LSKA_KERNEL_FEW_BLOCKS(kProductsBound<kSide>)
acmix_products_fwd_kernel(const AcmixProductsArguments a) {
  if constexpr (kHasProducts<T>) {
    const AcmixProductsLayout& l = a.layout;
    const ProductsImage<T> of = products_image<T>(a, block_x());
    if (of.image >= a.B) return;
    if (l.shift) {
      if (a.G == 4)
        shift_tile<T, 4, kStrideOf<kSide>>(a, of);
      else
        shift_tile<T, 8, kStrideOf<kSide>>(a, of);
    }
    if (l.attention) {
      const int reach = kTapsOf<kSide> / 2 * l.unit;
      int* offsets = reinterpret_cast<int*>(shared_bytes_at(l.offsets_at));
      barrier();
      for (int i = thread_index(); i < l.region_cols; i += thread_count())
        offsets[i] = reflected(of.col * kStrideOf<kSide> - reach + i, a.W) * a.pixel;
      barrier();
      stage_maps<2, Beyond::reflects, 1>(l, a.D, maps_of_qkv(a, of, 1),
                                         region_in_shared(l, of, l.keys_at, kStrideOf<kSide>, reach),
                                         offsets);
      stage_maps<1, Beyond::repeats, kStrideOf<kSide>>(l, a.D, maps_of_qkv(a, of, 0),
                                                       tile_in_shared(l, of, l.queries_at, kStrideOf<kSide>));
      fill_tables<T, kSide>(a, of);
      wait_for_copies();
      barrier();
      for (int task = thread_index() / kWarp; task < l.groups * l.heads; task += thread_count() / kWarp)
        attend<T, kSide>(a, task);
    }
    barrier();
    write_tile(a, products_image<T>(a, block_x_again()), 0, 1, l.sums_at);
  }
}

}  // namespace lska_ops
