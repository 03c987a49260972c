// How the shift's backward by products on tensor cores is spread over a GPU: the sums over pixels of its
// weights' gradients, and what its maps hear back.
#pragma once

#include "csrc/acmix/plan_products.h"

namespace lska_ops {

// The sums over pixels of the gradients of composite weights. A block owns some dims and every `groups`-th
// tile of all images' inputs. What a warp multiplies are eight outputs, of one dim or of two, with their
// dims' maps: 24 columns; of outputs and maps that belong to different dims nothing is written.
constexpr int kShiftWeightsThreads = 256;
constexpr int kShiftOutputs = 8;  // of a warp, an octet of grad_y's channels

struct AcmixShiftWeightsLayout {
  int rows, cols;          // of a tile: in twos and in eights
  int dims, units;         // of a block; its octets of outputs
  int tiles_x, of_image;   // tiles in a row of them, and of an image
  int tiles, groups;       // of all images; blocks that share them
  int map_row, map_part;   // bytes from a row to the next, from a part of q, k, v to the next
  int grads_at, grad_row;  // grad_y of an octet behind its maps, a pixel around the tile
  int unit_pitch;
  Divisor by_units, by_cols, by_grad_cols, by_quads, by_grad_quads;
};

struct AcmixShiftWeightsPlan {
  AcmixShiftWeightsLayout layout;
  int64_t shared_bytes, grid_x, grid_y;
  double cost;
  bool serves;
};

namespace acmix_products {

inline AcmixShiftWeightsPlan weights_of_tile(const AcmixSize& s, int64_t rows, int64_t cols,
                                             const GpuLimits& device) {
  AcmixShiftWeightsPlan p{};
  AcmixShiftWeightsLayout& l = p.layout;
  l.rows = int(rows), l.cols = int(cols);
  l.dims = s.G == 4 && s.D() % 16 == 0 ? 16 : 8;
  l.units = int(l.dims * s.G / kShiftOutputs);
  l.tiles_x = int(ceil_div(s.W, cols)), l.of_image = int(l.tiles_x * ceil_div(s.H, rows));
  const int64_t tiles = s.B * l.of_image;
  l.tiles = int(std::min<int64_t>(tiles, kMaxGrid));
  l.map_row = int(16 * cols), l.map_part = int(rows * l.map_row), l.grads_at = 3 * l.map_part;
  l.grad_row = int(16 * (cols + 2));
  // Octets begin in different banks.
  l.unit_pitch = int(round_up(l.grads_at + (rows + 2) * l.grad_row, 128) + 16);
  l.by_units = divisor(l.units), l.by_cols = divisor(cols), l.by_grad_cols = divisor(cols + 2);
  l.by_quads = divisor(cols / 4), l.by_grad_quads = divisor(cols / 4 + 2);
  const int64_t warps = kShiftWeightsThreads / kWarp, sums = s.C * 3 * s.G * 9;
  // The sums of one of q, k and v come to lie in the place of the tile.
  p.shared_bytes = std::max<int64_t>(l.units * l.unit_pitch, warps * kShiftOutputs * kShiftOutputs * 9 * 4);
  p.grid_x = s.D() / l.dims;
  const int64_t resident = resident_blocks(device, kShiftWeightsThreads, 128, p.shared_bytes);
  p.serves = resident > 0 && p.shared_bytes <= device.shared_bytes && tiles < kMaxGrid;
  if (!p.serves) return p;

  // Of a tile: what its warps issue, passes through shared memory, and bytes from the cache.
  const double pixels = double(rows * cols), around = double((rows + 2) * (cols + 2));
  const double units = double(l.units);
  const double instructions = units * (pixels / 16 * 26 + (pixels * 60 + around * 6) / kWarp + 60);
  const double passes = units * (pixels / 16 * 12 + (pixels * 3 + around) * 16 / 128);
  const double bytes = units * (pixels * 3 + around) * 16;
  const double products = units * pixels / 16 * 15 * clocks_of_product(device.arch);
  const double alone = 3000 + instructions / double(warps) * 2.8;
  p.cost = std::numeric_limits<double>::infinity();
  for (int64_t at_once = 1; at_once <= resident; ++at_once) {
    const int64_t most = std::clamp<int64_t>(at_once * device.multiprocessors / p.grid_x, 1,
                                             std::min<int64_t>(tiles, kMaxGridYZ));
    const int64_t rounds = ceil_div(tiles, most), groups = ceil_div(tiles, rounds);
    const double blocks = double(groups * p.grid_x) / double(device.multiprocessors);
    // A block alone waits for its tile; what two have in flight is enough.
    const double work = std::max({instructions / 4, passes, bytes / (at_once > 1 ? 20 : 10), products});
    const double parts = double(groups * sums * 8) / (20. * double(device.multiprocessors));
    const double cost = double(rounds) * std::max(alone, std::ceil(blocks) * work) + parts;
    if (cost < p.cost) p.cost = cost, l.groups = int(groups);
  }
  p.grid_y = l.groups;
  return p;
}

}  // namespace acmix_products

// The cheapest tile; serves is false where none does.
inline AcmixShiftWeightsPlan acmix_plan_shift_weights(const AcmixSize& s, bool bfloat16,
                                                      const GpuLimits& device) {
  using namespace acmix_products;
  if (!takes_maps(s, bfloat16, device) || !takes_shift(s, s.G) || s.stride != 1) return {};
  Cheapest<AcmixShiftWeightsPlan> plans(device);
  for (int64_t rows = 2; rows <= std::min<int64_t>(16, round_up(s.H, 2)); rows += 2)
    // Of NCHW a row of sixteen is a sector.
    for (int64_t cols = s.W > 8 ? 16 : 8; cols <= std::min<int64_t>(64, round_up(s.W, 8)); cols += 8)
      plans.offer(weights_of_tile(s, rows, cols, device));
  return plans.taken();
}

// Inputs under each other that a row of a product's left operand sends back to.
constexpr int kShiftBackWalk = 4;

// How grad_y of some dims around a tile of inputs lies in shared memory: for each dim and pixel its outputs'
// numbers, zero beyond the map. Bytes, but for what counts pixels.
struct AcmixShiftBackLayout {
  int rows, cols, dims;      // of the tile, in fours; in shared memory at once, 8 or 16
  int row_pitch, dim_pitch;  // from a row to the next, from a dim to the next
  int pairs, walks;          // of neighbours in a row; down kShiftBackWalk inputs
  int shared_bytes;          // what `dims` dims take
  Divisor by_quads, by_cols, by_pairs;
};

inline AcmixShiftBackLayout acmix_shift_back_layout(int64_t heads, int64_t rows, int64_t cols, int64_t dims) {
  AcmixShiftBackLayout l{};
  l.rows = int(rows), l.cols = int(cols), l.dims = int(dims);
  l.pairs = int(cols / 2), l.walks = int(l.pairs * rows / kShiftBackWalk);
  // A pixel before a row, and one behind it.
  l.row_pitch =
      acmix_products::shift_row_pitch((cols + 2) * 2 * heads, kShiftBackWalk, 4 * heads, l.pairs, l.walks);
  l.dim_pitch = int(round_up((rows + 2) * l.row_pitch, 128) + 16);
  l.shared_bytes = l.dim_pitch * l.dims;
  l.by_quads = divisor(cols / 4 + 2), l.by_cols = divisor(cols + 2), l.by_pairs = divisor(l.pairs);
  return l;
}

// The gradients of all maps of the shift alone. A block owns a tile of inputs and some dims of all heads.
constexpr int kShiftMapsThreads = 256;

struct AcmixShiftMapsLayout {
  int tiles_x;             // tiles in a row of them
  int sums_at, sum_pitch;  // of a pixel: [heads][dims] of q, k or v
  Divisor by_cols;
};

struct AcmixShiftMapsPlan {
  AcmixShiftBackLayout back;
  AcmixShiftMapsLayout layout;
  int64_t shared_bytes, grid_x, grid_y, grid_z;
  double cost;
  bool serves;
};

namespace acmix_products {

inline AcmixShiftMapsPlan maps_of_tile(const AcmixSize& s, int64_t rows, int64_t cols,
                                       const GpuLimits& device) {
  AcmixShiftMapsPlan p{};
  const int64_t dims = s.G == 4 && s.D() % 16 == 0 ? 16 : 8;
  p.back = acmix_shift_back_layout(s.G, rows, cols, dims);
  p.layout.tiles_x = int(ceil_div(s.W, cols));
  p.layout.sum_pitch = int(4 * s.G * dims + 16);
  p.layout.sums_at = int(round_up(p.back.shared_bytes, 16));
  p.layout.by_cols = divisor(cols);
  p.shared_bytes = p.layout.sums_at + rows * cols * p.layout.sum_pitch;
  p.grid_x = p.layout.tiles_x * ceil_div(s.H, rows) * (s.D() / dims);
  p.grid_y = ceil_div(s.B, kMaxGridYZ);
  p.grid_z = std::min(s.B, kMaxGridYZ);
  const int64_t resident = resident_blocks(device, kShiftMapsThreads, 128, p.shared_bytes);
  p.serves = resident > 0 && p.shared_bytes <= device.shared_bytes && p.grid_x <= kMaxGrid;
  if (!p.serves) return p;

  const double numbers = double(rows * cols * dims * s.G), around = double((rows + 2) * (cols + 2));
  const double walks = 3. * double(dims) / 2 * double(ceil_div(p.back.walks, 16)) * double(s.G) / 4;
  BlockCost cost;
  cost.instructions = walks * 190 + 3 * numbers / kWarp * 4 + around * double(dims * s.G) / 8 / kWarp * 20;
  cost.passes = walks * (48 + 32) + 3 * numbers * 8 / 128 + around * double(dims * s.G) * 2 / 128;
  cost.bytes = 3 * numbers * 2 + around * double(dims * s.G) * 2;
  cost.products = walks * 48 * double(s.G) / 4;
  p.cost = launch_clocks(cost, double(p.grid_x) * double(s.B), kShiftMapsThreads, resident, device);
  return p;
}

}  // namespace acmix_products

// The cheapest tile; serves is false where none does.
inline AcmixShiftMapsPlan acmix_plan_shift_maps(const AcmixSize& s, bool bfloat16, const GpuLimits& device) {
  using namespace acmix_products;
  if (!takes_maps(s, bfloat16, device) || !takes_shift(s, s.G) || s.stride != 1) return {};
  Cheapest<AcmixShiftMapsPlan> plans(device);
  for (int64_t rows = 4; rows <= std::min<int64_t>(32, round_up(s.H, 4)); rows += 4)
    for (int64_t cols = s.W > 12 ? 16 : 4; cols <= std::min<int64_t>(48, round_up(s.W, 4));
         cols += s.W % 16 ? 4 : 16)
      plans.offer(maps_of_tile(s, rows, cols, device));
  return plans.taken();
}

}  // namespace lska_ops
