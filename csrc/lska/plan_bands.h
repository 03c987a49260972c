// When and how the cascade is computed as banded products on tensor cores (kernels_bands.cuh): a pure
// function of sizes and the device's limits, for maps of 16-bit numbers whose planes are contiguous.
//
// A block owns a channel of a few images, one after the other, and has a warp for 16 columns of the plane.
#pragma once

#include "csrc/lska/plan.h"

namespace lska_ops {

// A warp's registers hold what is in between of kBandsTiles times 8 rows. Products of 16 inputs that 16
// columns, or 8 rows, take something of; and so many columns of x in front of a warp's.
constexpr int kBandsTiles = 10, kBandsProducts = 5, kBandsBefore = 8 * (kBandsProducts - 1), kBandsWarps = 8;

// Of those of 8 rows the first; some are in front of the map or behind it. How many there are in the tiles
// before.
constexpr int bands_first(int tile) { return (tile - (kBandsProducts - 1)) >> 1; }
constexpr bool bands_product_is(int tile, int k) {
  return bands_first(tile) + k >= 0 && bands_first(tile) + k < kBandsTiles / 2;
}
constexpr int bands_products_before(int tile, int k = 0) {
  int count = 0;
  for (int i = 0; i < tile * kBandsProducts + k; ++i)
    count += bands_product_is(i / kBandsProducts, i % kBandsProducts);
  return count;
}

struct LskaBandsPlan {
  bool serves = false;
  int warps = 0, images = 0;  // of a block
  int chunk = 0;              // elements of one copy
  int pitch = 0,
      x_bytes = 0;  // of a plane in shared memory: elements of a row, bytes; matrices are behind it
  int64_t grid_x = 0, grid_y = 0;  // channels, groups of images
  int64_t shared_bytes = 0;
};

// The plan for pointers that are multiples of `alignment` bytes. On an A100 the tile kernels' multiply-adds
// take 1.8 to 2 times as long as reading and writing the maps (predicted, k 35 to 53), and these products do
// not; elsewhere those do as well, and small maps and few images are not worth the tables.
inline LskaBandsPlan lska_plan_bands(const LskaSize& s, bool bfloat16, int64_t alignment,
                                     const GpuLimits& device) {
  LskaBandsPlan p;
  if (device.arch != 80 || s.B < 8 || s.planes() < 4 * device.multiprocessors) return p;
  if (s.H <= 48 || s.H > 8 * kBandsTiles || s.W < 48 || s.W > 16 * kBandsWarps) return p;
  const LskaStages g = lska_plan::stages(s);
  if (std::min(g.reach_h(), g.reach_v()) <= 16 || std::max(g.reach_h(), g.reach_v()) > kBandsBefore) return p;
  for (p.chunk = 8; p.chunk > 1 && (s.W % p.chunk || alignment % (2 * p.chunk)); p.chunk /= 2) {
  }
  if (p.chunk == 1) return p;

  p.warps = int(ceil_div(s.W, 16));
  // Rows share the zeros between them: what is read behind one is in front of the next. An odd number of 16
  // bytes, so that eight rows are in all banks.
  p.pitch = 8 * int((16 * p.warps + kBandsBefore) / 8 | 1);
  p.x_bytes = 2 * (8 * kBandsTiles * p.pitch + 2 * kBandsBefore);
  const int parts = bfloat16 ? 3 : 2;
  p.shared_bytes = p.x_bytes + 64 * kBandsTiles +
                   int64_t(512) * (p.warps * kBandsProducts * parts + bands_products_before(kBandsTiles));
  const int64_t resident = resident_blocks(device, kWarp * p.warps, 168, p.shared_bytes);
  if (resident * p.warps < 8) return p;
  // A block reads the matrices once for its images: as many as it takes for all blocks to be there at once.
  p.images = 1;
  while (p.images < s.B && s.C * ceil_div(s.B, p.images) > resident * device.multiprocessors) ++p.images;
  p.grid_x = s.C;
  p.grid_y = ceil_div(s.B, p.images);
  p.serves = p.grid_x <= kMaxGrid && p.grid_y <= kMaxGridYZ;
  return p;
}

}  // namespace lska_ops
