// How ACmix's forward by products on tensor cores is spread over a GPU: from sizes, dtype and the device's
// limits to a tile, the heads of a block, what lies in shared memory, and the grid; or to none, where the
// kernels of plan.h serve.
//
// A block owns a tile of outputs and some heads: the attention of those heads, and what the shift adds to
// their channels. A warp takes 4 x 4 queries, `dilation` apart, of one head at a time; the keys that they see
// are `side` x `side`, a number known to the compiler.
#pragma once

#include <cmath>
#include <iterator>

#include "csrc/acmix/plan.h"
#include "csrc/acmix/plan_cost.h"
#include "csrc/common/divisor.h"

namespace lska_ops {

// Threads of a block at most, by the registers that a kernel of so large a window needs.
constexpr int products_threads(int side, bool before_80) { return side > 10 ? 256 : before_80 ? 384 : 512; }
constexpr int kProductsQueries = 16;  // of a warp: 4 x 4
constexpr int kProductsDims = 16;     // a head's dims are in groups of so many, the last one filled up
// Outputs under each other that a row of a product's left operand has; registers hold no more.
template <int G>
constexpr int kShiftWalk = 16 / G;
inline int shift_walk(int64_t heads) { return heads == 4 ? kShiftWalk<4> : kShiftWalk<8>; }
constexpr int kProductsSides[] = {6, 8, 10, 12, 13};
// Taps are odd, so that a side tells the stride, 1 or 2, and the taps of a line.
template <int kSide>
constexpr int kStrideOf = 1 + kSide % 2;
template <int kSide>
constexpr int kTapsOf = kSide - 3 * kStrideOf<kSide>;

// What the kernel reads of a plan. Bytes, but for what counts pixels or heads.
struct AcmixProductsLayout {
  bool attention, shift;
  int rows, cols, tiles_x;  // of a tile, in outputs
  int heads, dims;          // heads of a block; a head's dims, filled up
  int unit;                 // the dilation, between neighbouring queries of a warp and taps
  int across;               // groups of 16 queries in a row of them
  int groups;               // of the tile
  int region_rows, region_cols, key_pitch, key_row_pitch;
  int query_pitch, sum_pitch;
  int shift_dims, shift_at_once;            // of a block; in shared memory at once
  int shift_rows, shift_cols, shift_pitch;  // pixels; bytes from a dim to the next
  int shift_row_pitch;
  int pairs;               // of outputs in a row, or outputs where stride is 2
  int pair_pitch;          // of sums
  int walks, walk_groups;  // down shift_walk outputs; products' 16 of them
  int keys_at, queries_at, offsets_at, tables_at, places_at, slopes_at, sums_at;
  int staging_at, grads_at, done_at;  // the backward's: grad_y around a tile for the shift, and in it
  int pairs_at, conv_p_at, along_at;  // its query pass's
  int counts_at, rises_at, facts_at;  // its key pass's
  int fact_pitch;                     // pixels from a row of queries to the next
  Divisor by_across, by_tiles_x, by_shift_cols, by_pairs, by_cols, by_heads;
};

struct AcmixProductsPlan {
  AcmixProductsLayout layout;
  int64_t shared_bytes, grid_x, grid_y, grid_z;
  int threads;
  int side;  // index into kProductsSides
  double cost;
  bool serves;
};

namespace acmix_products {

inline int side_of(const AcmixSize& s) {
  const int64_t side = s.kernel_att + 3 * s.stride;
  for (int i = 0; i < int(std::size(kProductsSides)); ++i)
    if (kProductsSides[i] == side) return i;
  return -1;
}

// Of a call's kernel; the shift alone has the first one of its stride.
inline int side_for(const AcmixSize& s, bool attention) {
  return attention ? side_of(s) : s.stride == 1 ? 0 : int(std::size(kProductsSides)) - 1;
}

inline bool takes_maps(const AcmixSize& s, bool bfloat16, const GpuLimits& device) {
  return s.element == 2 && s.D() <= 256 && device.arch >= (bfloat16 ? 80 : 75) &&
         3 * s.C * s.H * s.W < int64_t(1) << 31;
}
inline bool takes_windows(const AcmixSize& s) {
  return side_of(s) >= 0 && (s.stride == 1 || (s.stride == 2 && s.dilation == 1));
}

// The maps of all heads at a pixel are 12 or 24 numbers, so that whole products of 16 read four pixels.
inline bool takes_shift(const AcmixSize& s, int64_t heads) {
  return s.kernel_conv == 3 && (s.G == 4 || s.G == 8) && s.stride <= 2 && heads * s.D() % s.G == 0 &&
         heads * s.D() / s.G % 8 == 0;
}

// Bytes from a row of the shift's maps to the next, so that eight walks, neighbours or `down` rows apart, lie
// in as different banks as can be.
inline int shift_row_pitch(int64_t least, int64_t down, int64_t across, int64_t pairs, int64_t walks) {
  int64_t best = 0, best_turns = 0;
  for (int64_t pitch = round_up(least, 16), end = pitch + 128; pitch < end; pitch += 16) {
    int64_t turns = 0;
    for (int64_t first = 0; first < std::min<int64_t>(walks, 16 * pairs); first += 8) {
      int64_t most = 0, at[8] = {};
      for (int64_t i = first; i < std::min(first + 8, walks); ++i)
        most = std::max(most, ++at[(i / pairs * down * pitch + i % pairs * across) / 16 % 8]);
      turns += most;
    }
    if (!best || turns < best_turns) best = pitch, best_turns = turns;
  }
  return int(best);
}

// Where things lie in shared memory, one after the other.
struct SharedBytes {
  int64_t at = 0;
  int take(int64_t bytes) {
    const int64_t from = at;
    at = round_up(at + bytes, 16);
    return int(from);
  }
};

// A tile and the grid of them, before anything lies in shared memory.
inline AcmixProductsPlan tile(const AcmixSize& s, int64_t down, int64_t across, int64_t heads) {
  AcmixProductsPlan p{};
  AcmixProductsLayout& l = p.layout;
  l.unit = int(s.dilation);
  l.rows = int(4 * s.dilation * down), l.cols = int(4 * s.dilation * across);
  l.across = l.cols / 4, l.groups = l.rows * l.cols / kProductsQueries;
  l.heads = int(heads), l.dims = int(round_up(s.D(), kProductsDims));
  l.tiles_x = int(ceil_div(s.Wo(), l.cols));
  l.region_rows = int((l.rows - 1) * s.stride + 1 + 2 * s.reach());
  l.region_cols = int((l.cols - 1) * s.stride + 1 + 2 * s.reach());
  l.by_across = divisor(l.across), l.by_cols = divisor(l.cols);
  l.by_tiles_x = divisor(l.tiles_x), l.by_heads = divisor(l.heads);
  p.grid_x = s.G / heads * l.tiles_x * ceil_div(s.Ho(), l.rows);
  p.grid_y = ceil_div(s.B, kMaxGridYZ);
  p.grid_z = std::min(s.B, kMaxGridYZ);
  return p;
}

// Of pixels' maps. Rows of 16 bytes at odd multiples of 16: eight in a row touch every bank once, and eight
// in two rows of a window as well.
inline void pitches(AcmixProductsLayout& l, int side) {
  const int channels = l.heads * l.dims;
  l.key_pitch = 4 * channels + 16;
  l.key_row_pitch = l.region_cols * l.key_pitch;
  while (l.unit == 1 && (l.key_row_pitch - side * l.key_pitch) % 128) l.key_row_pitch += 16;
  l.query_pitch = 2 * channels + 16;
}

// Its cost on a device, if that holds a block of it.
inline void weigh(AcmixProductsPlan& p, const BlockCost& cost, int registers, int64_t B,
                  const GpuLimits& device) {
  const int64_t resident = resident_blocks(device, p.threads, registers / 8 * 8, p.shared_bytes);
  p.serves = resident > 0 && p.shared_bytes <= device.shared_bytes && p.grid_x <= kMaxGrid &&
             p.grid_x * p.layout.tiles_x < int64_t(1) << 32;  // what by_tiles_x divides
  if (p.serves) p.cost = launch_clocks(cost, double(p.grid_x) * double(B), p.threads, resident, device);
}

// Of all tiles and heads, with so many threads or fewer.
template <class Plan, class OfTile>
Plan cheapest(const AcmixSize& s, const GpuLimits& device, int threads, int fewer, const OfTile& of_tile) {
  Cheapest<Plan> plans(device);
  for (int64_t heads = 1; heads <= s.G; ++heads) {
    if (s.G % heads || heads * round_up(s.D(), kProductsDims) > 256) continue;
    for (int64_t down = 1; down <= std::min<int64_t>(8, ceil_div(s.Ho(), 4 * s.dilation)); ++down)
      for (int64_t across = 1; across <= std::min<int64_t>(8, ceil_div(s.Wo(), 4 * s.dilation)); ++across) {
        plans.offer(of_tile(down, across, heads, threads));
        if (fewer < threads) plans.offer(of_tile(down, across, heads, fewer));
      }
  }
  return plans.taken();
}

inline AcmixProductsPlan of_tile(const AcmixSize& s, bool attention, bool shift, int64_t down, int64_t across,
                                 int64_t heads, int threads, MapReads reads, const GpuLimits& device) {
  AcmixProductsPlan p = tile(s, down, across, heads);
  if (shift && !takes_shift(s, heads)) return p;
  AcmixProductsLayout& l = p.layout;
  l.attention = attention, l.shift = shift;
  const int side = attention ? kProductsSides[side_of(s)] : 0, channels = l.heads * l.dims;
  SharedBytes shared;
  l.sum_pitch = 4 * channels + 16;
  l.sums_at = shared.take(int64_t(l.rows) * l.cols * l.sum_pitch);
  const int64_t either = shared.at;
  pitches(l, side);
  if (attention) {
    l.keys_at = shared.take(int64_t(l.region_rows) * l.key_row_pitch);
    l.queries_at = shared.take(int64_t(l.rows) * l.cols * l.query_pitch);
    l.offsets_at = shared.take(4 * int64_t(l.region_cols));
    l.tables_at = shared.take(16 * int64_t(side) * (l.rows / 4 + l.across));
    l.places_at = shared.take(2 * ceil_div(int64_t(side) * side, 16) * kWarp * 4);
    l.slopes_at = shared.take(int64_t(l.dims) / kProductsDims * kWarp * 8);
  }
  const int64_t of_attention = shared.at;
  shared.at = either;
  if (shift) {
    l.shift_dims = int(heads * s.D() / s.G);
    l.shift_rows = int((l.rows - 1) * s.stride + 3);
    l.shift_cols = int(round_up(l.cols * s.stride + 2, 2));
    l.pairs = int(s.stride == 1 ? l.cols / 2 : l.cols);
    l.pair_pitch = l.cols / l.pairs * l.sum_pitch;
    l.walks = l.pairs * l.rows / shift_walk(s.G), l.walk_groups = int(ceil_div(l.walks, 16));
    l.shift_row_pitch =
        shift_row_pitch(l.shift_cols * 6 * s.G, shift_walk(s.G) * s.stride, 12 * s.G, l.pairs, l.walks);
    l.shift_pitch = l.shift_rows * l.shift_row_pitch;
    l.shift_at_once = l.shift_dims % 16 ? 8 : 16;
    while (true) {
      shared.at = either;
      shared.take((int64_t(l.shift_pitch) * 8 + 64) * (l.shift_at_once / 8));
      if (shared.at <= std::max(of_attention, device.shared_bytes / 2) || l.shift_at_once == 8) break;
      l.shift_at_once = 8;
    }
  }
  p.shared_bytes = std::max(shared.at, of_attention);
  l.by_shift_cols = divisor(std::max(l.shift_cols, 1)), l.by_pairs = divisor(std::max(l.pairs, 1));
  p.side = side_for(s, attention), p.threads = threads;

  const double tiles = double(ceil_div(side * side, 8)), groups = double(l.dims) / kProductsDims;
  const double tasks = double(l.groups) * l.heads, pixels = double(l.rows) * l.cols,
               region = double(l.region_rows) * l.region_cols,
               shift_pixels = double(l.shift_rows) * l.shift_cols;
  BlockCost cost{pixels * channels / 8 / kWarp * 30, pixels * channels * 8 / 128, pixels * channels * 2, 0};
  if (attention) {
    cost.instructions += tasks * (250 + 50 * tiles + groups * (8 * tiles + 100));
    add_reads(cost, reads, l.region_rows, l.region_cols, s.reach(), 2 * channels);
    add_reads(cost, reads, l.rows, l.cols, 0, channels);
    cost.passes +=
        tasks * (4 * tiles + groups * (4.5 * tiles + 24)) + (region * 4 + pixels * 2) * channels / 128;
    cost.bytes += (region * 4 + pixels * 2) * channels;
    cost.products += tasks * (tiles + groups * (1 + 3 * tiles));
  }
  if (shift) {
    const double walks = double(l.shift_dims) * l.walk_groups * double(s.G) / 4;
    // Half as often as for other maps, by the profiler's counts.
    cost.reads += waits_for(reads, l.shift_rows, l.shift_cols, 1, 3 * s.G * l.shift_dims) / 2;
    cost.products += walks * 72;
    cost.instructions += shift_pixels * 3 * l.shift_dims / 8 / kWarp * 60 + walks * 240;
    cost.passes += shift_pixels * 6 * s.G * l.shift_dims / 128 * 3 + walks * 6 * double(s.G);
    cost.bytes +=
        shift_pixels * 6 * s.G * l.shift_dims * (l.shift_at_once == 8 ? 2 : 1) + l.shift_dims * 4600.;
  }
  weigh(p, cost, 65536 / products_threads(kProductsSides[p.side], device.arch < 80), s.B, device);
  return p;
}

}  // namespace acmix_products

// The cheapest tile; serves is false where none does.
inline AcmixProductsPlan acmix_plan_products(const AcmixSize& s, bool attention, bool shift, bool bfloat16,
                                             MapReads reads, const GpuLimits& device) {
  using namespace acmix_products;
  if (!takes_maps(s, bfloat16, device) || (attention && !takes_windows(s))) return {};
  const int most = products_threads(kProductsSides[side_for(s, attention)], device.arch < 80);
  return cheapest<AcmixProductsPlan>(
      s, device, most, 256, [&](int64_t down, int64_t across, int64_t heads, int threads) {
        return of_tile(s, attention, shift, down, across, heads, threads, reads, device);
      });
}

}  // namespace lska_ops
