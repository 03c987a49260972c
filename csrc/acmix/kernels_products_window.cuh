// A warp's window on a tile: which keys its 4 x 4 queries see, and what positions add, as one product more.
#pragma once

#include "csrc/acmix/kernels_products_tile.cuh"

namespace lska_ops {

template <class T>
constexpr float kFarBelow = 32768.f;  // the product of two: below all logits
template <>
inline constexpr float kFarBelow<BFloat16> = 1.125899906842624e15f;
// Of products up to this a mask takes the largest far below the smallest.
template <class T>
constexpr float kLargestProduct = kFarBelow<T> * kFarBelow<T> / 4;
constexpr float kSlopeScale = 16.f;  // slopes are rounded to halves times this, positions divided by it

constexpr float kLogOfTwo = 0.6931471805599453f;

template <int kSide>
constexpr int kPairsOf = (kSide * kSide + 15) / 16;  // of right operands of 8 keys

// For each column of each group of queries and key of its window, and for rows alike: 0 or far below 0 for
// each of four queries, and where the key is, three times; all a power of two of what products make of it.
template <class T, int kSide>
LSKA_DEVICE void fill_tables(const AcmixProductsArguments& a, const ProductsImage<T>& of) {
  const AcmixProductsLayout& l = a.layout;
  const int reach = kTapsOf<kSide> / 2 * l.unit, down = l.rows / 4;
  for (int n = thread_index(); n < (l.across + down) * kSide; n += thread_count()) {
    const bool is_row = n >= l.across * kSide;
    const int i = is_row ? n - l.across * kSide : n, group = i / kSide, key = i - group * kSide;
    const int first = (group / l.unit * 4 * l.unit + group % l.unit) * kStrideOf<kSide>;
    const int tile = (is_row ? of.row : of.col) * kStrideOf<kSide>;
    const int there = reflected(tile - reach + first + l.unit * key, is_row ? a.H : a.W);
    float entry[8] = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int tap = key - q * kStrideOf<kSide>;
      if (tap < 0 || tap >= kTapsOf<kSide>) entry[q] = -kFarBelow<T>;
    }
    const float position = float(tile - there) / kSlopeScale;
    entry[4] = entry[5] = entry[6] = position;
    uint32_t* to = reinterpret_cast<uint32_t*>(shared_bytes_at(l.tables_at + 16 * n));
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j] = pack<T>(entry[2 * j], entry[2 * j + 1]);
  }
  // Where the keys of each 16 are for a lane, from the first one on: in shared memory, and in the tables.
  for (int n = thread_index(); n < kPairsOf<kSide> * kWarp; n += thread_count()) {
    const int lane = n % kWarp, key = min(n / kWarp * 16 + lane % 16, kSide * kSide - 1);
    const int y = key / kSide, x = key - y * kSide, half = lane / 16;
    int* to = reinterpret_cast<int*>(shared_bytes_at(l.places_at)) + n;
    to[0] = l.unit * (y * l.key_row_pitch + x * l.key_pitch) + 16 * half;
    to[kPairsOf<kSide> * kWarp] = 16 * (half ? y : x);
  }
  // conv_p's weights as a right operand, whose columns 4 and 6 are of x, and 5 and 7 of y.
  for (int n = thread_index(); n < l.dims / kProductsDims * kWarp; n += thread_count()) {
    const int dim = n / kWarp * kProductsDims + 2 * (n % 4), column = n % kWarp / 4;
    const T* conv_p = static_cast<const T*>(a.conv_p);
    const auto weight = [&](int d) LSKA_INLINE {
      return column < 4 || d >= a.D ? 0.f : load(conv_p + 2 * d + column % 2);
    };
    uint32_t* to = reinterpret_cast<uint32_t*>(shared_bytes_at(l.slopes_at + 8 * n));
    to[0] = pack<T>(weight(dim), weight(dim + 1));
    to[1] = pack<T>(weight(dim + 8), weight(dim + 9));
  }
}

// A warp's queries: the group's place, and where its keys, queries and sums begin in shared memory.
struct ProductsGroup {
  int head;  // of the block's
  int y, x;  // the first query, in the tile
  int keys, values, queries, sums, tables_x, tables_y;
};
template <int kSide>
LSKA_DEVICE ProductsGroup products_group(const AcmixProductsLayout& l, int task) {
  const int group = quotient(task, l.by_heads), head = task - group * l.heads;
  const int down = quotient(group, l.by_across), right = group - down * l.across, u = l.unit;
  ProductsGroup g;
  g.head = head;
  g.y = u == 1 ? 4 * down : down / u * 4 * u + down % u;
  g.x = u == 1 ? 4 * right : right / u * 4 * u + right % u;
  const int channels = l.heads * l.dims, first = g.y * l.cols + g.x;
  g.keys = l.keys_at + g.y * kStrideOf<kSide> * l.key_row_pitch + g.x * kStrideOf<kSide> * l.key_pitch +
           2 * head * l.dims;
  g.values = g.keys + 2 * channels;
  g.queries = l.queries_at + first * l.query_pitch + 2 * head * l.dims;
  g.sums = l.sums_at + first * l.sum_pitch + 4 * head * l.dims;
  g.tables_x = l.tables_at + 16 * kSide * right;
  g.tables_y = l.tables_at + 16 * kSide * (l.across + down);
  return g;
}

// Whether masks keep a warp's products apart, those of keys that are not seen, too: NaN is not kept.
template <class T, int kTiles, int kAll>
LSKA_DEVICE bool masks_hold(const float (&s)[kAll][4]) {
  float most = 0.f;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) most = max_magnitude(most, s[i][j]);
  return !warp_any(!(most < kLargestProduct<T>));
}

// A power of two times v in three parts of 16 bits: words of the first two, and of the third.
template <class T>
LSKA_DEVICE void in_parts(float v, uint32_t& two, uint32_t& third) {
  const float first = first_of<T>(pack<T>(v, 0.f)), rest = v - first;
  two = pack<T>(v, rest);
  third = pack<T>(rest - second_of<T>(two), 0.f);
}

// Adds to a group's sums what masks and positions are, from the queries' slopes, and says what positions add
// for the tile's first output in place of the query itself, as the tables have it; in lanes 2 and 3 of four.
template <class T, int kSide>
LSKA_DEVICE void add_positions(const AcmixProductsArguments& a, const ProductsGroup& at, const int* places,
                               const float (&slopes)[4], float (&s)[2 * kPairsOf<kSide>][4],
                               float (&position)[2]) {
  constexpr int kTiles = (kSide * kSide + 7) / 8, kPairs = kPairsOf<kSide>;
  const AcmixProductsLayout& l = a.layout;
  const int lane = thread_index() % kWarp, g = lane / 4, t = lane % 4;
  // Lanes 2 and 3 of four have the slopes of rows g and g + 8.
  const float along[] = {slopes[0] * a.step_x * kSlopeScale, slopes[2] * a.step_x * kSlopeScale,
                         slopes[1] * a.step_y * kSlopeScale, slopes[3] * a.step_y * kSlopeScale};
  // What positions add for the first output of the tile in place of the query itself, as the tables have it.
  const int down = at.y + g / 4 * l.unit, right = at.x + g % 4 * l.unit;
#pragma unroll
  for (int r = 0; r < 2; ++r)
    position[r] = multiply_add(along[r], float(right * kStrideOf<kSide>),
                               along[2 + r] * float((down + 2 * r * l.unit) * kStrideOf<kSide>));
  uint32_t with[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int own = i < 2 ? g % 4 : g / 4 + 2 * (i % 2);  // the query's column, or row, of four
    uint32_t two, third;
    in_parts<T>(along[i], two, third);
    const uint32_t one = pack<T>(own == 2 * t ? kFarBelow<T> : 0.f, own == 2 * t + 1 ? kFarBelow<T> : 0.f);
    with[i] = t < 2 ? one : t == 2 ? two : third;
  }
  const int tables = lane / 16 ? at.tables_y : at.tables_x;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    uint32_t k[4];
    load_matrices(tables + places[(kPairs + i) * kWarp], k);
    mma_16x8x16<T>(s[2 * i], with[0], with[1], with[2], with[3], k[0], k[2]);
    if (2 * i + 1 < kTiles) mma_16x8x16<T>(s[2 * i + 1], with[0], with[1], with[2], with[3], k[1], k[3]);
  }
}

}  // namespace lska_ops
