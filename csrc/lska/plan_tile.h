// How the cascade's forward is spread over a GPU in tiles: from sizes, layout and the device's limits to a
// kernel, its grid, threads and shared memory; or to none where the kernels of plan.h serve. One tile family
// serves all dtypes, which then agree bit for bit but for the rounding at the end.
#pragma once

#include <cmath>

#include "csrc/common/divisor.h"
#include "csrc/lska/plan.h"

namespace lska_ops {

constexpr int kForwardChunk = 4;  // neighbours in a row that NCHW kernels load at once

// What the kernels read of a plan.
struct LskaForwardTile {
  int rows, cols;  // of a block's outputs
  int tiles_x;
  int pair_bits;           // channels_last: a block has 2^pair_bits pairs of channels
  int planes;              // NCHW: of one block, whole ones if several
  int x_pitch, map_pitch;  // NCHW: chunks, and pairs of floats, from one row to the next
  Divisor by_tiles_x;
  Divisor by_chunks, by_lines, by_rows, by_cols, by_pairs, by_parts;  // NCHW
};

// A kernel: the convolutions it unrolls, the channels of a block (channels_last), the columns and rows that a
// thread walks, residues of the dilation that share a column; whether walks down, in NCHW and in square maps
// walks across too, must have the whole map; threads at most.
struct LskaForwardShape {
  int k0, k1, dilation, channels, across, down, step;
  bool whole;
  int threads;
  int registers() const {  // about
    if (k1 <= (channels ? 5 : 7)) return channels ? 88 : 80;
    if (channels == 0 && k1 <= 13) return 96;
    return threads > 384 ? 128 : 168;
  }
  bool rows_whole() const { return whole && (channels == 0 || down == across); }
  int64_t reach0() const { return k0 / 2; }
  int64_t reach1() const { return k1 / 2 * dilation; }
  int64_t reach() const { return reach0() + reach1(); }
};

struct LskaForwardPlan {
  int shape = -1;  // in the layout's list; -1: none serves
  int64_t grid_x = 0, grid_y = 1, grid_z = 1;
  int threads = 0;
  int64_t shared_bytes = 0;
  LskaForwardTile tile{};
  double cost = 1e300;
};

// The kernels of each layout; cuda_tiles_*.cu compile them. Each published pair of convolutions has one for
// maps from 20 x 20 on; in channels_last k 35 and more one of 8 channels too, for GPUs whose shared memory
// holds no other. Where residues share columns there are longer walks, and for yolo11's maps walks that
// have all of a line: they test little.
constexpr LskaForwardShape kForwardNhwc[] = {
    {3, 3, 2, 16, 20, 20, 1, false, 384},  {3, 5, 2, 16, 20, 20, 1, false, 384},
    {5, 7, 3, 16, 20, 20, 3, false, 512},  {5, 7, 3, 16, 20, 40, 3, false, 512},
    {5, 7, 3, 16, 20, 20, 3, true, 512},   {5, 7, 3, 16, 20, 40, 3, true, 512},
    {5, 7, 3, 16, 20, 80, 3, true, 512},   {5, 11, 3, 16, 20, 20, 3, false, 384},
    {5, 11, 3, 16, 20, 40, 3, false, 384}, {5, 13, 3, 16, 20, 20, 3, false, 384},
    {5, 13, 3, 16, 20, 40, 3, false, 384}, {5, 17, 3, 16, 20, 20, 3, false, 384},
    {5, 17, 3, 16, 20, 40, 3, false, 384}, {5, 17, 3, 16, 20, 20, 3, true, 384},
    {5, 17, 3, 16, 20, 40, 3, true, 384},  {5, 17, 3, 16, 20, 80, 3, true, 384},
    {5, 17, 3, 8, 20, 80, 3, true, 384},   {5, 11, 3, 8, 20, 20, 3, false, 384},
    {5, 13, 3, 8, 20, 20, 3, false, 384},  {5, 17, 3, 8, 20, 20, 3, false, 384},
};
constexpr LskaForwardShape kForwardNchw[] = {
    {3, 3, 2, 0, 20, 20, 1, false, 384},  {3, 5, 2, 0, 20, 20, 1, false, 384},
    {5, 7, 3, 0, 20, 20, 3, false, 512},  {5, 7, 3, 0, 40, 40, 3, false, 512},
    {5, 7, 3, 0, 20, 20, 3, true, 512},   {5, 7, 3, 0, 40, 40, 3, true, 512},
    {5, 7, 3, 0, 80, 80, 3, true, 512},   {5, 11, 3, 0, 20, 20, 3, false, 512},
    {5, 11, 3, 0, 40, 40, 3, false, 512}, {5, 13, 3, 0, 20, 20, 3, false, 512},
    {5, 13, 3, 0, 40, 40, 3, false, 512}, {5, 17, 3, 0, 20, 20, 3, false, 512},
    {5, 17, 3, 0, 40, 40, 3, false, 512}, {5, 17, 3, 0, 20, 20, 3, true, 512},
    {5, 17, 3, 0, 40, 40, 3, true, 512},  {5, 17, 3, 0, 80, 80, 3, true, 512},
};
constexpr int kForwardNhwcShapes = int(sizeof kForwardNhwc / sizeof kForwardNhwc[0]);
constexpr int kForwardNchwShapes = int(sizeof kForwardNchw / sizeof kForwardNchw[0]);

namespace lska_plan {

// Rows or columns that all tiles of a line of `length` read or walk together: `size` each, the last
// overlapping, and `reach` more on either side within the line.
inline int64_t all_tiles(int64_t length, int64_t size, int64_t reach) {
  int64_t sum = 0;
  for (int64_t first = 0; first < length; first += size) {
    const int64_t begin = std::min(first, length - size);
    sum += std::min(length, begin + size + reach) - std::max<int64_t>(0, begin - reach);
  }
  return sum;
}

// Multiply-adds for each output of a line that is walked in parts of `walk`.
inline double walked(const LskaForwardShape& k, int64_t length, int64_t tile, int64_t walk) {
  const double places = double(tile) / double(walk) * double(ceil_div(length, tile));
  const double middles =
      std::min<double>(double(all_tiles(length, walk, k.reach1())), places * double(walk + 2 * k.reach1()));
  return (k.k0 * middles + k.k1 * places * double(walk)) / double(length);
}

// Fills in what it takes to run `p.tile` with kernel k; false if it does not fit. Cost: what a multiprocessor
// executes for each output of its share, more where it has few warps.
inline bool judge(LskaForwardPlan& p, const LskaForwardShape& k, const LskaSize& s, bool channels_last,
                  int64_t row_items, int64_t column_items, const GpuLimits& device) {
  if (p.shared_bytes > device.shared_bytes || p.grid_x > kMaxGrid || p.grid_y > kMaxGridYZ ||
      p.grid_z > kMaxGridYZ)
    return false;
  const int64_t tiles_x = p.tile.tiles_x;
  const double rows_again = double(all_tiles(s.H, p.tile.rows, k.reach())) / double(s.H);
  const double cols_again = double(tiles_x * p.tile.cols) / double(s.W);
  const double overhead = k.whole ? 6 : 8 + 2.0 * double(k.reach()) / k.down;
  const double across =
      (walked(k, s.W, p.tile.cols, k.across) + 8 + 3.0 * double(k.reach()) / k.across) * rows_again;
  const double down = (walked(k, s.H, p.tile.rows, k.down) + overhead) * cols_again;
  const int64_t blocks = p.grid_x * p.grid_y * p.grid_z;
  const double reads = rows_again * double(all_tiles(s.W, p.tile.cols, k.reach())) / double(s.W);
  // Blocks are not divided: the multiprocessor with most of them takes longest. Of a single image, which
  // somebody waits for, every one shall have some.
  const double all = double(device.multiprocessors) / double(blocks);
  const double most = double(ceil_div(blocks, device.multiprocessors)) * all;
  const double idle = s.B == 1 ? most * std::max(1.0, all * all) : most;
  // Channels that do not fill a sector cost more than their instructions.
  const double sectors = channels_last ? 1 + 0.4 * (3 - p.tile.pair_bits) : 1;
  for (int threads = 128; threads <= k.threads; threads += kWarp) {
    const int64_t resident = std::min(resident_blocks(device, threads, k.registers(), p.shared_bytes),
                                      ceil_div(blocks, device.multiprocessors));
    if (resident == 0) continue;
    const double warps = double(resident * threads / kWarp);
    const auto turns = [&](int64_t items) {
      return double(ceil_div(items, threads) * threads) / double(items);
    };
    const double cost =
        (12 * reads + across * (0.8 + 0.2 * turns(row_items)) + down * (0.8 + 0.2 * turns(column_items))) *
        idle * sectors * (1 + std::max(0.0, 16 - warps) / 24);
    if (cost < p.cost) {
      p.cost = cost;
      p.threads = threads;
    }
  }
  return p.threads > 0;
}

inline void tiles_of(LskaForwardPlan& p, const LskaSize& s, int64_t rows, int64_t cols) {
  p.tile.rows = int(rows);
  p.tile.cols = int(cols);
  p.tile.tiles_x = int(ceil_div(s.W, cols));
  p.tile.by_tiles_x = divisor(p.tile.tiles_x);
  p.grid_y = ceil_div(s.H, rows) * p.tile.tiles_x;
}

inline int64_t taps_and_biases(const LskaForwardShape& k) { return 2 * (k.k0 + k.k1 + 2); }

inline void tile_of_channels(LskaForwardPlan& best, int shape, const LskaSize& s, int64_t rows, int pair_bits,
                             const GpuLimits& device) {
  const LskaForwardShape& k = kForwardNhwc[shape];
  LskaForwardPlan p;
  p.shape = shape;
  tiles_of(p, s, rows, k.across);
  p.tile.pair_bits = pair_bits;
  p.grid_x = ceil_div(s.C, 2 << pair_bits);
  p.grid_z = s.B;
  const int64_t region = std::min(s.H, rows + 2 * k.reach()), pitch = odd(k.across) * k.channels;
  p.shared_bytes = 4 * ((taps_and_biases(k) + k.across) * (k.channels + 2) + region * pitch);
  if (judge(p, k, s, true, region << pair_bits, (rows / k.down * k.step * k.across) << pair_bits, device) &&
      p.cost < best.cost)
    best = p;
}

inline void tile_of_planes(LskaForwardPlan& best, int shape, const LskaSize& s, int64_t element, int64_t rows,
                           int64_t cols, int64_t planes, const GpuLimits& device) {
  const LskaForwardShape& k = kForwardNchw[shape];
  LskaForwardPlan p;
  p.shape = shape;
  tiles_of(p, s, rows, cols);
  p.grid_x = ceil_div(s.planes(), planes);
  const int64_t region = std::min(s.H, rows + 2 * k.reach()), halo = round_up(k.reach(), kForwardChunk);
  const int64_t chunks = std::min(s.W, cols + 2 * halo) / kForwardChunk, lines = planes * region;
  const int64_t parts = rows / k.down * k.step;
  LskaForwardTile& t = p.tile;
  t.planes = int(planes);
  t.x_pitch = int(odd(chunks));
  t.map_pitch = int(odd(cols / 2));
  t.by_chunks = divisor(chunks);
  t.by_lines = divisor(lines);
  t.by_rows = divisor(planes > 1 ? s.H : region);
  t.by_cols = divisor(cols);
  t.by_pairs = divisor(cols / 2);
  t.by_parts = divisor(parts);
  const int64_t map = round_up(lines * t.map_pitch, 2) * 8;
  const int64_t of_taps = round_up(planes * odd(taps_and_biases(k)), 4) * 4 + planes * cols * 4;
  p.shared_bytes = of_taps + map + lines * t.x_pitch * kForwardChunk * element;
  if (judge(p, k, s, false, lines * (cols / k.across), planes * parts * (cols / 2), device) &&
      p.cost < best.cost)
    best = p;
}

}  // namespace lska_plan

// `element`: bytes of a number.
inline LskaForwardPlan lska_plan_tiles(const LskaSize& s, bool channels_last, int64_t element,
                                       const GpuLimits& device) {
  LskaForwardPlan best;
  if (s.B * s.C * s.H * s.W == 0 || s.C % (channels_last ? 2 : 1) ||
      s.W % (channels_last ? 1 : kForwardChunk) || s.H > (1 << 20) || s.W > (1 << 20))
    return best;
  for (int shape = 0; shape < (channels_last ? kForwardNhwcShapes : kForwardNchwShapes); ++shape) {
    const LskaForwardShape& k = channels_last ? kForwardNhwc[shape] : kForwardNchw[shape];
    if (best.shape >= 0 && k.channels == 8 && !k.whole) continue;
    if (k.k0 != s.k0 || k.k1 != s.k1 || k.dilation != s.dilation || s.H < k.down || s.W < k.across) continue;
    if (k.whole && (s.H != k.down || (k.rows_whole() && s.W != k.across))) continue;
    for (int64_t rows = k.down; rows <= std::min<int64_t>(s.H, 160); rows += k.down) {
      if (channels_last) {
        for (int pair_bits = k.channels == 8 ? 2 : 3; pair_bits > 0; --pair_bits)
          lska_plan::tile_of_channels(best, shape, s, rows, pair_bits, device);
        continue;
      }
      for (int64_t cols = k.across; cols <= std::min<int64_t>(s.W, 160); cols += k.across)
        for (int64_t planes = 1; planes <= (rows == s.H && cols == s.W ? 32 : 1); ++planes)
          lska_plan::tile_of_planes(best, shape, s, element, rows, cols, planes, device);
    }
  }
  return best;
}

}  // namespace lska_ops
