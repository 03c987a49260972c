// How a cascade is spread over a GPU: one pure function each for forward and backward, from sizes and the
// device's limits to kernel, grid, block and shared memory. The CUDA launcher, the host-run tests and
// lska_ops._plan use it.
//
// plane   a block owns whole planes, or a tile of one with the halo its taps reach, in shared memory; in
//         channels_last the planes are neighbouring channels of one image, and tiles may be of several
// stream  a block walks down a strip of columns of one plane; rings of rows hold what the vertical taps reach
//         (not in channels_last, where a pixel of one channel is a small part of what is read for it)
// stages  nothing of the above fits: each convolution by itself, through global memory
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <algorithm>

#include "csrc/common/gpu.h"

namespace lska_ops {

constexpr int kRun = 8;        // outputs of one line that a thread computes together
constexpr int kStreamRun = 4;  // the same for the columns of a stream, whose steps have few rows

struct LskaSize {
  int64_t B, C, H, W, k0, k1, dilation;  // k1 = 0: LSKA-trivial
  bool channels_last = false;            // how its maps lie in memory
  int64_t planes() const { return B * C; }
  auto operator<=>(const LskaSize&) const = default;
};

// One of the four convolutions along its axis, without the taps that reach no pixel however they are placed.
struct LskaStage {
  int k, used, dilation;
  int skip, reach;  // taps left out on either side; pixels reached on either side
};

struct LskaStages {
  LskaStage h0, h1, v0, v1;
  int reach_h() const { return h0.reach + h1.reach; }
  int reach_v() const { return v0.reach + v1.reach; }
  int taps() const { return std::max(std::max(h0.used, h1.used), std::max(v0.used, v1.used)); }
};

enum class LskaKernel { plane, stream, stages };

struct LskaPlan {
  LskaKernel kernel = LskaKernel::stages;
  int64_t grid_x = 0, grid_y = 1, grid_z = 1;  // groups of planes, bands of rows, strips of columns
  int threads = 0;
  int64_t shared_bytes = 0;
  int planes = 1;             // of one block
  int band = 0, strip = 0;    // rows and columns of a block's outputs
  int rows = 0, cols = 0;     // the largest region a block loads, halo included
  int pitch = 0;              // floats between rows: odd, so that a column of rows falls into different banks
  int threads_per_plane = 0;  // backward: whole warps, which reduce one plane's sums
  int step = 0;               // stream: rows that enter at a time
};

namespace lska_plan {

inline LskaStage stage(int64_t k, int64_t dilation, int64_t length) {
  if (k == 0) return {0, 0, 1, 0, 0};
  const int64_t d = std::clamp<int64_t>(dilation, 1, std::max<int64_t>(length, 1));
  const int64_t used = std::min(k, 2 * ((length - 1) / d) + 1);
  return {int(k), int(used), used > 1 ? int(d) : 1, int(k - used) / 2, int(used / 2 * d)};
}

inline LskaStages stages(const LskaSize& s) {
  return {stage(s.k0, 1, s.W), stage(s.k1, s.dilation, s.W), stage(s.k0, 1, s.H),
          stage(s.k1, s.dilation, s.H)};
}

// Runs of a line: each starts at one of the `dilation` residues and takes every dilation-th position.
constexpr int64_t runs(int64_t length, int64_t dilation, int64_t run) {
  return dilation * ceil_div(ceil_div(length, dilation), run);
}

// Threads for a region of which every thread computes one run per stage.
inline int64_t threads(const LskaStages& g, int64_t planes, int64_t rows, int64_t cols) {
  int64_t most = 0;
  for (const LskaStage& s : {g.h0, g.h1}) most = std::max(most, planes * rows * runs(cols, s.dilation, kRun));
  for (const LskaStage& s : {g.v0, g.v1}) most = std::max(most, planes * cols * runs(rows, s.dilation, kRun));
  return round_up(most, kWarp);
}

constexpr int64_t odd(int64_t n) { return n | 1; }
inline int64_t tap_pitch(const LskaStages& g) { return round_up(g.taps(), 4); }

// Of one plane: its region, taps, the bias along columns, and four biases.
inline int64_t forward_floats(const LskaStages& g, int64_t rows, int64_t cols) {
  return rows * odd(cols) + 4 * tap_pitch(g) + cols + 4;
}
// Of one plane: taps in both directions and what the bias along columns adds to them; three lines along
// columns; four biases; a pointer; the sums of each warp.
inline int64_t backward_lines(const LskaStages& g, int64_t cols, int64_t warps) {
  return 9 * tap_pitch(g) + 3 * cols + 6 + warps * (tap_pitch(g) + 1);
}
// With x, a stage and a gradient.
inline int64_t backward_floats(const LskaStages& g, int64_t rows, int64_t cols, int64_t warps) {
  return 3 * rows * odd(cols) + backward_lines(g, cols, warps);
}
// X and Y with their halo; the rings behind the horizontal and behind the first vertical stage.
inline int64_t stream_floats(const LskaStages& g, int64_t step, int64_t cols, int64_t strip) {
  const int64_t rings = (step + 2 * g.v0.reach) + (step + 2 * g.v1.reach);
  return 2 * step * odd(cols) + rings * odd(strip) + 4 * tap_pitch(g) + strip;
}

inline int64_t with_halo(int64_t core, int64_t reach, int64_t length) {
  return std::min(length, core < length ? core + 2 * reach : core);
}

// Planes for one block: small ones together, but not so many that multiprocessors stay idle.
inline int64_t planes_per_block(const LskaSize& s, const GpuLimits& device, int64_t threads_of_one,
                                int64_t bytes_of_one) {
  const int64_t by_threads = 256 / threads_of_one, by_memory = device.shared_bytes / bytes_of_one;
  const int64_t by_blocks = s.planes() / std::max<int64_t>(1, 2 * device.multiprocessors);
  return std::clamp<int64_t>(std::min({by_threads, by_memory, by_blocks}), 1, 64);
}

inline void set_region(LskaPlan& p, const LskaSize& s, const LskaStages& g, int64_t band, int64_t strip) {
  p.band = int(band);
  p.strip = int(strip);
  p.rows = int(with_halo(band, g.reach_v(), s.H));
  p.cols = int(with_halo(strip, g.reach_h(), s.W));
  p.pitch = int(odd(p.cols));
  p.grid_y = ceil_div(s.H, band);
  p.grid_z = ceil_div(s.W, strip);
}

inline bool grid_fits(const LskaPlan& p) {
  return p.grid_x <= kMaxGrid && p.grid_y <= kMaxGridYZ && p.grid_z <= kMaxGridYZ;
}

inline bool plane_forward(LskaPlan& p, const LskaSize& s, const LskaStages& g, const GpuLimits& device) {
  if (s.H * s.W > kMaxThreads * kRun || threads(g, 1, s.H, s.W) > kMaxThreads) return false;
  const int64_t bytes = 4 * forward_floats(g, s.H, s.W);
  if (bytes > device.shared_bytes) return false;
  // Few planes leave multiprocessors idle: then bands of rows, as long as the halo does not outgrow them.
  const int64_t wanted = device.multiprocessors / std::max<int64_t>(1, s.planes());
  const int64_t most = s.H / std::max<int64_t>(kRun, 2 * g.reach_v());
  const int64_t bands = std::clamp<int64_t>(std::min(wanted, most), 1, 16);
  set_region(p, s, g, ceil_div(s.H, bands), s.W);
  const int64_t one = threads(g, 1, p.rows, p.cols);
  p.planes = bands > 1 ? 1 : int(planes_per_block(s, device, one, bytes));
  p.kernel = LskaKernel::plane;
  p.grid_x = ceil_div(s.planes(), p.planes);
  p.threads = int(threads(g, p.planes, p.rows, p.cols));
  p.shared_bytes = 4 * p.planes * forward_floats(g, p.rows, p.cols);
  return grid_fits(p);
}

inline bool stream_forward(LskaPlan& p, const LskaSize& s, const LskaStages& g, const GpuLimits& device) {
  // The fewest strips whose rings leave room for four rows at a time; narrower ones load more halo than
  // outputs.
  for (int64_t strips = 1; strips <= 64 && strips <= s.W; ++strips) {
    const int64_t strip = ceil_div(s.W, strips);
    if (strips > 1 && strip < std::max<int64_t>(kWarp, g.reach_h() / 2)) break;
    const int64_t cols = with_halo(strip, g.reach_h(), s.W);
    for (int64_t step : {24, 16, 12, 8, 6, 4}) {
      const int64_t bytes = 4 * stream_floats(g, step, cols, strip);
      if (bytes > device.shared_bytes) continue;
      const int64_t blocks = s.planes() * strips;
      const int64_t wanted = device.multiprocessors / std::max<int64_t>(1, blocks);
      const int64_t most = s.H / std::max<int64_t>(2 * step, 4 * g.reach_v());
      const int64_t bands = std::clamp<int64_t>(std::min(wanted, most), 1, 64);
      set_region(p, s, g, ceil_div(s.H, bands), strip);
      p.kernel = LskaKernel::stream;
      p.grid_x = s.planes();
      p.step = int(step);
      p.threads = cols * step > 4096 ? 512 : 256;
      p.shared_bytes = bytes;
      return grid_fits(p);
    }
  }
  return false;
}

inline bool plane_backward(LskaPlan& p, const LskaSize& s, const LskaStages& g, const GpuLimits& device) {
  // The largest tile, measured by what it loads for each output, among whole planes and ever smaller parts. A
  // whole plane is the first that is tried, and cannot be bettered.
  double best = 1e30;
  for (int64_t across = 1; across <= 64 && best > 1; ++across) {
    for (int64_t down = 1; down <= 64 && best > 1; ++down) {
      const int64_t band = ceil_div(s.H, down), strip = ceil_div(s.W, across);
      const int64_t rows = with_halo(band, g.reach_v(), s.H), cols = with_halo(strip, g.reach_h(), s.W);
      const double loads = double(rows * cols) / double(band * strip);
      if (rows * cols > kMaxThreads * kRun || loads >= best) continue;
      if (loads > 8) continue;  // beyond eight, stage by stage moves less
      const int64_t needed = threads(g, 1, rows, cols);
      const int64_t bytes = 4 * backward_floats(g, rows, cols, needed / kWarp);
      if (needed > kMaxThreads || bytes > device.shared_bytes) continue;
      best = loads;
      set_region(p, s, g, band, strip);
      const bool whole = down == 1 && across == 1;
      p.planes = whole ? int(planes_per_block(s, device, needed, bytes)) : 1;
      p.threads_per_plane = int(needed);
      p.threads = int(needed * p.planes);
      p.shared_bytes = bytes * p.planes;
    }
  }
  p.kernel = LskaKernel::plane;
  p.grid_x = ceil_div(s.planes(), p.planes);
  return best < 1e30 && grid_fits(p);
}

// In channels_last: as few bytes for each output as possible, among tiles of 16, 8 and 4 channels (16 of two
// bytes fill a sector), and multiprocessors that have a block.
inline bool plane_of_channels(LskaPlan& p, const LskaSize& s, const LskaStages& g, const GpuLimits& device,
                              bool backward) {
  constexpr int64_t kParts[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64};
  double best = 1e30;
  for (const int64_t some : {16, 8, 4}) {
    const int64_t channels = std::min(some, s.C);
    const double sectors = channels == s.C ? 1. : 16. / double(channels);
    for (const int64_t across : kParts) {
      for (const int64_t down : kParts) {
        if (across > s.W || down > s.H) break;
        const int64_t band = ceil_div(s.H, down), strip = ceil_div(s.W, across);
        const int64_t rows = with_halo(band, g.reach_v(), s.H), cols = with_halo(strip, g.reach_h(), s.W);
        if (channels * rows * cols > kMaxThreads * kRun) continue;
        const int64_t grid_x = s.B * ceil_div(s.C, channels);
        const double blocks = double(grid_x * ceil_div(s.H, band) * ceil_div(s.W, strip));
        const double loads = sectors * double(rows * cols) / double(band * strip);
        const double cost = loads * std::max(1., double(device.multiprocessors) / blocks);
        if (loads > 8 || cost >= best) continue;  // beyond eight, stage by stage moves less
        const int64_t one = threads(g, 1, rows, cols);
        const int64_t all = backward ? one * channels : threads(g, channels, rows, cols);
        const int64_t floats =
            backward ? backward_floats(g, rows, cols, one / kWarp) : forward_floats(g, rows, cols);
        if (all > kMaxThreads || 4 * channels * floats > device.shared_bytes) continue;
        best = cost;
        set_region(p, s, g, band, strip);
        p.planes = int(channels);
        p.grid_x = grid_x;
        p.threads_per_plane = backward ? int(one) : 0;
        p.threads = int(all);
        p.shared_bytes = 4 * channels * floats;
      }
    }
  }
  p.kernel = LskaKernel::plane;
  return p.threads && grid_fits(p);
}

inline LskaPlan stage_by_stage(const LskaSize& s) {
  LskaPlan p;
  p.band = int(s.H);
  p.strip = int(s.W);
  p.threads = 256;
  p.grid_x = s.planes();
  return p;
}

}  // namespace lska_plan

inline LskaPlan lska_plan_forward(const LskaSize& s, const GpuLimits& device) {
  const LskaStages g = lska_plan::stages(s);
  if (LskaPlan p; s.channels_last ? lska_plan::plane_of_channels(p, s, g, device, false)
                                  : lska_plan::plane_forward(p, s, g, device))
    return p;
  if (LskaPlan p; !s.channels_last && lska_plan::stream_forward(p, s, g, device)) return p;
  return lska_plan::stage_by_stage(s);
}

inline LskaPlan lska_plan_backward(const LskaSize& s, const GpuLimits& device) {
  const LskaStages g = lska_plan::stages(s);
  if (LskaPlan p; s.channels_last ? lska_plan::plane_of_channels(p, s, g, device, true)
                                  : lska_plan::plane_backward(p, s, g, device))
    return p;
  return lska_plan::stage_by_stage(s);
}

// How the gate's elements and, backward, its sums over pixels are spread over a GPU. A block has 256 threads.
constexpr int kGateThreads = 256;
struct LskaGatePlan {
  bool vectors = false;  // groups of 16 bytes, or single elements
  int64_t grid_x = 0, grid_y = 1;
  int64_t step = 0;            // forward: threads, each of which takes every step-th group
  bool same_channels = false;  // whose channels are the same
  // backward: parts of a plane's pixels, each of `pixels`; in channels_last a block has `across` of a pixel's
  // groups, of which there are `groups` times as many, and `rows` pixels at a time
  int64_t parts = 1, pixels = 0;
  int groups = 1, across = 1, rows = 1;
};

// `element`: bytes; `aligned`: all maps begin at multiples of 16 bytes.
inline LskaGatePlan lska_plan_gate(const LskaSize& s, const GpuLimits& device, int64_t element,
                                   bool aligned) {
  LskaGatePlan p;
  p.vectors = aligned;
  const int64_t n = p.vectors ? 16 / element : 1, groups = ceil_div(s.planes() * s.H * s.W, n);
  p.step = std::min(groups, kGateThreads * kMaxGrid);
  if (s.channels_last) {  // as many threads as run at once; each keeps the biases of its channels
    const int64_t rounds = ceil_div(groups, std::min(p.step, 8 * kGateThreads * device.multiprocessors));
    p.step = ceil_div(groups, rounds);
    p.same_channels = s.C % n == 0;
    if (p.same_channels) p.step = round_up(p.step, s.C / n);
  }
  p.grid_x = ceil_div(p.step, kGateThreads);
  return p;
}

namespace lska_plan {

// Rounds of a block in channels_last, of which `columns` groups of channels have `rounds` each. What a block
// does besides is worth four rounds' instructions; it waits as long as sixteen before its first round, and
// for four in each. Six blocks are on a multiprocessor at once.
inline int64_t gate_rounds(int64_t columns, int64_t rounds, const GpuLimits& device) {
  int64_t best = 1, least = 0;
  for (int64_t of_one = 1; of_one <= std::min<int64_t>(rounds, 16); ++of_one) {
    const int64_t busiest = ceil_div(columns * ceil_div(rounds, of_one), device.multiprocessors);
    const int64_t cost = std::max(busiest * (4 + of_one), ceil_div(busiest, 6) * (16 + 4 * of_one));
    if (least && cost >= least) continue;
    best = of_one;
    least = cost;
  }
  return best;
}

}  // namespace lska_plan

inline LskaGatePlan lska_plan_gate_backward(const LskaSize& s, const GpuLimits& device, int64_t element,
                                            bool aligned) {
  LskaGatePlan p;
  const int64_t n = 16 / element, pixels = s.H * s.W;
  p.vectors = aligned && (!s.channels_last || s.C % n == 0);
  int64_t at_once, of_one;  // pixels of one round of a block or warp; its rounds
  if (s.channels_last) {
    const int64_t all = p.vectors ? s.C / n : s.C;
    p.groups = int(ceil_div(all, kWarp));
    p.across = int(ceil_div(all, p.groups));
    p.rows = kGateThreads / p.across;
    at_once = p.rows;
    of_one = lska_plan::gate_rounds(s.B * p.groups, ceil_div(pixels, at_once), device);
  } else {
    at_once = kWarp * n;
    of_one =
        std::clamp<int64_t>(s.planes() * ceil_div(pixels, at_once) / (32 * device.multiprocessors), 1, 16);
  }
  const int64_t limit = s.channels_last ? kMaxGridYZ : std::max<int64_t>(1, kMaxGrid / s.planes());
  p.parts = std::min(ceil_div(ceil_div(pixels, at_once), of_one), limit);
  p.pixels = round_up(ceil_div(pixels, p.parts), at_once);
  p.parts = ceil_div(pixels, p.pixels);
  p.grid_x = s.channels_last ? s.B * p.groups : ceil_div(s.planes() * p.parts, kGateThreads / kWarp);
  p.grid_y = s.channels_last ? p.parts : 1;
  return p;
}

// Threads that share the parts of one of n sums: more where sums are few and parts are many.
inline int lska_split_sums(int64_t n, int64_t parts, const GpuLimits& device) {
  int split = 1;
  while (split < kWarp && split * 8 <= parts && n * split < 512 * device.multiprocessors) split *= 2;
  return split;
}

constexpr int64_t kLeastCache = 16 << 20;  // GPUs of 7.5 and newer have 2 to 6 MiB, or 24 and more

// Images whose s and product, `element` bytes a pixel each, stay in half of the L2 cache between two kernels;
// but enough of them that a launch fills the device twice; and as many at one time as at another.
// `extra` is what an image needs there besides. Each time costs three launches or more, some 15 us, and saves
// four passes of a map over memory: of what half of a small cache holds, less than that. Limits without a
// compute capability are no GPU's but a test's, whose maps are small.
inline int64_t lska_images_at_once(const LskaSize& s, const GpuLimits& device, int64_t element,
                                   int64_t extra = 0) {
  const int64_t image = std::max<int64_t>(1, (s.C * s.H * s.W * 2 + extra) * element);
  const int64_t enough = ceil_div(2 * device.multiprocessors, std::max<int64_t>(1, s.C));
  const int64_t B = std::max<int64_t>(1, s.B);
  if (device.arch && device.cache_bytes < kLeastCache) return B;
  const int64_t most = std::clamp<int64_t>(std::max(device.cache_bytes / 2 / image, enough), 1, B);
  return ceil_div(B, ceil_div(B, most));
}

}  // namespace lska_ops
