// The NCHW kernels of one dtype, for the file that is to have them.
#pragma once

#include <utility>

#include "csrc/lska/kernels_tile_nchw.cuh"
#include "csrc/lska/tiles.h"

namespace lska_ops {

template <class T, size_t... N>
LskaTileForwardKernel lska_tile_fwd_nchw_of(int shape, std::index_sequence<N...>) {
  static const LskaTileForwardKernel kernels[] = {
      lska_tile_fwd_nchw_kernel<T, kForwardNchw[N].k0, kForwardNchw[N].k1, kForwardNchw[N].dilation,
                                kForwardNchw[N].across, kForwardNchw[N].down, kForwardNchw[N].step,
                                kForwardNchw[N].whole, kForwardNchw[N].threads>...};
  return kernels[shape];
}
template <class T>
LskaTileForwardKernel lska_tile_fwd_nchw(int shape) {
  return lska_tile_fwd_nchw_of<T>(shape, std::make_index_sequence<kForwardNchwShapes>());
}

}  // namespace lska_ops
