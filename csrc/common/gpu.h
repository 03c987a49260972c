// What every launch plan stands on: a GPU's limits, and what CUDA allows of a grid.
#pragma once

#include <stdint.h>

namespace lska_ops {

constexpr int kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr int64_t kMaxGrid = 0x7fffffff, kMaxGridYZ = 65535;

struct GpuLimits {
  int64_t shared_bytes;  // of one block at most, opted in
  int64_t multiprocessors;
  int64_t cache_bytes;  // L2
  int64_t arch = 0;     // compute capability, 90 for 9.0
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace lska_ops
