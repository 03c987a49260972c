// How ACmix is spread over a GPU: from sizes and the device's limits to tiles, what of them lies in shared
// memory, and the grid. The CUDA launchers, the host-run tests and lska_ops._plan use it.
//
// Three kernels share this plan. `forward` and `query` own a tile of outputs and see the keys in their
// windows; `key` owns a tile of inputs and sees the queries in whose windows they are. Attention needs all
// dims of one head, the shift all heads of one dim: a block that does both walks through all heads and keeps
// what the shift needs for all channels; a block that does one of them has one head, or a few dims. The shift
// alone has no query pass: key then serves q, k and v.
#pragma once

#include <algorithm>
#include <compare>

#include "csrc/common/divisor.h"
#include "csrc/common/gpu.h"

namespace lska_ops {

constexpr int kAcmixThreads = 256;
constexpr int kAcmixRun = 4;    // neighbouring pixels that a thread computes together
constexpr int kAcmixAhead = 4;  // columns around a tile of regular windows: whole runs, so loads are aligned
// What fits the shared memory of every GPU; lska_ops/acmix/compiled.py declines more.
constexpr int kAcmixMostReach = 12;    // pixels, of a window
constexpr int kAcmixMostShift = 2048;  // head * kernel_conv^2
constexpr int kAcmixMostHeads = 64;    // of the shift
constexpr int kAcmixMostDims = 1024;   // of a head
constexpr int kAcmixMostStride = 8;
constexpr int kShiftGradRegisters = 128;  // acmix_shift_grad_kernel's, as two blocks share a multiprocessor

enum class AcmixPass { forward, query, key };

struct AcmixSize {
  int64_t B, C, H, W, G, kernel_att, kernel_conv, stride, dilation, element;  // element: bytes of a number
  auto operator<=>(const AcmixSize&) const = default;
  int64_t D() const { return C / G; }
  int64_t Ho() const { return ceil_div(H, stride); }
  int64_t Wo() const { return ceil_div(W, stride); }
  int64_t reach() const { return kernel_att / 2 * dilation; }
  int64_t conv_reach() const { return kernel_conv / 2; }
  int64_t conv_taps() const { return kernel_conv * kernel_conv; }
  // Windows of consecutive pixels, which runs of neighbouring pixels share.
  bool regular() const { return stride == 1 && dilation == 1 && kernel_att <= 9 && kernel_conv <= 9; }
};

// Rows and columns of a map in shared memory, for each dim; `ahead` of them lie before the tile's first.
// `spare` columns at either end are there for the alignment of what follows, and are not loaded. Where they
// leave room for a row's last columns, the next row begins a run earlier: the pitch is less than the columns.
struct AcmixRegion {
  int rows, cols, pitch, ahead_y, ahead_x, spare;
  int elements;       // of one dim
  Divisor by_loaded;  // by the columns without the spare ones
};

struct AcmixLayout {
  bool attention, shift;  // what the kernel computes
  bool shift_grad;        // query: the sums of the shift's weight gradients, too
  bool regular, whole;    // whole: all dims of a head at once
  int rows, cols, runs;   // of a tile; runs in a row
  Divisor by_cols;
  int band;                      // rows whose weights of the window are in shared memory at once
  int band_pixels, tile_pixels;  // of whole runs
  int dims, heads;               // dims in shared memory at once; heads of a block
  int taps;                      // of a line: as many pixels lie between the first and the last of a window
  int parts;                     // of q, k, v: those whose shift weights are in shared memory at once
  int64_t images;                // from one image of a block to its next
  AcmixRegion own, window, grads;
  // Where each lies in shared memory, in bytes.
  int table_y, table_x, position, sums, weights, products, pixels, total, composite, shift_sums, own_at,
      window_at, grads_at;
  int64_t shared_bytes, grid_x, grid_y, grid_z;
  double cost;  // what is moved for each channel and image, made dearer by idle threads
  bool fits;
};

namespace acmix_plan {

inline int64_t ceil_div_any(int64_t a, int64_t b) { return a >= 0 ? ceil_div(a, b) : -(-a / b); }

inline AcmixRegion region(int64_t rows, int64_t width, int64_t ahead_y, int64_t ahead_x, int64_t spare = 0,
                          bool overlaps = false) {
  const int64_t cols = round_up(width, kAcmixRun),
                pitch = overlaps && 2 * spare >= kAcmixRun ? cols - kAcmixRun : cols;
  return {int(rows),    int(cols),  int(pitch),        int(ahead_y),
          int(ahead_x), int(spare), int(rows * pitch), divisor(cols - 2 * spare)};
}
// Of some dims, with the last row's columns beyond the pitch.
inline int64_t elements(const AcmixRegion& r, int64_t dims) {
  return dims * r.elements + (dims > 0 ? r.cols - r.pitch : 0);
}

inline void set_regions(AcmixLayout& l, const AcmixSize& s, AcmixPass pass) {
  const int64_t att = l.attention ? s.reach() : 0, conv = l.shift ? s.conv_reach() : 0;
  const int64_t most = std::max(att, conv), width = l.runs * kAcmixRun, st = s.stride;
  const auto around = [&](int64_t y,
                          int64_t scale) {  // a tile's pixels, `scale` apart, and what surrounds them
    const int64_t x = l.regular ? (y ? kAcmixAhead : 0) : y;
    const int64_t span = l.regular ? width : (width - 1) * scale + 1;
    return region((l.rows - 1) * scale + 1 + 2 * y, span + 2 * x, y, x, l.regular ? x - y : 0,
                  pass != AcmixPass::key);  // whose window's pixels are also counted through, without gaps
  };
  if (pass == AcmixPass::key) {
    l.own = around(0, 1);
    l.window = around(most, 1);
    if (st > 1)
      l.window = region((l.rows - 1 + 2 * most) / st + 2, (width - 1 + 2 * most) / st + 2, most, most);
    l.grads = l.window;
    l.taps = int(2 * s.reach() / st + 1);
  } else {
    const bool forward = pass == AcmixPass::forward;
    l.own = forward ? around(conv, st) : around(0, 1);
    l.window = around(forward ? most : att, st);
    l.grads = around(conv, 1);
    l.taps = int(2 * s.reach() + 1);
  }
}

// Lays shared memory out. Floats come first, then maps in the dtype of qkv.
inline void set_memory(AcmixLayout& l, const AcmixSize& s, AcmixPass pass) {
  int64_t at = kAcmixThreads / kWarp * 4;  // of block_sum
  const auto take = [&](int64_t count, int64_t bytes) {
    const int64_t from = at;
    at = round_up(at + count * bytes, 16);
    return int(std::min<int64_t>(from, 1 << 30));
  };
  const bool fused = l.attention && l.shift, forward = pass == AcmixPass::forward,
             key = pass == AcmixPass::key;
  const int64_t all = int64_t(l.taps) * l.taps * l.band_pixels;
  l.table_y = take(l.attention ? int64_t(l.rows) * l.taps : 0, 4);
  l.table_x = take(l.attention ? int64_t(l.runs) * kAcmixRun * l.taps : 0, 4);
  l.position = take(l.attention ? 2 * s.D() : 0, 4);
  l.sums = take(l.attention && !forward && !key ? 2 * s.D() : 0, 4);
  l.weights = take(l.attention ? all : 0, 4);
  l.products = take(l.attention && !forward ? all : 0, 4);
  l.pixels = take(!l.attention ? 0 : key ? 4 * int64_t(l.window.elements) : 4 * l.band_pixels, 4);
  l.total = take(forward && l.shift ? (fused ? s.C : s.G * l.dims) * l.tile_pixels : 0, 4);
  l.parts = !l.shift ? 0 : !l.attention ? 3 : forward ? (l.whole ? 3 : 2) : key ? 2 : 1;
  l.composite = take(int64_t(l.parts) * l.dims * s.G * s.conv_taps(), 4);
  l.shift_sums = take(l.shift_grad ? 3 * s.C * s.G * s.conv_taps() : 0, 4);
  const int64_t e = s.element, own = elements(l.own, key ? 2 * l.dims : l.dims);
  const bool windows = l.attention || forward, owns = l.attention || forward;
  l.own_at = take(owns ? own : 0, e);
  const int64_t at_once = key || (forward && l.attention && !l.whole) ? 1 : 2;
  l.window_at = take(windows ? elements(l.window, at_once * l.dims) : 0, e);
  // grad_y: in a block that computes both, of all channels; else of the dims at hand.
  const int64_t channels = fused ? s.C : l.attention ? l.dims : s.G * l.dims;
  const AcmixRegion& grads = l.attention && !l.shift && !key ? l.own : l.grads;
  l.grads_at = take(forward ? 0 : elements(grads, channels), e);
  l.shared_bytes = at;
}

// Pixels of a line that tiles of `tile` load, each with `reach` beyond its ends.
inline double with_halo(int64_t length, int64_t tile, int64_t reach) {
  return double(length + 2 * reach * (ceil_div(length, tile) - 1));
}

// Numbers that cross global memory for each channel and image; composite weights count half, as all blocks
// read the same ones.
inline double traffic(const AcmixLayout& l, const AcmixSize& s, AcmixPass pass, bool last = false) {
  const bool key = pass == AcmixPass::key, forward = pass == AcmixPass::forward;
  const int64_t H = key ? s.H : s.Ho(), W = key ? s.W : s.Wo(), scale = key ? 1 : s.stride;
  const auto maps = [&](int64_t reach) {
    return with_halo(H * scale, l.rows * scale, reach) * with_halo(W * scale, l.cols * scale, reach);
  };
  const int64_t att = l.attention ? s.reach() : 0, conv = l.shift ? s.conv_reach() : 0,
                most = std::max(att, conv);
  const double again = l.whole || !l.attention ? 0. : 1.;  // what is loaded once more, dims by dims
  const double tiles = double(ceil_div(H, l.rows) * ceil_div(W, l.cols));
  const double composite =
      l.shift ? tiles * double(l.parts * s.G * s.conv_taps()) * 2. / double(s.element) : 0.;
  // Written by each block, and read to be added up.
  const double blocks = double(l.grid_x * l.grid_y * l.grid_z) / double(s.B);
  const double sums = l.shift_grad ? blocks * double(6 * s.G * s.conv_taps()) * 4. / double(s.element) : 0.;
  // Of a pixel's channels few dims are a part of a sector. Blocks of other dims have the rest of it from the
  // cache, whose bandwidth is some times that of memory.
  const double sectors = last ? std::max(1., 32. / double(l.dims * s.element)) : 1.;
  if (forward) return (maps(conv) + 2 * maps(most)) * (7 + sectors) / 8 + maps(0) + composite;
  if (!key) return maps(0) * (2 + again) + maps(conv) + (2 + again) * maps(att) + composite + sums;
  if (!l.attention) return maps(conv) + 3 * maps(0) + composite;
  return 4 * maps(0) + maps(most) * (2 + again * (l.shift ? 1 : 2)) + composite;
}

inline void set_grid(AcmixLayout& l, const AcmixSize& s, AcmixPass pass, const GpuLimits& device) {
  const bool key = pass == AcmixPass::key;
  l.heads = l.shift ? int(s.G) : 1;
  l.grid_x = s.B * (l.attention ? (l.shift ? 1 : s.G) : ceil_div(s.D(), l.dims));
  l.grid_y = ceil_div(key ? s.H : s.Ho(), l.rows);
  l.grid_z = ceil_div(key ? s.W : s.Wo(), l.cols);
  l.images = s.B;
  // Sums are many: only as many blocks write theirs as run at once, each for as few images as that allows.
  if (l.shift_grad) {
    const int64_t at_once = std::clamp<int64_t>(device.multiprocessors / (l.grid_y * l.grid_z), 1, s.B);
    l.grid_x = l.images = ceil_div(s.B, ceil_div(s.B, at_once));
  }
}

// Less is better: what is moved, by a device that has work for all and by blocks whose threads have. Forward
// also counts the places of a last round that stay empty; backward, where fewer rounds move more, does not.
inline double cost(const AcmixLayout& l, const AcmixSize& s, AcmixPass pass, const GpuLimits& device,
                   bool last) {
  const int64_t blocks = std::max<int64_t>(1, (l.shift_grad ? s.B : l.grid_x) * l.grid_y * l.grid_z);
  const int64_t rounds = ceil_div(blocks, device.multiprocessors);
  const bool places = pass == AcmixPass::forward || rounds == 1;
  const double idle = places ? double(rounds * device.multiprocessors) / double(blocks) : 1.;
  const double tasks = double(l.attention ? l.band * l.runs * l.taps : l.rows * l.runs * l.dims);
  const double busy = std::min(1., tasks / kAcmixThreads);
  return traffic(l, s, pass, last) * idle / (0.4 + 0.6 * busy);
}

}  // namespace acmix_plan

// The cheapest layout that fits; fits is false where none does. `last`: forward, of maps in channels_last;
// for the shift alone, whose sums are the same with any dims at once.
inline AcmixLayout acmix_plan_of(const AcmixSize& s, AcmixPass pass, bool attention, bool shift,
                                 const GpuLimits& device, bool shift_grad = false, bool last = false) {
  const bool key = pass == AcmixPass::key;
  const int64_t H = key ? s.H : s.Ho(), W = key ? s.W : s.Wo();
  AcmixLayout best{};
  const auto consider = [&](int64_t rows, int64_t cols, int64_t band, int64_t dims) {
    AcmixLayout l{};
    l.attention = attention;
    l.shift = shift;
    l.shift_grad = shift_grad;
    l.regular = s.regular();
    l.rows = int(rows);
    l.cols = int(cols);
    l.by_cols = divisor(cols);
    l.runs = int(ceil_div(cols, kAcmixRun));
    l.band = int(band);
    l.band_pixels = l.band * l.runs * kAcmixRun;
    l.tile_pixels = l.rows * l.runs * kAcmixRun;
    l.dims = int(dims);
    l.whole = dims == s.D();
    acmix_plan::set_regions(l, s, pass);
    acmix_plan::set_memory(l, s, pass);
    acmix_plan::set_grid(l, s, pass, device);
    l.fits = l.shared_bytes <= device.shared_bytes && l.grid_x <= kMaxGrid && l.grid_y <= kMaxGridYZ &&
             l.grid_z <= kMaxGridYZ;
    if (!l.fits) return false;
    l.cost = acmix_plan::cost(l, s, pass, device, last);
    if (!best.fits || l.cost < best.cost) best = l;
    return true;
  };
  const int64_t most_cols = std::min<int64_t>(round_up(W, kAcmixRun), 80), D = s.D();
  for (int64_t cols = kAcmixRun; cols <= most_cols; cols += kAcmixRun) {
    const int64_t width = std::min(cols, W);
    if (ceil_div(W, width) > kMaxGridYZ) continue;
    int64_t last = 0;
    for (int64_t most = std::min<int64_t>(H, 40); most >= 1; --most) {
      const int64_t rows = ceil_div(H, ceil_div(H, most));  // tiles of about the same size
      if (rows == last) continue;
      last = rows;
      // Bands: the largest that fits, for whole heads; and dims by dims, where all rows are one band.
      bool whole = false;
      for (int64_t band = attention ? rows : 1; band >= 1 && !whole; band = band == 1 ? 0 : ceil_div(band, 2))
        whole = consider(rows, width, band, D);
      for (int64_t dims = round_up(D, 8) / 2; dims >= 1 && !(whole && attention); dims /= 2) {
        if (dims < D && consider(rows, width, attention ? rows : 1, dims) && attention) break;
      }
    }
  }
  return best;
}

// How the sums over pixels of the shift's weight gradients are spread: a block has one dim, some of the tiles
// of all images, and some of the sums.
struct AcmixShiftGradPlan {
  AcmixRegion maps, grads;
  int rows, cols, runs;             // of a tile of outputs
  int parts;                        // of q, k, v in a block: all where they fit, else one
  int tasks, splits;                // sums of a block; threads that share one
  int64_t groups, units, blocks_z;  // blocks that share the tiles; tiles; blocks that share the parts' sums
  int grads_at, sums_at;
  int64_t shared_bytes;
  bool fast, fits;
};

inline AcmixShiftGradPlan acmix_plan_shift_grad(const AcmixSize& s, const GpuLimits& device) {
  AcmixShiftGradPlan p{};
  const int64_t c = s.conv_reach(), taps = s.conv_taps();
  p.fast = s.stride == 1 && s.kernel_conv == 3;
  const auto fits = [&](int64_t rows, int64_t cols, int64_t blocks) {  // so many on a multiprocessor
    p.rows = int(rows);
    p.cols = int(cols);
    p.runs = int(ceil_div(cols, kAcmixRun));
    const int64_t width = p.runs * kAcmixRun, ahead = p.fast ? kAcmixAhead : c;
    const int64_t span = p.fast ? width : (width - 1) * s.stride + 1;
    p.maps =
        acmix_plan::region((rows - 1) * s.stride + 1 + 2 * c, span + 2 * ahead, c, ahead, ahead - c, true);
    p.grads = acmix_plan::region(rows, width, 0, 0);
    const int64_t maps = round_up(acmix_plan::elements(p.maps, p.parts * s.G) * s.element, 16);
    const int64_t grads = round_up(s.G * p.grads.elements * s.element, 16);
    p.shared_bytes = maps + grads + kAcmixThreads * 12 * 4;
    if (p.shared_bytes > device.shared_bytes) return false;
    if (resident_blocks(device, kAcmixThreads, kShiftGradRegisters, p.shared_bytes) < blocks) return false;
    p.grads_at = int(maps);
    p.sums_at = int(maps + grads);
    return p.fits = true;
  };
  // Two blocks share a multiprocessor if their memory holds sixteen rows.
  p.parts = 3;
  for (int64_t cols = std::min<int64_t>(s.Wo(), 320); !p.fits; cols = ceil_div(cols, 2)) {
    for (int64_t rows = std::min<int64_t>(s.Ho(), 64); rows >= std::min<int64_t>(s.Ho(), 16) && !p.fits;
         --rows)
      fits(rows, cols, 2);
    for (int64_t rows = std::min<int64_t>(s.Ho(), 64); rows >= 1 && !p.fits; --rows) fits(rows, cols, 1);
    if (cols == 1 && p.parts == 1) break;
    if (cols == 1 && !p.fits) p.parts = 1, cols = std::min<int64_t>(s.Wo(), 320);
  }
  const int64_t all = p.parts * s.G * ceil_div(s.G, 4) * (p.fast ? s.kernel_conv : taps);
  p.tasks = int(std::min<int64_t>(all, kAcmixThreads));
  p.splits = kAcmixThreads / p.tasks;
  p.blocks_z = 3 / p.parts * ceil_div(all, p.tasks);
  p.units = s.B * ceil_div(s.Ho(), p.rows) * ceil_div(s.Wo(), p.cols);
  p.groups = std::clamp<int64_t>(ceil_div(2 * device.multiprocessors, s.D() * p.blocks_z), 1,
                                 std::min<int64_t>(p.units, kMaxGridYZ));
  return p;
}

namespace acmix_plan {

// As above: what crosses global memory for each channel and image. Blocks that share the sums load the same.
inline double traffic(const AcmixShiftGradPlan& p, const AcmixSize& s) {
  const int64_t reach = s.conv_reach();
  const double map = with_halo(s.H, p.rows * s.stride, reach) * with_halo(s.W, p.cols * s.stride, reach);
  const double sums = double(p.groups * 6 * s.G * s.conv_taps()) * 4. / double(s.element) / double(s.B);
  return double(p.blocks_z) * (double(p.parts) * map + double(s.Ho() * s.Wo())) + sums;
}

}  // namespace acmix_plan

// Whether one kernel computes both halves forward: if that fits and moves less than one after the other with
// floats between them, as what the shift writes is then wider than its plan counted, and is read once more.
// plan(pass, attention, shift[, shift_grad]) is acmix_plan_of for s, or what remembers its answers.
template <class Plan>
bool acmix_fuses_forward(const AcmixSize& s, const Plan& plan) {
  const AcmixLayout both = plan(AcmixPass::forward, true, true);
  const double between = double(8 - s.element) / double(s.element) * double(s.Ho() * s.Wo());
  return both.fits && both.cost <= plan(AcmixPass::forward, true, false).cost +
                                       plan(AcmixPass::forward, false, true).cost + between;
}

// The same backward; and whether the query pass adds up the sums of the shift's weight gradients, if they are
// wanted of it and that moves less than reading all maps once more.
struct AcmixBackward {
  bool fused, shift_grad;
};
template <class Plan>
AcmixBackward acmix_plans_backward(const AcmixSize& s, const GpuLimits& device, const Plan& plan,
                                   bool wants_shift_grad = true) {
  if (s.stride > 1) return {};
  const AcmixLayout query = plan(AcmixPass::query, true, true),
                    with = plan(AcmixPass::query, true, true, true), key = plan(AcmixPass::key, true, true);
  if (!query.fits || !key.fits) return {};
  const double apart = acmix_plan::traffic(acmix_plan_shift_grad(s, device), s);
  const double between = 3 * double(8 - s.element) / double(s.element) * double(s.H * s.W);
  const bool shift_grad = wants_shift_grad && with.fits && with.cost <= query.cost + apart;
  const bool fused = (shift_grad ? with.cost : query.cost + apart) + key.cost <=
                     plan(AcmixPass::query, true, false).cost + plan(AcmixPass::key, true, false).cost +
                         plan(AcmixPass::key, false, true).cost + between + apart;
  return {fused, fused && shift_grad};
}

}  // namespace lska_ops
