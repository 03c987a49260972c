// How the attention's backward by products on tensor cores is spread over a GPU, one plan for its query pass
// and one for its key pass, each with the shift's part of its maps' gradients or without; or none, where the
// kernels of plan.h serve. Stride is 1.
#pragma once

#include "csrc/acmix/plan_products_shift_backward.h"

namespace lska_ops {

// Sides of kProductsSides that have kernels, the first ones: registers do not hold the key pass of 9 x 9
// taps.
constexpr int kProductsBackwardSides = 3;
// As in the forward, by the registers that a kernel of so large a window needs.
constexpr int products_backward_threads(int side, bool before_80) {
  return before_80 && side > 8 ? 256 : 384;
}

struct AcmixProductsBackwardPlan : AcmixProductsPlan {
  AcmixShiftBackLayout back;
};

namespace acmix_products {

inline AcmixProductsBackwardPlan of_backward_tile(const AcmixSize& s, bool of_keys, bool shift, int64_t down,
                                                  int64_t across, int64_t heads, int threads, MapReads reads,
                                                  const GpuLimits& device) {
  AcmixProductsBackwardPlan p{tile(s, down, across, heads)};
  AcmixProductsLayout& l = p.layout;
  l.attention = true, l.shift = shift;
  const int side = kProductsSides[side_of(s)], channels = l.heads * l.dims, pixels = l.rows * l.cols;
  const int64_t groups = l.rows / 4 + l.across, pairs = ceil_div(int64_t(side) * side, 16);
  SharedBytes shared;
  l.sum_pitch = 4 * channels * (of_keys ? 2 : 1) + 16;
  l.sums_at = shared.take(int64_t(pixels) * l.sum_pitch);
  const int64_t either = shared.at;
  pitches(l, side);
  l.keys_at = shared.take(int64_t(l.region_rows) * l.key_row_pitch);
  l.queries_at = shared.take(int64_t(pixels) * l.query_pitch);
  l.grads_at = shared.take(int64_t(pixels) * l.query_pitch);
  l.places_at = shared.take(2 * pairs * kWarp * 4);
  l.done_at = shared.take(4 * heads * l.groups);
  if (of_keys) {
    l.tables_at = shared.take(16 * int64_t(side) * side);
    l.counts_at = shared.take(groups * 4 * side * 4);
    // Rows of 16 bytes a query: eight, in two rows of a window, touch every bank once.
    l.fact_pitch = l.region_cols;
    while (l.unit == 1 && (l.fact_pitch - side) % 8) ++l.fact_pitch;
    const int64_t facts = heads * l.region_rows * l.fact_pitch;
    l.rises_at = shared.take(16 * facts);
    l.facts_at = shared.take(8 * facts);
  } else {
    l.offsets_at = shared.take(4 * int64_t(l.region_cols));
    l.tables_at = shared.take(16 * int64_t(side) * groups);
    l.slopes_at = shared.take(int64_t(l.dims) / kProductsDims * kWarp * 8);
    l.pairs_at = shared.take(groups * pairs * 8 * 4);
    l.conv_p_at = shared.take(8 * int64_t(l.dims));
    l.along_at = shared.take(8 * heads * pixels);
  }
  p.shared_bytes = std::max<int64_t>(shared.at, 4 * kWarp);  // what the last sum over the block takes
  if (shift) {                                               // it goes first, in the place of the maps
    l.staging_at = int(either);
    p.back = acmix_shift_back_layout(s.G, l.rows, l.cols, s.G == 4 && s.D() % 16 == 0 ? 16 : 8);
    if (either + p.back.shared_bytes > std::max(p.shared_bytes, device.shared_bytes / 2))
      p.back = acmix_shift_back_layout(s.G, l.rows, l.cols, 8);
    p.shared_bytes = std::max(p.shared_bytes, either + p.back.shared_bytes);
  }
  p.side = side_of(s), p.threads = threads;

  const double tiles = double(ceil_div(side * side, 8)), dims = double(l.dims) / kProductsDims;
  const double tasks = double(l.groups) * l.heads, region = double(l.region_rows) * l.region_cols;
  const double outcomes = of_keys ? 2 : 1;
  BlockCost cost;
  cost.instructions = pixels * channels * outcomes / 8 / kWarp * 30 +
                      tasks * (300 + tiles * (of_keys ? 110 : 75) + dims * outcomes * (8 * tiles + 60)) +
                      (of_keys ? region * double(heads) / kWarp * 60 : pixels * channels / kWarp * 6);
  add_reads(cost, reads, l.region_rows, l.region_cols, s.reach(), 2 * channels);
  add_reads(cost, reads, l.rows, l.cols, 0, 2 * channels);
  cost.passes = tasks * (tiles * (of_keys ? 5 : 3) + dims * (4 * tiles + outcomes * (2 * tiles + 16))) +
                (region + pixels) * 4 * channels / 128 + pixels * channels * outcomes * 8 / 128;
  cost.bytes = (region + pixels) * 4 * channels + pixels * channels * 2 * outcomes +
               (of_keys ? region * 16 * double(heads) : 0);
  cost.products = tasks * (tiles * (of_keys ? 1 : 2) + dims * (2 * tiles + 2 * outcomes * tiles));
  if (shift) {
    const double walks = outcomes * double(s.D()) / 2 * double(ceil_div(p.back.walks, 16)) * double(s.G) / 4;
    const double around = double((l.rows + 2) * (l.cols + 2)) * double(s.C);
    cost.instructions += walks * 190 + around / 8 / kWarp * 20;
    cost.reads += waits_for(reads, l.rows + 2, l.cols + 2, 1, s.C);
    cost.passes += walks * 80 + around * 2 / 128;
    cost.bytes += around * 2;
    cost.products += walks * 48 * double(s.G) / 4;
  }
  weigh(p, cost, 65536 / products_backward_threads(side, device.arch < 80), s.B, device);
  return p;
}

}  // namespace acmix_products

// Whether the shift's part can go along.
inline bool acmix_products_backward_takes_shift(const AcmixSize& s) {
  return acmix_products::takes_shift(s, s.G) && s.stride == 1;
}

// The cheapest tile; serves is false where none does.
inline AcmixProductsBackwardPlan acmix_plan_products_backward(const AcmixSize& s, bool of_keys, bool shift,
                                                              bool bfloat16, MapReads reads,
                                                              const GpuLimits& device) {
  using namespace acmix_products;
  if (!takes_maps(s, bfloat16, device) || !takes_windows(s) || s.stride != 1) return {};
  if (side_of(s) >= kProductsBackwardSides) return {};
  // The queries of a group's keys are every dilation-th; reflection keeps to them for no more than two.
  if (s.dilation > 2) return {};
  if (shift && !acmix_products_backward_takes_shift(s)) return {};
  const int most = products_backward_threads(kProductsSides[side_of(s)], device.arch < 80);
  // Two blocks of half as many, too: one computes while the other waits for its maps.
  return cheapest<AcmixProductsBackwardPlan>(
      s, device, most, most / 2, [&](int64_t down, int64_t across, int64_t heads, int threads) {
        return of_backward_tile(s, of_keys, shift, down, across, heads, threads, reads, device);
      });
}

}  // namespace lska_ops
