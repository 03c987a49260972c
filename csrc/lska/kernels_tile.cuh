// The cascade of tiles in two phases. Rows: both horizontal convolutions of the tile's rows, and of those
// above and below that its columns reach, into shared memory as floats. Columns: both vertical ones, one
// rounding, and out. Rows and columns commute; conv0h's and conv_spatial_v's biases then stay constants,
// conv0v's and conv_spatial_h's become one value per column. plan_tile.h says which tile, and what fits none
// of them.
#pragma once

#include "csrc/lska/kernels_line.cuh"
#include "csrc/lska/plan_tile.h"
#include "csrc/lska/walk.cuh"

namespace lska_ops {

struct LskaTileForwardArguments {
  const void* x;  // [B, C, H, W] of T, or [B, H, W, C]
  void* s;        // the same
  LskaWeightPointers weights;
  LskaMap map;
  LskaForwardTile tile;
};

// Taps and biases of some channels as floats in shared memory: h0's, v0's, h1's and v1's, a bias behind each.
template <int K0, int K1>
struct TileTaps {
  static constexpr int H0 = 0, V0 = K0 + 1, H1 = 2 * (K0 + 1), V1 = H1 + K1 + 1, COUNT = V1 + K1 + 1;
};

// put(i, n, value) for tap n, and the bias behind the last tap, of channel first + i, wrapped at C, i <
// count.
template <class T, int K, class Put>
LSKA_DEVICE void stage_taps(const void* taps, const void* bias, int first, int count, int C, int t,
                            int threads, const Put& put) {
#pragma unroll 1
  for (int at = t; at < count * (K + 1); at += threads) {
    const int i = at / (K + 1), n = at - i * (K + 1);
    int c = first + i;
    while (c >= C) c -= C;
    float v = 0.f;
    if (n < K)
      v = to_float(read_weight(static_cast<const T*>(taps) + int64_t(c) * K + n));
    else if (bias)
      v = to_float(read_weight(static_cast<const T*>(bias) + c));
    put(i, n, v);
  }
}

// All four, each by a quarter of the warps.
template <class T, int K0, int K1, class Put>
LSKA_DEVICE void stage_taps(const LskaWeightPointers& w, int first, int count, int C, const Put& put) {
  using Taps = TileTaps<K0, K1>;
  const int warp = thread_index() / kWarp, which = warp % 4;
  const int t = warp / 4 * kWarp + thread_index() % kWarp, threads = thread_count() / (4 * kWarp) * kWarp;
  if (t >= threads) return;
  if (which < 2)
    stage_taps<T, K0>(which ? w.v0 : w.h0, which ? w.v0_bias : w.h0_bias, first, count, C, t, threads,
                      [&](int i, int n, float v) { put(i, (which ? Taps::V0 : Taps::H0) + n, v); });
  else
    stage_taps<T, K1>(which == 2 ? w.h1 : w.v1, which == 2 ? w.h1_bias : w.v1_bias, first, count, C, t,
                      threads,
                      [&](int i, int n, float v) { put(i, (which == 2 ? Taps::H1 : Taps::V1) + n, v); });
}

// Where a block's tile lies: the last one overlaps the one before it.
struct TilePlace {
  int top, left, first_row, rows;  // rows that the columns reach, of the map
};
LSKA_DEVICE TilePlace place_of(const LskaTileForwardArguments& a, int reach) {
  const int y = quotient(block_y(), a.tile.by_tiles_x), x = block_y() - y * a.tile.tiles_x;
  TilePlace p;
  p.top = min(y * a.tile.rows, a.map.H - a.tile.rows);
  p.left = min(x * a.tile.cols, a.map.W - a.tile.cols);
  p.first_row = max(0, p.top - reach);
  p.rows = min(a.map.H, p.top + a.tile.rows + reach) - p.first_row;
  return p;
}

// What conv_spatial_h makes of conv0v's bias at one column, and its own bias.
template <int K1, int D, class Value>
LSKA_DEVICE Value column_constant(const Value (&h1)[K1], Value v0_bias, Value h1_bias, int column, int W) {
  Value constant = h1_bias;
#pragma unroll
  for (int n = 0; n < K1; ++n)
    if (uint32_t(column + (n - K1 / 2) * D) < uint32_t(W)) constant = multiply_add(h1[n], v0_bias, constant);
  return constant;
}

}  // namespace lska_ops
