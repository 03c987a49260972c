// Sums over the threads of a warp and of a block, always in the same order.
#pragma once

#include "csrc/common/gpu.h"
#include "csrc/common/portable.cuh"

namespace lska_ops {

LSKA_DEVICE float warp_sum(float v) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

// The sum over the block's threads, in the first of them; a fixed order. `shared` has a float per warp.
LSKA_DEVICE float block_sum(float v, float* shared) {
  const int t = thread_index();
  v = warp_sum(v);
  barrier();
  if (t % kWarp == 0) shared[t / kWarp] = v;
  barrier();
  v = 0.f;
  if (t == 0)
    for (int w = 0; w < thread_count() / kWarp; ++w) v += shared[w];
  return v;
}

}  // namespace lska_ops
