// The launcher of the tile kernels of the cascade's backward.
#pragma once

#include <tuple>

#include "csrc/common/gpu_launch.h"
#include "csrc/common/remembered.h"
#include "csrc/lska/tiles_backward.h"

namespace lska_ops::lska_cuda {

// The plan for `count` images; serves() says whether a tile kernel does.
template <class Call>
LskaTileBackwardPlan plan_tiles_backward(const Call& call, int64_t count) {
  const LskaSize size = call.of_images(count);
  const int64_t element = int64_t(call.x.element_size());
  const LskaTileBackwardPlan p = remembered(std::tuple(size, element, call.device.limits), [&] {
    return lska_plan_tile_backward(size, call.channels_last, element, call.device.limits);
  });
  const uintptr_t unit = uintptr_t(p.together * element);
  return reinterpret_cast<uintptr_t>(call.x.const_data_ptr()) % unit ? LskaTileBackwardPlan{} : p;
}

template <class Call>
void backward_by_tiles(const Call& call, const LskaTileBackwardPlan& p, const LskaBackwardArguments& given) {
  LskaTileBackwardArguments a = lska_tile_backward_arguments(p, call.size);
  a.x = given.x, a.ds = given.ds, a.grad_y = given.grad_y, a.product = given.product, a.bias = given.bias;
  a.grad_x = given.grad_x, a.sums = given.sums, a.sums_width = given.sums_width;
  a.weights = given.weights;
  a.bytes = uint32_t(call.x.element_size());
  const int64_t together = call.channels_last ? call.size.C : call.size.W | p.tile_cols;
  a.vectors = together % 4 == 0 && call.aligned({a.grad_y, a.product, a.grad_x});
  gpu::with_dtype(call.type, [&](auto t) {
    using T = typename decltype(t)::type;
    call.start(call.channels_last ? lska_tile_bwd_nhwc<T>(p.pair) : lska_tile_bwd_nchw<T>(p.pair),
               {p.grid_x, p.grid_y, p.grid_z}, p.threads(), p.shared_bytes, a);
  });
}

}  // namespace lska_ops::lska_cuda
