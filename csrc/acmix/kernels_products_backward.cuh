// Backward of the attention by products on tensor cores, for 16-bit dtypes, in two passes of one shape.
//
// A warp has 4 x 4 pixels of one head, its own, and the side x side pixels around them that are theirs: the
// query pass has queries and the keys that they see, the key pass keys and the queries that see them. Of
// both pixels of a pair a product each gives q k and dy v; the softmax's weights come again from lse, in
// registers, and so do the gradients of the logits; where these lie is where the next products want their
// left operand: with k they are q's gradient, with q k's, and weights with dy v's. What is rounded to 16 bits
// on the way is kept in two parts, a row of it times a power of two.
//
// The query pass goes first and leaves of every query what the key pass wants to know. What reflection
// repeats lies in the query pass's shared memory as often as it is seen; in the key pass a weight is counted
// as often as its query sees the key.
#pragma once

#include "csrc/acmix/kernels_products_backward_tile.cuh"

namespace lska_ops {

// A power of two that makes numbers up to `most` ones up to 2^15, and what undoes it. Of what is zero or not
// finite it is one that changes nothing about that.
LSKA_DEVICE float power_for(float most) {
  const int exponent = min(max(int(bits_of(most) >> 23), 15), 240);
  return float_of(uint32_t(268 - exponent) << 23);
}
LSKA_DEVICE float undone(float power) { return float_of((254u << 23) - bits_of(power)); }

// Four numbers, of two rows, as two words each of first parts and of what is left.
template <class T>
LSKA_DEVICE void split(const float (&s)[4], const float (&times)[2], uint32_t (&parts)[4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float first = s[2 * r] * times[r], second = s[2 * r + 1] * times[r];
    parts[r] = pack<T>(first, second);
    parts[2 + r] = pack<T>(first - first_of<T>(parts[r]), second - second_of<T>(parts[r]));
  }
}

// out += weights, in parts, times the maps at `keys`, 16 dims of them.
template <class T, int kTiles, int kPairs>
LSKA_DEVICE void weigh(const uint32_t (&parts)[2 * kPairs][4], const int (&keys)[kPairs], int offset,
                       float (&out)[2][4]) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    uint32_t v[4];
    load_turned_matrices(keys[i] + offset, v);
    const bool two = 2 * i + 1 < kTiles;
#pragma unroll
    for (int part = 0; part < 4; part += 2) {
      const uint32_t low = two ? parts[2 * i + 1][part] : 0, high = two ? parts[2 * i + 1][part + 1] : 0;
      mma_16x8x16<T>(out[0], parts[2 * i][part], parts[2 * i][part + 1], low, high, v[0], v[1]);
      mma_16x8x16<T>(out[1], parts[2 * i][part], parts[2 * i][part + 1], low, high, v[2], v[3]);
    }
  }
}

// Adds a group's 16 dims to the tile's sums.
LSKA_DEVICE void add_to_sums(const AcmixProductsLayout& l, int to, const float (&out)[2][4], bool add) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Float2* there =
          reinterpret_cast<Float2*>(shared_bytes_at(to + 2 * r * l.unit * l.cols * l.sum_pitch + 32 * n));
      Float2 v = {out[n][2 * r], out[n][2 * r + 1]};
      if (add) v.x += there->x, v.y += there->y;
      *there = v;
    }
}

// One group of queries, or of keys; adds what its queries give to rate1's gradient. False where products
// would carry what is not finite from one pixel to another: then nothing is done.
template <class T, int kSide, bool kOfKeys>
LSKA_DEVICE bool attend_backward(const AcmixProductsBackwardArguments& a, int task, float& deltas) {
  constexpr int kKeys = kSide * kSide, kTiles = (kKeys + 7) / 8, kPairs = kPairsOf<kSide>;
  const AcmixProductsLayout& l = a.layout;
  const int beside = 2 * l.heads * l.dims;  // from q or k to dy or v around the group
  int keys[kPairs];
  const auto read_keys = [&](int from, int lane) LSKA_INLINE {
    const int* places = reinterpret_cast<const int*>(shared_bytes_at(l.places_at)) + lane;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) keys[i] = from + places[i * kWarp];
  };
  int query;
  {
    const ProductsGroup at = products_group<kSide>(l, task);
    const int lane = thread_index() % kWarp;
    read_keys(at.keys, lane);
    query = at.queries + (lane % 16 / 4 * l.cols + lane % 4) * l.unit * l.query_pitch + lane / 16 * 16;
  }
  float s[2 * kPairs][4] = {}, e[2 * kPairs][4] = {}, slopes[4] = {};
#pragma unroll 1
  for (int d = 0; d < 2 * l.dims; d += 2 * kProductsDims) {
    uint32_t q[4], dy[4];
    load_matrices(query + d, q);
    load_matrices(query + d + l.grads_at - l.queries_at, dy);
    if constexpr (!kOfKeys) {
      const uint32_t* weights = reinterpret_cast<const uint32_t*>(
          shared_bytes_at(l.slopes_at + d * (kWarp / 4) + 8 * (thread_index() % kWarp)));
      mma_16x8x16<T>(slopes, q[0], q[1], q[2], q[3], weights[0], weights[1]);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      uint32_t k[4], v[4];
      load_matrices(keys[i] + d, k);
      load_matrices(keys[i] + d + beside, v);
      mma_16x8x16<T>(s[2 * i], q[0], q[1], q[2], q[3], k[0], k[2]);
      mma_16x8x16<T>(e[2 * i], dy[0], dy[1], dy[2], dy[3], v[0], v[2]);
      if (2 * i + 1 < kTiles) {
        mma_16x8x16<T>(s[2 * i + 1], q[0], q[1], q[2], q[3], k[1], k[3]);
        mma_16x8x16<T>(e[2 * i + 1], dy[0], dy[1], dy[2], dy[3], v[1], v[3]);
      }
    }
  }
  if (!masks_hold<T, kTiles>(s)) return false;
  // Where all that is, is computed again, and once more below: registers are full.
  const ProductsGroup at = products_group<kSide>(l, hidden(task));
  const int lane = thread_index_again() % kWarp, g = lane / 4, t = lane % 4, half = lane / 16;
  const int* const places = reinterpret_cast<const int*>(shared_bytes_at(l.places_at)) + lane;

  const float exponent = a.scale / kLogOfTwo;
  if constexpr (!kOfKeys) {
    float position[2];
    add_positions<T, kSide>(a, at, places, slopes, s, position);
    const ProductsImage<T> of = products_image<T>(a, block_x_again());
    const int y = of.row + at.y + g / 4 * l.unit, x = of.col + at.x + g % 4 * l.unit;
    const int64_t place = ((of.image * a.G + of.head + at.head) * a.Ho + y) * a.Wo + x;
    float own[2], delta[2] = {}, lse[2];
    bool inside[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int beyond = 2 * r * l.unit;
      inside[r] = y + beyond < a.Ho && x < a.Wo;
      lse[r] = inside[r] ? read_global(a.lse + place + beyond * a.Wo) / kLogOfTwo : 0.f;
      position[r] = float_of(uint32_t(shuffle_from(int(bits_of(position[r])), lane | 2)));
      own[r] = multiply_add(position[r], exponent / kSlopeScale, -lse[r]);
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Keys that fill the last product up are the last one again.
        const bool filled = 8 * i + 8 > kKeys && 8 * i + 2 * t + j % 2 >= kKeys;
        s[i][j] = filled ? 0.f : power_of_two(multiply_add(s[i][j], exponent, own[j / 2]));
        delta[j / 2] = multiply_add(s[i][j], e[i][j], delta[j / 2]);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      delta[r] += shuffle_xor(delta[r], 1);
      delta[r] += shuffle_xor(delta[r], 2);
    }
    if (warp_any(!(absolute(delta[0]) + absolute(delta[1]) < kLargestFinite))) return false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (t != 2 || !inside[r]) continue;
      deltas += delta[r];
      const QueryFacts facts{lse[r], delta[r], slopes[2 * r] * a.step_x, slopes[2 * r + 1] * a.step_y};
      Bits16Bytes bits;
      memcpy(&bits, &facts, 16);
      write_global(reinterpret_cast<Bits16Bytes*>(a.facts + place + 2 * r * l.unit * a.Wo), bits);
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] *= e[i][j] - delta[j / 2];
  } else {
    // A key's row: its column of 4, its row of 4, and where it is.
    uint32_t with[4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int own = t < 2 ? g % 4 : g / 4 + 2 * r, first = 2 * (t % 2);
      with[r] = pack<T>(own == first ? kFarBelow<T> : 0.f, own == first + 1 ? kFarBelow<T> : 0.f);
      const float x = -float(at.x + g % 4 * l.unit) / kSlopeScale,
                  y = -float(at.y + (g / 4 + 2 * r) * l.unit) / kSlopeScale;
      with[2 + r] = t == 3 ? 0 : pack<T>(t == 2 ? y : x, t == 0 ? x : y);
    }
    const int first = at.head * l.region_rows * l.fact_pitch + at.y * l.fact_pitch + at.x;
    const int rises = half ? l.rises_at + 16 * first : l.tables_at;
    const char* const facts = shared_bytes_at(l.facts_at + 8 * first);
    const int* const places_of_pairs = places + kPairs * kWarp - lane + 16 + 2 * t;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      uint32_t k[4];
      load_matrices(rises + places[(kPairs + i) * kWarp], k);
      mma_16x8x16<T>(s[2 * i], with[0], with[1], with[2], with[3], k[0], k[2]);
      if (2 * i + 1 < kTiles) mma_16x8x16<T>(s[2 * i + 1], with[0], with[1], with[2], with[3], k[1], k[3]);
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      // Two neighbours, as sides are even; where they are, lane 16 and on of 32 say.
      const char* of_pair = facts + hidden(places_of_pairs[(i / 2) * kWarp + 8 * (i % 2)]) / 2;
      const Float2 two[] = {*reinterpret_cast<const Float2*>(of_pair),
                            *reinterpret_cast<const Float2*>(of_pair + 8 * l.unit)};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool filled = 8 * i + 8 > kKeys && 8 * i + 2 * t >= kKeys;
        s[i][j] = filled ? 0.f : power_of_two(multiply_add(s[i][j], exponent, two[j % 2].x));
        e[i][j] -= two[j % 2].y;
      }
    }
    const ProductsGroup place = products_group<kSide>(l, hidden(task));
    const ProductsImage<T> of = products_image<T>(a, block_x_again());
    const int reach = kTapsOf<kSide> / 2 * l.unit, y = of.row + place.y, x = of.col + place.x;
    const bool repeats =
        y <= reach || x <= reach || y + 3 * l.unit >= a.H - 1 - reach || x + 3 * l.unit >= a.W - 1 - reach;
    if (repeats) {
      const int group_x = (place.tables_x - l.tables_at) / (16 * kSide),
                group_y = (place.tables_y - l.tables_at) / (16 * kSide);
      const float* counts_x =
          reinterpret_cast<const float*>(shared_bytes_at(l.counts_at)) + (4 * group_x + g % 4) * kSide;
      const float* counts_y =
          reinterpret_cast<const float*>(shared_bytes_at(l.counts_at)) + (4 * group_y + g / 4) * kSide;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int number = min(4 * i + t, kKeys / 2 - 1), pair = hidden(number);
        const int qy = pair / (kSide / 2), qx = 2 * (pair - qy * (kSide / 2));
        const float down[] = {counts_y[qy], counts_y[qy + 2 * kSide]};
#pragma unroll
        for (int j = 0; j < 4; ++j) s[i][j] *= down[j / 2] * counts_x[qx + j % 2];
      }
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) e[i][j] *= s[i][j];
  }

  // Of each row the largest, of weights and of the logits' gradients, makes room for the smallest.
  float most[2][2] = {};
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      most[0][j / 2] = max_magnitude(most[0][j / 2], s[i][j]);
      if constexpr (kOfKeys) most[1][j / 2] = max_magnitude(most[1][j / 2], e[i][j]);
    }
  float times[2][2];
#pragma unroll
  for (int n = 0; n < (kOfKeys ? 2 : 1); ++n)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[n][r] = max_magnitude(most[n][r], shuffle_xor(most[n][r], 1));
      most[n][r] = max_magnitude(most[n][r], shuffle_xor(most[n][r], 2));
      times[n][r] = power_for(most[n][r]);
    }
  if constexpr (kOfKeys) {
    const float all = most[0][0] + most[0][1] + most[1][0] + most[1][1];
    if (warp_any(!(all < kLargestFinite))) return false;
  }
  uint32_t parts[2 * kPairs][4] = {}, grads[2 * kPairs][4] = {};
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    split<T>(s[i], times[0], parts[i]);
    if constexpr (kOfKeys) split<T>(e[i], times[1], grads[i]);
  }
  const float rate1 = load(static_cast<const T*>(a.rate1));
  const ProductsGroup place = products_group<kSide>(l, hidden(task));
  const int again = thread_index_again() % kWarp, row = again / 4, four = again % 4;
  read_keys(place.keys, again);
  const int to = place.sums + (row / 4 * l.cols + row % 4) * l.unit * l.sum_pitch + 8 * four;
  if constexpr (!kOfKeys) {
    const float of_row[] = {undone(times[0][0]) * rate1 * a.scale, undone(times[0][1]) * rate1 * a.scale};
    // Where a key is, from the tile on: columns of a product, even ones along x, odd ones along y. What is
    // asked for is where it is from the query on; that differs by the gradients' sum, the last two columns',
    // which is zero but for what was rounded.
    const int group = row % 2 ? (place.tables_y - l.tables_at) / (16 * kSide)
                              : (place.tables_x - l.tables_at) / (16 * kSide);
    const uint32_t* pairs =
        reinterpret_cast<const uint32_t*>(shared_bytes_at(l.pairs_at)) + group * kPairs * 8 + four;
    const uint32_t ones = pack<T>(1.f, 1.f);
    float along[4] = {};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const uint32_t low = row < 6 ? pairs[8 * i] : ones, high = row < 6 ? pairs[8 * i + 4] : ones;
#pragma unroll
      for (int part = 0; part < 4; part += 2)
        mma_16x8x16<T>(along, parts[2 * i][part], parts[2 * i][part + 1], parts[2 * i + 1][part],
                       parts[2 * i + 1][part + 1], low, high);
    }
    const auto of_lane = [&](float v, int lane)
                             LSKA_INLINE { return float_of(uint32_t(shuffle_from(int(bits_of(v)), lane))); };
    const float sums[] = {of_lane(along[0], again | 3), of_lane(along[2], again | 3)};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int own = (j % 2 ? place.y + (row / 4 + j / 2 * 2) * l.unit : place.x + row % 4 * l.unit);
      along[j] = multiply_add(sums[j / 2], float(own) / kSlopeScale, of_lane(along[j], again & ~3));
      along[j] *= of_row[j / 2];
    }
    if (four == 0) {
      const int pixel = (place.y + row / 4 * l.unit) * l.cols + place.x + row % 4 * l.unit;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<Float2*>(
            shared_bytes_at(l.along_at + 8 * ((pixel + 2 * r * l.unit * l.cols) * l.heads + place.head))) = {
            along[2 * r] * a.step_x * kSlopeScale, along[2 * r + 1] * a.step_y * kSlopeScale};
    }
#pragma unroll 1
    for (int d = 0; d < l.dims; d += kProductsDims) {
      float out[2][4] = {};
      weigh<T, kTiles>(parts, keys, 2 * d, out);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Float2 weight = *reinterpret_cast<const Float2*>(
              shared_bytes_at(l.conv_p_at + 8 * (d + 8 * n + 2 * four + j % 2)));
          out[n][j] = multiply_add(weight.x, along[j / 2 * 2],
                                   multiply_add(weight.y, along[j / 2 * 2 + 1], out[n][j] * of_row[j / 2]));
        }
      add_to_sums(l, to + 4 * d, out, l.shift);
    }
  } else {
    const int channels = l.heads * l.dims;
#pragma unroll 1
    for (int d = 0; d < l.dims; d += kProductsDims) {
      float out[2][4] = {};
      weigh<T, kTiles>(grads, keys, 2 * d, out);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) out[n][j] *= undone(times[1][j / 2]) * rate1 * a.scale;
      add_to_sums(l, to + 4 * d, out, l.shift);
    }
#pragma unroll 1
    for (int d = 0; d < l.dims; d += kProductsDims) {
      float out[2][4] = {};
      weigh<T, kTiles>(parts, keys, 2 * d + beside, out);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) out[n][j] *= undone(times[0][j / 2]) * rate1;
      add_to_sums(l, to + 4 * (d + channels), out, l.shift);
    }
  }
  return true;
}

// A block's part of conv_p's gradient, over its queries.
template <class T>
LSKA_DEVICE void conv_p_part(const AcmixProductsBackwardArguments& a, const ProductsImage<T>& of,
                             float* part) {
  const AcmixProductsLayout& l = a.layout;
  const int pixels = l.rows * l.cols, lane = thread_index() % kWarp;
#pragma unroll 1
  for (int dim = 2 * (thread_index() / kWarp); dim < a.D; dim += 2 * (thread_count() / kWarp)) {
    float sum[4] = {};
#pragma unroll 1
    for (int n = lane; n < pixels * l.heads; n += kWarp) {
      const int pixel = quotient(n, l.by_heads), head = n - pixel * l.heads;
      const int row = quotient(pixel, l.by_cols), col = pixel - row * l.cols;
      if (of.row + row >= a.Ho || of.col + col >= a.Wo) continue;
      const Float2 along = *reinterpret_cast<const Float2*>(shared_bytes_at(l.along_at + 8 * n));
      const uint32_t q = *reinterpret_cast<const uint32_t*>(
          shared_bytes_at(l.queries_at + pixel * l.query_pitch + 2 * (head * l.dims + dim)));
      sum[0] = multiply_add(first_of<T>(q), along.x, sum[0]);
      sum[1] = multiply_add(first_of<T>(q), along.y, sum[1]);
      sum[2] = multiply_add(second_of<T>(q), along.x, sum[2]);
      sum[3] = multiply_add(second_of<T>(q), along.y, sum[3]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sum[j] = warp_sum(sum[j]);
      if (lane == 0 && 2 * dim + j < 2 * a.D) write_global(part + 2 * dim + j, sum[j]);
    }
  }
}

template <int kSide>
constexpr int kProductsBackwardBound = products_backward_threads(kSide, LSKA_BEFORE_80);

// A block owns a tile of queries, or of keys, of some heads; what the shift gives to their gradients goes
// first.
template <class T, int kSide, bool kOfKeys>
LSKA_KERNEL_FEW_BLOCKS(kProductsBackwardBound<kSide>)
acmix_products_bwd_kernel(const AcmixProductsBackwardArguments a) {
  if constexpr (kHasProducts<T>) {
    const AcmixProductsLayout& l = a.layout;
    const ProductsImage<T> of = products_image<T>(a, block_x());
    if (of.image >= a.B) return;
    if (l.shift) {
      const ShiftBackTile tile{of.image, of.row,  of.col,      of.head,
                               l.heads,  kOfKeys, 1 + kOfKeys, l.staging_at};
      const ShiftBackSums sums{l.sums_at, l.sum_pitch, 4 * l.heads * l.dims, 4 * l.dims};
      if (a.G == 4)
        shift_back_tile<T, 4>(a.back, tile, sums);
      else
        shift_back_tile<T, 8>(a.back, tile, sums);
      barrier();
    }
    const int reach = kTapsOf<kSide> / 2 * l.unit;
    if constexpr (!kOfKeys) {
      int* offsets = reinterpret_cast<int*>(shared_bytes_at(l.offsets_at));
      for (int i = thread_index(); i < l.region_cols; i += thread_count())
        offsets[i] = reflected(of.col - reach + i, a.W) * a.pixel;
      barrier();
      stage_maps<2, Beyond::reflects, 1>(l, a.D, maps_of_qkv(a, of, 1),
                                         region_in_shared(l, of, l.keys_at, 1, reach), offsets);
      stage_maps<1, Beyond::zero, 1>(l, a.D, maps_of_qkv(a, of, 0), tile_in_shared(l, of, l.queries_at, 1));
      stage_maps<1, Beyond::zero, 1>(l, a.D, maps_of_grad(a, of), tile_in_shared(l, of, l.grads_at, 1));
      fill_tables<T, kSide>(a, of);
      fill_query_tables<T, kSide>(a, of);
    } else {
      stage_maps<1, Beyond::zero, 1>(l, a.D, maps_of_qkv(a, of, 0),
                                     region_in_shared(l, of, l.keys_at, 1, reach));
      stage_maps<1, Beyond::zero, 1>(l, a.D, maps_of_grad(a, of),
                                     region_in_shared(l, of, l.keys_at + 2 * l.heads * l.dims, 1, reach));
      stage_maps<1, Beyond::zero, 1>(l, a.D, maps_of_qkv(a, of, 1), tile_in_shared(l, of, l.queries_at, 1));
      stage_maps<1, Beyond::zero, 1>(l, a.D, maps_of_qkv(a, of, 2), tile_in_shared(l, of, l.grads_at, 1));
      fill_key_tables<T, kSide>(a, of);
      stage_facts(a, of, reach);
    }
    wait_for_copies();
    barrier();
    const int tasks = l.groups * l.heads;
    int* const done = reinterpret_cast<int*>(shared_bytes_at(l.done_at));
    float deltas = 0.f;
    for (int task = thread_index() / kWarp; task < tasks; task += thread_count() / kWarp) {
      const bool all = attend_backward<T, kSide, kOfKeys>(a, task, deltas);
      if (thread_index_again() % kWarp == 0) done[task] = all;
    }
    warp_barrier();
    for (int task = thread_index() / kWarp; task < tasks; task += thread_count() / kWarp) {
      if (done[task]) continue;
      if constexpr (kOfKeys)
        exact_keys<T, kSide>(a, task);
      else
        deltas += exact_queries<T, kSide>(a, task);
    }
    barrier();
    const ProductsImage<T> again = products_image<T>(a, block_x_again());
    if constexpr (!kOfKeys) {
      float* part = a.parts + (again.image * a.blocks + block_x_again()) * (2 * a.D + 1);
      conv_p_part(a, again, part);
      write_tile(a, again, 0, 3, l.sums_at);
      deltas = block_sum(deltas, shared_floats());
      if (thread_index() == 0) write_global(part + 2 * a.D, deltas);
    } else {
      write_tile(a, again, 1, 3, l.sums_at);
      write_tile(a, again, 2, 3, l.sums_at + 4 * l.heads * l.dims);
    }
  }
}

}  // namespace lska_ops
