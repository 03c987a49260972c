// The launcher of the tile kernels of the cascade's forward.
#pragma once

#include "csrc/common/gpu_launch.h"
#include "csrc/lska/tiles.h"

namespace lska_ops::lska_cuda {

// s of `count` images from x, if a tile kernel serves. Call has the call's sizes, layout, weights and device.
template <class Call>
bool cascade_by_tiles(const Call& call, const void* x, int64_t count, void* s) {
  const int64_t element = int64_t(call.x.element_size());
  const uintptr_t unit = uintptr_t(element) * (call.channels_last ? 2 : kForwardChunk);
  if ((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(s)) % unit) return false;
  const LskaForwardPlan p =
      lska_plan_tiles(call.of_images(count), call.channels_last, element, call.device.limits);
  if (p.shape < 0) return false;
  const LskaTileForwardArguments a{x, s, call.weights, call.map(count), p.tile};
  gpu::with_dtype(call.type, [&](auto t) {
    using T = typename decltype(t)::type;
    call.start(call.channels_last ? lska_tile_fwd_nhwc<T>(p.shape) : lska_tile_fwd_nchw<T>(p.shape),
               {p.grid_x, p.grid_y, p.grid_z}, p.threads, p.shared_bytes, a);
  });
  return true;
}

}  // namespace lska_ops::lska_cuda
