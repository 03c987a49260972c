// The launcher of the tile kernels of the cascade's forward.
#pragma once

#include <tuple>

#include "csrc/common/gpu_launch.h"
#include "csrc/common/remembered.h"
#include "csrc/lska/tiles.h"

namespace lska_ops::lska_cuda {

// Call has the call's sizes, layout, weights and device.
template <class Call>
LskaForwardPlan plan_tiles(const Call& call, int64_t count) {
  const LskaSize size = call.of_images(count);
  const int64_t element = int64_t(call.x.element_size());
  return remembered(std::tuple(size, element, call.device.limits),
                    [&] { return lska_plan_tiles(size, call.channels_last, element, call.device.limits); });
}

// How many images at a time: `most`, or down to half of it, where blocks are then shared out more evenly. Of
// more than kFewImages every multiprocessor has many.
constexpr int64_t kFewImages = 64;
template <class Call>
int64_t images_by_tiles(const Call& call, int64_t most) {
  const int64_t B = call.size.B;
  if (!call.channels_last || most == B || most > kFewImages) return most;
  return remembered(std::tuple(call.size, int64_t(call.x.element_size()), call.device.limits), [&] {
    const auto cost = [&](int64_t at_once) {
      const int64_t rest = B % at_once, whole = B - rest;
      return plan_tiles(call, at_once).cost * double(whole) +
             (rest ? plan_tiles(call, rest).cost * double(rest) : 0);
    };
    int64_t best = most;
    double least = 0.9 * cost(most);
    for (int64_t fewer = most - 1; 2 * fewer >= most; --fewer) {
      const int64_t at_once = ceil_div(B, ceil_div(B, fewer));  // as many at one time as at another
      if (const double c = cost(at_once); c < least) best = at_once, least = c;
    }
    return best;
  });
}

// s of `count` images from x, if a tile kernel serves.
template <class Call>
bool cascade_by_tiles(const Call& call, const void* x, int64_t count, void* s) {
  const int64_t element = int64_t(call.x.element_size());
  const uintptr_t unit = uintptr_t(element) * (call.channels_last ? 2 : kForwardChunk);
  if ((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(s)) % unit) return false;
  const LskaForwardPlan p = plan_tiles(call, count);
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
