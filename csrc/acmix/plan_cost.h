// What a launch by products costs, and the cheapest of all that could serve: one table of rates for every
// kernel's plan. What a multiprocessor does in a clock is vendors', as in tests/ptx/gpus.py; what a warp
// waits was fitted to the profiler's counts, against which tests/test_plan_products.py holds the choice.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/common/gpu.h"

namespace lska_ops {

// Of a block: what its warps issue, passes through shared memory, bytes that come from the cache, products of
// warps, and how often one of them waits for what it reads from memory.
struct BlockCost {
  double instructions = 0, passes = 0, bytes = 0, products = 0, reads = 0;
};

// How a kernel reads maps, by their layout, address and sizes: 16 bytes of a pixel's channels at a time,
// which nobody waits for; of 8 channels 4 pixels of a row; or number by number.
enum class MapReads { vectors, quads, numbers };

// How often warps wait for so many channels, in eights, of rows and columns from `before` a tile on.
inline double waits_for(MapReads reads, int64_t rows, int64_t cols, int64_t before, int64_t channels) {
  const int64_t octets = channels / 8;
  if (reads == MapReads::vectors) return 0;
  if (reads == MapReads::numbers) return double(rows * octets * ceil_div(cols, kWarp));
  // Of a row four quads at a time, of 8 octets.
  const int64_t across = ceil_div((4 - before % 4) % 4 + cols, 4);
  return double(rows * ceil_div(octets, 8) * ceil_div(across, 4));
}

// What a block's warps issue and wait for to bring them into shared memory.
inline void add_reads(BlockCost& c, MapReads reads, int64_t rows, int64_t cols, int64_t before,
                      int64_t channels) {
  const double waits = waits_for(reads, rows, cols, before, channels);
  c.instructions += double(rows * cols * channels / 8) / kWarp * 12;
  c.instructions += waits * (reads == MapReads::quads ? 140 : 110);
  c.reads += waits;
}

// Clocks of a multiprocessor for one product of a warp.
inline double clocks_of_product(int64_t arch) {
  switch (arch) {
    case 75:
      return 4;
    case 80:
    case 87:
      return 2;
    case 90:
    case 100:
      return 1;
    default:
      return 8;
  }
}

// Clocks of a launch of so many blocks, `resident` of them at a time on a multiprocessor. These are as fast
// as the slowest of what they use up, or as one of them by itself, whose warps wait for one another.
inline double launch_clocks(const BlockCost& c, double blocks, int threads, int64_t resident,
                            const GpuLimits& device) {
  // A block alone; of a warp alone an instruction, and what it reads from memory.
  constexpr double kBegins = 2000, kWaits = 3.4, kReads = 1000;
  const double work =
      std::max({c.instructions / 4, c.passes, c.bytes / 20, c.products * clocks_of_product(device.arch)});
  const double warps = threads / kWarp;
  const double alone = kBegins + std::max(c.instructions / warps * kWaits, work) + c.reads / warps * kReads;
  const auto clocks = [&](double count) { return std::max(alone, count * work * 1.1); };
  const double at_once = double(resident * device.multiprocessors);
  const double rounds = std::floor(blocks / at_once), rest = blocks - rounds * at_once;
  return rounds * clocks(double(resident)) +
         (rest > 0 ? clocks(std::ceil(rest / double(device.multiprocessors))) : 0);
}

// Takes plans and has the cheapest one, or that of GpuLimits::rank; `serves` is false where none does.
template <class Plan>
class Cheapest {
 public:
  explicit Cheapest(const GpuLimits& device) : rank_(size_t(device.rank)) {}

  void offer(const Plan& p) {
    if (!p.serves) return;
    if (rank_) all_.push_back(p);
    if (!best_.serves || p.cost < best_.cost) best_ = p;
  }

  Plan taken() {
    if (rank_ >= all_.size()) return rank_ ? Plan{} : best_;
    std::stable_sort(all_.begin(), all_.end(), [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
    return all_[rank_];
  }

 private:
  size_t rank_;
  Plan best_{};
  std::vector<Plan> all_;
};

}  // namespace lska_ops
