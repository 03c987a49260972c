// How the tile kernels of the cascade's backward are spread over a GPU: a pure function of sizes, layout and
// limits.
#pragma once

#include <iterator>

#include "csrc/lska/plan.h"

namespace lska_ops {

constexpr int kBackwardChannels = 16;  // of a block in channels_last: a sector of halves

struct LskaTileBackwardPlan {
  int pair = -1;                               // which of the published pairs; -1: no tile kernel serves
  int64_t grid_x = 0, grid_y = 1, grid_z = 1;  // groups of channels, tiles, images
  int tile_rows = 0, tile_cols = 0, tiles_x = 1;
  int channels = 0, slots = 0;  // of a block: its threads
  int row_pitch = 0, channel_pitch = 0, staged_pitch = 0, staged_channel = 0;
  int64_t shared_bytes = 0;
  int together = 1;  // channels that a thread walks along together
  int threads() const { return int(round_up(channels / together * slots, kWarp)); }
  bool serves() const { return pair >= 0; }
  int64_t parts() const { return grid_y * grid_z; }
};

namespace lska_plan {

struct PublishedPair {
  int k0, k1, dilation;
};
constexpr PublishedPair kPairs[] = {{3, 3, 2}, {3, 5, 2}, {5, 7, 3}, {5, 11, 3}, {5, 13, 3}, {5, 17, 3}};

inline int published_pair(const LskaSize& s) {
  for (int i = 0; i < int(std::size(kPairs)); ++i)
    if (s.k0 == kPairs[i].k0 && s.k1 == kPairs[i].k1 && s.dilation == kPairs[i].dilation) return i;
  return -1;
}

// Places of a tile and its halo on one axis, at most.
inline int64_t around(int64_t tile, int64_t reach, int64_t length) {
  if (tile >= length) return length;
  return std::min(length, tile + (length < 2 * tile + reach ? std::min(reach, length - tile) : 2 * reach));
}

constexpr int kBackwardThreads = 384;  // of a block at most
inline int tile_backward_together(int pair, bool channels_last) {
  return channels_last && kPairs[pair].k1 <= 5 ? 2 : 1;
}

// The tile's shared memory and threads; false where they do not fit.
inline bool set_tile_backward(LskaTileBackwardPlan& p, const LskaSize& s, bool channels_last, int64_t element,
                              const GpuLimits& device, int64_t rows, int64_t cols, int64_t channels,
                              int64_t slots) {
  const PublishedPair& k = kPairs[p.pair];
  const int64_t r0 = k.k0 / 2, reach = r0 + k.k1 / 2 * k.dilation, values = k.k0 + k.k1 + 1;
  const int64_t map_rows = rows + 2 * r0, map_cols = std::min(s.W, cols + 2 * reach);
  p.channels = int(channels), p.slots = int(slots),
  p.together = tile_backward_together(p.pair, channels_last);
  if (p.threads() > kBackwardThreads) return false;
  p.tile_rows = int(rows), p.tile_cols = int(cols), p.tiles_x = int(ceil_div(s.W, cols));
  int64_t floats, staged = 0;
  if (channels_last) {
    p.row_pitch = int(odd(map_cols) * channels);  // two rows of a warp in different banks
    p.channel_pitch = 0;
    floats = p.row_pitch * map_rows + values * p.threads() / 2;
  } else {
    p.row_pitch = int(odd(map_cols));
    p.channel_pitch = int(p.row_pitch * map_rows);
    p.staged_pitch = int(element == 4 ? odd(map_cols) : 2 * odd(ceil_div(map_cols, 2)));
    p.staged_channel = int(p.staged_pitch * map_rows);
    floats = channels * p.channel_pitch + values * p.threads();
    staged = channels * element * (p.staged_channel + p.staged_pitch * std::min(s.H, rows + 2 * reach));
  }
  floats += (cols + k.k1) * channels + kMaxThreads / kWarp;
  p.shared_bytes = 4 * floats + staged;
  p.grid_x = ceil_div(s.C, channels);
  p.grid_y = ceil_div(s.H, rows) * p.tiles_x;
  p.grid_z = s.B;
  return p.shared_bytes <= device.shared_bytes && p.grid_y <= kMaxGridYZ && p.grid_z <= kMaxGridYZ;
}

}  // namespace lska_plan

// The cheapest of the tiles that fit, by what a multiprocessor executes for each output of its share.
inline LskaTileBackwardPlan lska_plan_tile_backward(const LskaSize& s, bool channels_last, int64_t element,
                                                    const GpuLimits& device) {
  using namespace lska_plan;
  LskaTileBackwardPlan best;
  const int pair = published_pair(s);
  if (pair < 0 || s.B * s.C * s.H * s.W == 0 || s.B * s.C * s.H * s.W >= int64_t(1) << 31) return best;
  if (s.C % tile_backward_together(pair, channels_last)) return best;
  const PublishedPair& k = kPairs[pair];
  const int64_t r0 = k.k0 / 2, r1 = k.k1 / 2 * k.dilation, reach = r0 + r1;
  const double taps = k.k0 + k.k1, with_sums = 2.5 * taps + 15, without = taps + 12;
  double least = 1e300;
  for (int64_t down = 1; down <= 16; ++down) {
    const int64_t rows = ceil_div(s.H, down);
    if (down > 1 && rows < 10) break;
    for (int64_t across = 1; across <= 16; ++across) {
      const int64_t cols = ceil_div(s.W, across);
      if (across > 1 && cols < 10) break;
      // Whole planes are read once; they are cut only where they do not fit, or leave multiprocessors idle.
      if (!channels_last && down * across > 1 && best.serves() && best.tiles_x == 1 && best.grid_y == 1 &&
          best.grid_x * best.grid_z >= device.multiprocessors)
        return best;
      const int64_t map_rows = around(rows, r0, s.H), map_cols = around(cols, reach, s.W);
      const double cost = (double(map_rows) * (double(around(cols, r1, s.W)) * without + 12) +
                           double(cols) * (double(rows + r0) * with_sums + 6 * double(r1)) +
                           double(map_cols - cols) * (double(rows + r0) * without + 6 * double(r1)) +
                           double(rows) * (double(cols + r0) * with_sums + 6 * double(r1))) /
                          double(rows * cols);
      // x twice where it is not staged, ds, all with their halos: what is read again costs more than its
      // loads.
      const double reads =
          double(map_cols) * double(map_rows + around(rows, reach, s.H)) / double(rows * cols);
      for (int64_t rounds = 1; rounds <= 8; ++rounds) {
        const int64_t lines = std::max(map_rows, map_cols), even = channels_last ? 4 : 1;
        const int64_t slots = round_up(ceil_div(lines, rounds), even);
        for (int64_t channels = channels_last ? kBackwardChannels : 1; channels <= kBackwardChannels;
             channels *= 2) {
          LskaTileBackwardPlan p;
          p.pair = pair;
          if (!set_tile_backward(p, s, channels_last, element, device, rows, cols, channels, slots)) continue;
          const auto turns = [&](int64_t n) { return double(ceil_div(n, slots) * slots) / double(n); };
          const double idle = (turns(map_rows) + turns(map_cols) + turns(rows)) / 3;
          const double blocks = double(p.grid_x * p.grid_y * p.grid_z), all = double(device.multiprocessors);
          const int64_t resident =
              std::min({(device.shared_bytes + 1024) / (p.shared_bytes + 1024),
                        int64_t(65536 / (168 * p.threads())), int64_t(1024 / p.threads())});
          if (resident == 0) continue;
          const double warps = double(resident * p.threads() / kWarp);
          const double lanes = double(p.threads()) / double(channels / p.together * slots);
          const double judged = (cost + 25 * reads) * lanes * (0.8 + 0.2 * idle) *
                                std::max(1., all / blocks) * (1 + std::max(0., 14 - warps) / 16);
          if (judged < least) least = judged, best = p;
        }
      }
    }
  }
  return best;
}

}  // namespace lska_ops
