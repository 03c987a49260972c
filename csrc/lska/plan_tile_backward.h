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
  int channels = 0, slots = 0;                                      // of a block: its threads
  int row_pitch = 0, channel_pitch = 0;                             // of the shared map, in floats
  int staged_pitch = 0, staged_channel = 0, staged_ds_channel = 0;  // NCHW: of x and ds there, in elements
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
// In channels_last a thread walks along two channels together, where its windows leave room for both.
constexpr bool walked_together(int k1) { return k1 <= 5; }
inline int tile_backward_together(int pair, bool channels_last) {
  return channels_last && walked_together(kPairs[pair].k1) ? 2 : 1;
}

// Of a thread at most, on every architecture; tests/test_cuda_build.py compares.
inline int tile_backward_registers(int pair, bool channels_last) {
  return channels_last || kPairs[pair].k1 > 5 ? 168 : 128;
}

// The tile's shared memory and threads; false where they do not fit.
inline bool set_tile_backward(LskaTileBackwardPlan& p, const LskaSize& s, bool channels_last, int64_t element,
                              const GpuLimits& device, int64_t rows, int64_t cols, int64_t channels,
                              int64_t slots) {
  const PublishedPair& k = kPairs[p.pair];
  const int64_t r0 = k.k0 / 2, reach = r0 + k.k1 / 2 * k.dilation, values = k.k0 + k.k1 + 1;
  const int64_t map_rows = rows + 2 * r0, map_cols = std::min(s.W, cols + 2 * reach);
  // What passes is small enough for every int here.
  if (map_rows * map_cols > device.shared_bytes / (4 * channels)) return false;
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
    // A warp has lines of several channels, all in different banks: the rows, or columns, of the next channel
    // go on where those of this one end.
    const auto ending = [&](int64_t n, int64_t banks) { return n + (banks - n % kWarp + 2 * kWarp) % kWarp; };
    p.row_pitch = int(odd(map_cols));
    for (int more = 0; channels > 1 && more <= 8; more += 2)
      if (slots * (odd(map_cols) + more - 1) % kWarp == 0) {
        p.row_pitch = int(odd(map_cols)) + more;
        break;
      }
    p.channel_pitch = int(ending(p.row_pitch * map_rows, slots % kWarp));
    // From a multiple of 16 bytes to the next one.
    const int64_t staged_cols = p.tiles_x == 1 ? s.W : std::min(s.W, map_cols + 14), words = 4 / element;
    const int64_t pitch = odd(ceil_div(staged_cols, words)), ds_rows = std::min(s.H, rows + 2 * reach);
    p.staged_pitch = int(words * pitch);
    p.staged_channel = int(words * ending(pitch * map_rows, slots * pitch % kWarp));
    p.staged_ds_channel = int(words * ending(pitch * ds_rows, ceil_div(slots, words) % kWarp));
    floats = channels * p.channel_pitch + values * p.threads();
    staged = channels * element * (p.staged_channel + p.staged_ds_channel);
  }
  floats += (cols + k.k1 + 2 * (k.k0 + k.k1 + 2)) * channels + kMaxThreads / kWarp;
  p.shared_bytes = 4 * floats + staged;
  p.grid_x = ceil_div(s.C, channels);
  p.grid_y = ceil_div(s.H, rows) * p.tiles_x;
  p.grid_z = s.B;
  return p.shared_bytes <= device.shared_bytes && p.grid_y <= kMaxGridYZ && p.grid_z <= kMaxGridYZ;
}

// What the compiled kernels take for each part of their work, by least squares from what `make profile`
// counted of them: a step of a line for each multiply-add and, more, where it adds to sums; each place that
// is read before a line begins; a line; an output and a staged value of each lane; a warp.
struct TileBackwardCosts {
  double tap, with_sums, early, line, output, staged, own;
};
constexpr TileBackwardCosts kNhwcInstructions = {1.14, 0, 13, 154, 31.8, 0, 708};
constexpr TileBackwardCosts kNhwcClocks = {0, 25.6, 44.6, 709, 154, 0, 1250};
constexpr TileBackwardCosts kNchwInstructions = {0.79, 13.1, 20, 9.2, 20.8, 8, 1155};
constexpr TileBackwardCosts kNchwClocks = {0, 7.2, 64.3, 1144, 273, 0, 0};

// Of a tile's block: instructions that its warps have a multiprocessor issue; clocks of the warp with most
// lines, if nothing holds it up.
struct TileBackwardWork {
  double instructions, clocks;
};
inline TileBackwardWork tile_backward_work(const LskaTileBackwardPlan& p, const LskaSize& s,
                                           bool channels_last) {
  const PublishedPair& k = kPairs[p.pair];
  const TileBackwardCosts& instructions = channels_last ? kNhwcInstructions : kNchwInstructions;
  const TileBackwardCosts& clocks = channels_last ? kNhwcClocks : kNchwClocks;
  const int64_t r0 = k.k0 / 2, r1 = k.k1 / 2 * k.dilation, reach = r0 + r1;
  const int64_t rows = p.tile_rows, cols = p.tile_cols;
  const int64_t map_rows = around(rows, r0, s.H), map_cols = around(cols, reach, s.W);
  const int64_t lanes = p.channels / p.together, warps = p.threads() / kWarp;
  TileBackwardWork work = {};
  // `many` lines of a channel, each of `n` steps; a warp takes part in a turn if one of its lanes does.
  const auto lines = [&](int64_t many, int64_t n, bool sums) {
    const int64_t whole = many / p.slots, rest = many - whole * p.slots;
    const int64_t last =
        channels_last ? ceil_div(rest * lanes, kWarp) : std::min(warps, lanes * ceil_div(rest, kWarp));
    const double steps = double(n), taps = p.together * (sums ? 2 * (k.k0 + k.k1) + k.k0 + 2 : k.k0 + k.k1);
    const auto of = [&](const TileBackwardCosts& c) {
      return steps * (c.tap * taps + (sums ? c.with_sums : 0)) + c.early * double(2 * r1 + 3 * r0) + c.line;
    };
    work.instructions += double(whole * warps + last) * of(instructions);
    work.clocks += double(whole + (rest > 0)) * of(clocks);
  };
  lines(map_rows, around(cols, r1, s.W), false);
  lines(cols, rows + r0, true);
  lines(map_cols - cols, rows + r0, false);
  lines(rows, cols + r0, true);
  const double outputs = double(rows * cols * p.channels) / kWarp;
  const double staged =
      channels_last ? 0 : double((map_rows + around(rows, reach, s.H)) * map_cols * p.channels) / kWarp;
  const auto of = [&](const TileBackwardCosts& c, double units) {
    return (c.output * outputs + c.staged * staged) / units + c.own * double(warps) / units;
  };
  work.instructions += of(instructions, 1);
  work.clocks += of(clocks, double(warps));
  return work;
}

// Clocks of all blocks, on the multiprocessor that has most of them.
inline double tile_backward_clocks(const LskaTileBackwardPlan& p, const LskaSize& s, bool channels_last,
                                   const GpuLimits& device) {
  const int64_t resident =
      resident_blocks(device, p.threads(), tile_backward_registers(p.pair, channels_last), p.shared_bytes);
  const int64_t most = ceil_div(p.grid_x * p.grid_y * p.grid_z, device.multiprocessors);
  const TileBackwardWork block = tile_backward_work(p, s, channels_last);
  const double issue = block.instructions / 4 * double(most);
  const double latency = block.clocks * double(ceil_div(most, resident));
  return std::max(issue, latency) + 0.1 * std::min(issue, latency);
}

}  // namespace lska_plan

// The fastest of the tiles that fit.
inline LskaTileBackwardPlan lska_plan_tile_backward(const LskaSize& s, bool channels_last, int64_t element,
                                                    const GpuLimits& device) {
  using namespace lska_plan;
  LskaTileBackwardPlan best;
  const int pair = published_pair(s);
  if (pair < 0 || s.B * s.C * s.H * s.W == 0 || s.B * s.C * s.H * s.W >= int64_t(1) << 31) return best;
  if (s.C % tile_backward_together(pair, channels_last)) return best;
  const PublishedPair& k = kPairs[pair];
  const int64_t r0 = k.k0 / 2, reach = r0 + k.k1 / 2 * k.dilation;
  const int64_t even = channels_last ? 4 : 1;  // lines of a warp
  double least = 1e300;
  for (int64_t down = 1; down <= 16; ++down) {
    const int64_t rows = ceil_div(s.H, down);
    if (down > 1 && rows < 8) break;
    for (int64_t across = 1; across <= 16; ++across) {
      const int64_t cols = ceil_div(s.W, across);
      if (across > 1 && cols < 8) break;
      for (const int64_t lines : {around(rows, r0, s.H), rows, around(cols, reach, s.W), cols})
        for (int64_t turns = 1; turns <= 6; ++turns) {
          const int64_t slots = round_up(ceil_div(lines, turns), even);
          for (int64_t channels = channels_last ? kBackwardChannels : 1; channels <= kBackwardChannels;
               channels *= 2) {
            LskaTileBackwardPlan p;
            p.pair = pair;
            if (!set_tile_backward(p, s, channels_last, element, device, rows, cols, channels, slots))
              continue;
            const double clocks = tile_backward_clocks(p, s, channels_last, device);
            if (clocks < least) least = clocks, best = p;
          }
        }
    }
  }
  return best;
}

}  // namespace lska_ops
