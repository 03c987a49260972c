// What every launch plan stands on: a GPU's limits, and what CUDA allows of a grid.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <compare>

namespace lska_ops {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr int64_t kMaxGrid = 0x7fffffff, kMaxGridYZ = 65535;

struct GpuLimits {
  int64_t shared_bytes;  // of one block at most, opted in
  int64_t multiprocessors;
  int64_t cache_bytes;  // L2
  int64_t arch = 0;     // compute capability, 90 for 9.0
  int64_t rank = 0;     // which plan, by cost: the profiler asks for others than the cheapest
  auto operator<=>(const GpuLimits&) const = default;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Blocks that a multiprocessor holds at once: registers are handed out to four warps together, 256 at a time;
// from 8.0 on a block takes a kilobyte of shared memory more than it asks for, and may have all but one.
inline int64_t resident_blocks(const GpuLimits& device, int64_t threads, int64_t registers,
                               int64_t shared_bytes) {
  const int64_t warps = threads / kWarp, system = device.arch == 75 ? 0 : 1024;
  const int64_t by_registers = 65536 / round_up(registers * kWarp, 256) / 4 * 4 / warps;
  const int64_t unit = device.arch == 75 ? 256 : 128;
  const int64_t of_block = std::min(round_up(shared_bytes, unit), device.shared_bytes) + system;
  const int64_t by_shared = (device.shared_bytes + system) / std::max<int64_t>(1, of_block);
  return std::min({by_registers, by_shared, (device.arch == 75 ? 1024 : 1536) / threads});
}

}  // namespace lska_ops
