// The channels_last kernels of one dtype, for the file that is to have them.
#pragma once

#include <utility>

#include "csrc/lska/kernels_tile_nhwc.cuh"
#include "csrc/lska/tiles.h"

namespace lska_ops {

template <class T, size_t... N>
LskaTileForwardKernel lska_tile_fwd_nhwc_of(int shape, std::index_sequence<N...>) {
  static const LskaTileForwardKernel kernels[] = {
      lska_tile_fwd_nhwc_kernel<T, kForwardNhwc[N].k0, kForwardNhwc[N].k1, kForwardNhwc[N].dilation,
                                kForwardNhwc[N].channels, kForwardNhwc[N].across, kForwardNhwc[N].down,
                                kForwardNhwc[N].step, kForwardNhwc[N].whole, kForwardNhwc[N].threads>...};
  return kernels[shape];
}
template <class T>
LskaTileForwardKernel lska_tile_fwd_nhwc(int shape) {
  return lska_tile_fwd_nhwc_of<T>(shape, std::make_index_sequence<kForwardNhwcShapes>());
}

}  // namespace lska_ops
